"""Writes documents with their clusters: CoNLL-2012, JSON lines, and HTML for a browser."""

import contextlib
import html
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TextIO

from spanbert_fast.tasks.coref_documents import Cluster, Document
from spanbert_fast.tasks.writing import whole_file


def write_documents(
    path: Path, documents: Sequence[Document], predictions: Iterable[list[Cluster]]
) -> list[Path]:
    """Write each document with its predicted clusters; returns the files.

    Args:
        path: the suffix decides. .jsonl and .html give one file; any other gives CoNLL-2012, with a
            .jsonl and an .html of the same name beside it.
    """
    alone = path.suffix in (".jsonl", ".html")
    paths = [path] if alone else [path, path.with_suffix(".jsonl"), path.with_suffix(".html")]
    with contextlib.ExitStack() as stack:
        writers = [
            _WRITERS.get(p.suffix, _Conll)(stack.enter_context(whole_file(p))) for p in paths
        ]
        for document, clusters in zip(documents, predictions, strict=True):
            for writer in writers:
                writer.add(document, clusters)
        for writer in writers:
            writer.close()
    return paths


class _Conll:
    """Writes the columns of CoNLL-2012 that are known; the others are "-"."""

    def __init__(self, file: TextIO):
        self.file = file

    def add(self, document: Document, clusters: list[Cluster]) -> None:
        opens, closes, alone = _brackets(clusters)
        self.file.write(f"#begin document ({document.id}); part {int(document.part):03d}\n")
        word = 0
        for sentence in document.sentences:
            for place, text in enumerate(sentence):
                marks = [f"({number}" for number in opens[word]]
                marks += [f"({number})" for number in alone[word]]
                marks += [f"{number})" for number in closes[word]]
                row = (document.id, document.part, place, text, *"-" * 7, "|".join(marks) or "-")
                self.file.write("\t".join(map(str, row)) + "\n")
                word += 1
            self.file.write("\n")
        self.file.write("#end document\n")

    def close(self) -> None:
        pass


def _brackets(clusters: list[Cluster]):
    """The brackets at each word; outer mentions open first and close last."""
    opens, closes, alone = defaultdict(list), defaultdict(list), defaultdict(list)
    spans = sorted(
        (start, -end, number) for number, cluster in enumerate(clusters) for start, end in cluster
    )
    for start, end, number in spans:
        if start == -end:
            alone[start].append(number)
        else:
            opens[start].append(number)
    for start, end, number in sorted(spans, key=lambda span: (-span[0], -span[1])):
        if start != -end:
            closes[-end].append(number)
    return opens, closes, alone


class _JsonLines:
    """Writes an object per line, as `coref_reading` reads it."""

    def __init__(self, file: TextIO):
        self.file = file

    def add(self, document: Document, clusters: list[Cluster]) -> None:
        name = document.id if document.part == "0" else f"{document.id}_{document.part}"
        content = {"doc_key": name, "sentences": document.sentences, "clusters": clusters}
        self.file.write(json.dumps(content, ensure_ascii=False) + "\n")

    def close(self) -> None:
        pass


_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Coreference</title><style>
body { font: 17px/2.1 Georgia, serif; max-width: 46em; margin: 2em auto; padding: 0 1em; }
h2 { font: 600 15px system-ui, sans-serif; margin-top: 3em; }
.m { border-radius: 4px; padding: 2px 3px; margin: 0 1px; border-bottom: 2px solid; }
.m sub { font: 600 10px system-ui, sans-serif; margin-left: 2px; }
</style></head><body>
"""


class _Html:
    """Writes a page in which the mentions of a cluster share a colour and a number."""

    def __init__(self, file: TextIO):
        self.file = file
        file.write(_HEAD)

    def add(self, document: Document, clusters: list[Cluster]) -> None:
        self.file.write(f"<h2>{html.escape(document.id)}</h2>\n")
        starting, ending = defaultdict(list), defaultdict(list)
        for number, cluster in enumerate(clusters):
            for start, end in cluster:
                starting[start].append((-end, number, len(cluster)))
                ending[end].append((start, number))
        open_marks: list[tuple[int, int, int]] = []  # (end, number, size), the outermost first
        word = 0
        for sentence in document.sentences:
            self.file.write("<p>")
            for text in sentence:
                for end, number, size in sorted(starting[word]):
                    open_marks.append((-end, number, size))
                    self.file.write(_opening(number, size))
                self.file.write(html.escape(text))
                self._close(open_marks, word)
                self.file.write(" ")
                word += 1
            self.file.write("</p>\n")

    def _close(self, open_marks: list[tuple[int, int, int]], word: int) -> None:
        """Close the mentions that end here. A mention that crosses one of them is closed and
        reopened."""
        again = []
        while any(end == word for end, _, _ in open_marks):
            end, number, size = open_marks.pop()
            label = f"<sub>{number}</sub>" if end == word and size > 1 else ""
            self.file.write(f"{label}</span>")
            if end != word:
                again.append((end, number, size))
        for mark in reversed(again):
            open_marks.append(mark)
            self.file.write(_opening(*mark[1:]))

    def close(self) -> None:
        self.file.write("</body></html>\n")


def _opening(number: int, size: int) -> str:
    hue = number * 137.508 % 360  # steps of the golden angle give neighbours unlike colours
    colour = f"hsl({hue:.0f} 85% 90%)" if size > 1 else "#f3f3f3"
    edge = f"hsl({hue:.0f} 70% 45%)" if size > 1 else "#ccc"
    return f'<span class="m" style="background:{colour};border-color:{edge}">'


_WRITERS: dict[str, Callable[[TextIO], _Conll | _JsonLines | _Html]] = {
    ".jsonl": _JsonLines,
    ".html": _Html,
}
