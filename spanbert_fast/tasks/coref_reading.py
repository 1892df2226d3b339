"""Readers of documents with coreference: CoNLL-2012, CorefUD, JSON lines, plain text."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from spanbert_fast.data.text_files import decoded_lines, plain_suffix
from spanbert_fast.errors import DataError
from spanbert_fast.tasks.base import Bad
from spanbert_fast.tasks.coref_documents import BracketError, Brackets, Document, checked
from spanbert_fast.tasks.coref_text import sentences_of
from spanbert_fast.tasks.reading import BadItem, json_item, numbered_lines

FORMATS = ("conll", "conllu", "jsonlines", "text")
_SUFFIXES = {
    ".conll": "conll",
    ".conllu": "conllu",
    ".jsonl": "jsonlines",
    ".jsonlines": "jsonlines",
    ".json": "jsonlines",
    ".txt": "text",
}
_BEGIN = re.compile(r"#begin document \((.*)\)(?:; part (\d+))?\s*$")
_PART = re.compile(r"(\()?([^()|]+?)(\))?$")
_ENTITY = re.compile(r"\(([^()]+)(\))?|([^()]+)\)")
_WORD_ID = re.compile(r"\d+$")


def format_of(path: Path) -> str:
    """The format of a file, one of `FORMATS`: from its suffix, else from its first line of text."""
    suffix = plain_suffix(path)
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if suffix.endswith("_conll"):  # suffixes such as .v4_gold_conll
        return "conll"
    first = next((line for line in decoded_lines(path) if line.strip()), "")
    if first.startswith("#begin document"):
        return "conll"
    if first.startswith("{"):
        return "jsonlines"
    return "conllu" if first.startswith("#") or first.count("\t") == 9 else "text"


def read_documents(path: Path, format: str) -> Iterator[Document | Bad]:
    """The documents of a file in one of `FORMATS`, each with its sentences and clusters."""
    readers = {
        "conll": _conll,
        "conllu": _conllu,
        "jsonlines": _jsonlines,
        "text": _text,
    }
    names: set[tuple[str, str]] = set()
    for found in readers[format](path):
        yield found if isinstance(found, Bad) else checked(found, names)


class _Building:
    """A document whose lines are being read. It keeps the first fault."""

    def __init__(self, name: str, part: str, place: str):
        self.name, self.part, self.place = name, part, place
        self.sentences: list[list[str]] = []
        self.sentence: list[str] = []
        self.count = 0
        self.brackets = Brackets()
        self.annotated = False
        self.bad: Bad | None = None

    def end_sentence(self) -> None:
        if self.sentence:
            self.sentences.append(self.sentence)
            self.sentence = []

    def add(self, word: str) -> None:
        self.sentence.append(word)
        self.count += 1

    def fail(self, place: str, reason: str) -> None:
        self.bad = self.bad or Bad(place, reason)

    def finished(self) -> Document | Bad:
        self.end_sentence()
        clusters = None
        if self.bad is None and self.annotated:
            try:
                clusters = self.brackets.clusters()
            except BracketError as error:
                self.fail(error.place, str(error))
        if self.bad is not None:
            return self.bad
        return Document(self.name, self.place, self.part, self.sentences, clusters)


def _conll(path: Path) -> Iterator[Document | Bad]:
    """Read columns of CoNLL-2012: the word is in the fourth, the clusters are in the last.

    A file without any bracket has no annotation."""
    document: _Building | None = None
    waiting: list[Document | Bad] = []
    annotated = False
    for number, line in enumerate(decoded_lines(path), start=1):
        place = f"{path}:{number}"
        if line.startswith("#begin document"):
            if document is not None:
                document.fail(document.place, "has no #end document")
                waiting.append(document.finished())
            match = _BEGIN.match(line)
            name, part = match.groups() if match else (line[15:].strip(), None)
            document = _Building(name, str(int(part or 0)), place)
            document.annotated = True
        elif line.startswith("#end document"):
            if document is not None:
                waiting.append(document.finished())
            document = None
        elif not line.strip():
            if document is not None:
                document.end_sentence()
        elif not line.startswith("#"):
            if document is None:
                raise DataError(f"{place}: a word outside of #begin document and #end document")
            annotated |= _conll_word(document, line.rstrip("\r\n"), place)
    if document is not None:
        document.fail(document.place, "has no #end document")
        waiting.append(document.finished())
    for found in waiting:
        if not annotated and isinstance(found, Document):
            found.clusters = None
        yield found


def _conll_word(document: _Building, line: str, place: str) -> bool:
    """Add a word and its mentions; returns whether the line has a bracket."""
    columns = line.split("\t") if "\t" in line else line.split()
    if len(columns) < 5:
        document.fail(place, f"has {len(columns)} columns, 5 at least are needed")
        return False
    word, column = columns[3].strip(), columns[-1].strip()
    if not word:
        document.fail(place, "has no word")
    document.add(word)
    if column in ("", "-", "_", "*"):
        return False
    for part in column.split("|"):
        match = _PART.match(part.strip())
        if match is None or not (match[1] or match[3]):
            document.fail(place, f"the last column must be like (1|2), got {column!r}")
            return True
        _brackets(document, match[2], bool(match[1]), bool(match[3]), place)
    return True


def _brackets(document: _Building, entity: str, opens: bool, closes: bool, place: str) -> None:
    try:
        if opens:
            document.brackets.open(entity, document.count - 1, place)
        if closes:
            document.brackets.close(entity, document.count - 1, place)
    except BracketError as error:
        document.fail(error.place, str(error))


def _conllu(path: Path) -> Iterator[Document | Bad]:
    """Read CorefUD 1.0: `# newdoc id`, and Entity= in the last column; a file without Entity has no
    annotation. Empty nodes are left out, with their mentions. A mention in several parts keeps its
    first part."""
    document: _Building | None = None
    waiting: list[Document | Bad] = []
    annotated = False
    for number, line in enumerate(decoded_lines(path), start=1):
        place = f"{path}:{number}"
        if line.startswith("# newdoc") or (document is None and line.strip()):
            if document is not None:
                waiting.append(document.finished())
            name = line.partition("=")[2].strip() if line.startswith("# newdoc") else ""
            document = _Building(name or str(len(waiting)), "0", place)
            document.annotated = True
        if line.startswith("#"):
            continue
        if not line.strip():
            if document is not None:
                document.end_sentence()
            continue
        assert document is not None  # the first line that is not blank begins a document
        annotated |= _conllu_word(document, line.rstrip("\r\n"), place)
    if document is not None:
        waiting.append(document.finished())
    for found in waiting:
        if not annotated and isinstance(found, Document):
            found.clusters = None
        yield found


def _conllu_word(document: _Building, line: str, place: str) -> bool:
    columns = line.split("\t")
    if len(columns) != 10:
        document.fail(place, f"has {len(columns)} columns, CoNLL-U has 10")
        return False
    if not _WORD_ID.match(columns[0]):  # the range of a multiword token, or an empty node
        return False
    document.add(columns[1])
    entity = re.search(r"(?:^|\|)Entity=([^|]*)", columns[9])
    if entity is None:
        return False
    rest = _ENTITY.sub("", entity[1])
    if rest:
        document.fail(place, f"Entity= must hold brackets, got {entity[1]!r}")
    for match in _ENTITY.finditer(entity[1]):
        opened, closed_at_once, closed = match.groups()
        name, part = _name_and_part(opened or closed)
        if part == "1":
            _brackets(document, name, bool(opened), bool(closed or closed_at_once), place)
    return True


def _name_and_part(text: str) -> tuple[str, str]:
    """The entity's name and its part: e1 and "1" for e1-person-1- and e1[1/2], "2" for e1[2/2]."""
    name = text.split("-")[0]
    match = re.match(r"(.*)\[(\d+)/\d+\]$", name)
    return (match[1], match[2]) if match else (name, "1")


def _jsonlines(path: Path) -> Iterator[Document | Bad]:
    """Read an object per line: `sentences` (lists of words) and `clusters` (lists of [first, last],
    words of the document, both inclusive). `doc_key`, `doc_id` or `id` is its name."""
    for number, place, line in numbered_lines(path):
        try:
            content = json_item(line)
        except BadItem as error:
            yield Bad(place, str(error))
            continue
        reason = _json_fault(content)
        if reason is not None:
            yield Bad(place, reason)
            continue
        keys = (content.get(key) for key in ("doc_key", "doc_id", "id"))
        name = next((str(key) for key in keys if key is not None), str(number))
        clusters = content.get("clusters")
        if clusters is not None:
            clusters = [[(start, end) for start, end in cluster] for cluster in clusters]
        sentences = [list(sentence) for sentence in content["sentences"] if sentence]
        yield Document(name, place, "0", sentences, clusters)


def _json_fault(content) -> str | None:
    if type(content) is not dict or type(content.get("sentences")) is not list:
        return "must be an object with the list `sentences`"
    for sentence in content["sentences"]:
        if type(sentence) is not list or not all(type(word) is str for word in sentence):
            return "`sentences` must be lists of words"
        if not all(word.strip() for word in sentence):
            return "`sentences` has an empty word"
    clusters = content.get("clusters")
    if clusters is None:
        return None
    if type(clusters) is not list or not all(type(cluster) is list for cluster in clusters):
        return "`clusters` must be lists of [first, last]"
    for cluster in clusters:
        for span in cluster:
            is_pair = type(span) is list and len(span) == 2
            if not is_pair or not all(type(number) is int for number in span):
                return f"a mention must be [first, last], got {json.dumps(span)[:40]}"
    return None


def _text(path: Path) -> Iterator[Document | Bad]:
    """Read plain text as one document without annotation; see `coref_text`."""
    sentences: list[list[str]] = []
    paragraph: list[str] = []
    for line in decoded_lines(path):
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            sentences += sentences_of(" ".join(paragraph))
            paragraph = []
    if paragraph:
        sentences += sentences_of(" ".join(paragraph))
    yield Document(path.name.split(".")[0], str(path), "0", sentences, None)
