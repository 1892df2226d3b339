"""Named entities: words with tags in CoNLL columns; the first piece of a word has its label."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spanbert_fast.data.text_files import decoded_lines
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks import entities
from spanbert_fast.tasks.base import Bad, Defaults, Example, Task
from spanbert_fast.tasks.ner_lines import has_tag, refuse_no_columns, with_types
from spanbert_fast.tasks.writing import whole_file

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

_IGNORED = -100


@dataclasses.dataclass
class Sentence(Example):
    """Words and their BIO tags; no tags if the file has only words."""

    words: list[str]
    tags: list[str] | None


class NamedEntities(Task[Sentence, list[str]]):
    """Tagging of words with BIO tags of entity types.

        >>> from pathlib import Path
        >>> _ = Path("dev.conll").write_text("London B-LOC\\nhad O\\nfog O\\n")
        >>> NamedEntities().read("dev.conll").items[0].tags
        ['B-LOC', 'O', 'O']

    A file has a word on each line and its tag in another column. Blanks or tabs separate columns,
    and an empty line separates sentences. Lines that begin with -DOCSTART- are left out. Tags may
    be BIO, IOB1, IOBES, BILOU or BMES; the scheme is found from the tags, which are converted to
    BIO. Letters without a type mean the type ENTITY. A file may have words without tags, but a
    sentence without tags in a file with tags is bad.

    A sentence that is longer than a window is cut into windows that overlap by half. Each word's
    tag comes from the window in which the word's poorer side has the most context. Decoding takes
    the best path (Viterbi) in which an I follows only a B or an I of its own type.

    Args:
        scheme: one of `entities.SCHEMES`; None to find it from the tags of the training data.
        word_column, tag_column: columns of the file, counted from 0, or from the end if negative.
        max_seq_length, labels: see `Task`.
    """

    name = "ner"
    head = "token-classification"
    metric = "f1"
    # Not in the paper; from the range of BERT's (Devlin et al. 2019, A.3), for a small data set.
    defaults = Defaults(learning_rate=5e-5, epochs=4, batch_size=16, max_seq_length=128)
    predictions_file = "predictions.conll"

    def __init__(
        self,
        *,
        scheme: str | None = None,
        word_column: int = 0,
        tag_column: int = -1,
        max_seq_length: int | None = None,
        labels: Sequence[str] | None = None,
    ):
        super().__init__(max_seq_length=max_seq_length, labels=labels)
        if scheme not in (None, *entities.SCHEMES):
            raise UsageError(f"--scheme must be one of {', '.join(entities.SCHEMES)}, got {scheme}")
        if self.max_seq_length < 3:  # [CLS], a piece, [SEP]
            raise UsageError(f"--max-seq-length must be at least 3, got {self.max_seq_length}")
        self.scheme, self.word_column, self.tag_column = scheme, word_column, tag_column

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """See `Task`."""
        add = parser.add_argument
        add("--scheme", choices=entities.SCHEMES, help="of the tags (default: found out)")
        add("--word-column", type=int, metavar="N", help="column of the word (default 0)")
        add("--tag-column", type=int, metavar="N", help="column of the tag (default -1, the last)")

    def state(self) -> dict:
        """See `Task`."""
        own = ("scheme", "word_column", "tag_column")
        return {**super().state(), **{name: getattr(self, name) for name in own}}

    # Data

    def parse(self, path: Path) -> Iterator[Sentence | Bad]:
        """See `Task`."""
        sentences = list(self._sentences(path))
        tagged = [s.tags for s in sentences if not isinstance(s, Bad) and s.tags is not None]
        with_types(tagged)
        scheme = self.scheme
        if scheme is None and tagged:
            scheme = self.scheme = entities.scheme_of(tagged)
        for sentence in sentences:
            if isinstance(sentence, Bad):
                yield sentence
                continue
            if sentence.tags is None or scheme is None:
                yield Bad(sentence.place, "has words and no tags") if tagged else sentence
                continue
            try:
                sentence.tags = entities.to_bio(sentence.tags, scheme)
            except ValueError as error:
                yield Bad(sentence.place, f"{error} in column {self.tag_column} (--tag-column)")
            else:
                yield sentence

    def _sentences(self, path: Path) -> Iterator[Sentence | Bad]:
        rows: list[list[str]] = []
        first, number, count = 1, 0, 0
        for number, line in enumerate(decoded_lines(path), start=1):
            if number == 1:
                refuse_no_columns(path, line)
            if not line.strip() or line.startswith("-DOCSTART-"):
                if rows:
                    yield self._sentence(rows, path, first, count)
                    rows, count = [], count + 1
                continue
            line = line.rstrip("\r\n")
            # a no-break space is part of a word: "10 000" stays one token
            row = line.split("\t") if "\t" in line else re.split("[ \f\v]+", line.strip(" \f\v"))
            if not rows:
                if line.startswith("#") and not has_tag(row, self.tag_column):
                    continue  # a comment: CoNLL-U, OntoNotes and the WNUT sets have them
                first = number
            rows.append(row)
        if rows:
            yield self._sentence(rows, path, first, count)

    def _sentence(
        self, rows: list[list[str]], path: Path, first: int, count: int
    ) -> Sentence | Bad:
        widths = {len(row) for row in rows}
        place = f"{path}:{first}"
        if len(widths) > 1:
            odd = next(i for i, row in enumerate(rows) if len(row) != len(rows[0]))
            return Bad(
                f"{path}:{first + odd}",
                f"has {len(rows[odd])} columns where the sentence began with {len(rows[0])}",
            )
        width = widths.pop()
        needed = max(c + 1 if c >= 0 else -c for c in (self.word_column, self.tag_column))
        if width < needed:
            return Bad(place, f"has {width} columns, {needed} are needed")
        words = [row[self.word_column].strip() for row in rows]
        if not all(words):
            return Bad(f"{path}:{first + words.index('')}", "has no word")
        tags = None
        if width > 1:
            tags = [row[self.tag_column].strip() for row in rows]
        return Sentence(str(count), place, words, tags)

    def learn(self, examples: Sequence[Sentence]) -> None:
        """Learn `labels`: O, then B and I of every entity type in the training data.

        Raises:
            DataError: a sentence has no tags, or there is no entity.
        """
        untagged = next((e for e in examples if e.tags is None), None)
        if untagged is not None:
            raise DataError(f"{untagged.place}: has words and no tags to learn")
        types = sorted({tag[2:] for e in examples for tag in e.tags or () if tag != "O"})
        if not types:
            raise DataError(f"{examples[0].place}: every tag is O")
        self.labels = ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]

    def unknown_label(self, example: Sentence) -> str | None:
        """See `Task`."""
        unknown = next((tag for tag in example.tags or () if tag not in self.learnt_labels()), None)
        return unknown and f"the entity type {unknown[2:]} is not in the training data"

    def has_answers(self, examples: Sequence[Sentence]) -> bool:
        """See `Task`."""
        return all(example.tags is not None for example in examples)

    def misfit(self, example: Sentence, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """See `Task`. A gold entity must not be longer than a window."""
        room = self.max_seq_length - 2
        for first, last, kind in sorted(entities.spans(example.tags or ())):
            words = example.words[first : last + 1]
            needed = len(_encoded(tokenizer, words)["input_ids"])
            if needed > room:
                return (
                    f"its {kind} that begins with {words[0]!r} has {needed} word pieces, more than "
                    f"the {room} of --max-seq-length {self.max_seq_length}"
                )
        return None

    def windows(self, example: Sentence, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict]:
        """See `Task`. `_words` has the number of a word at its first piece, else None."""
        encoded = _encoded(tokenizer, example.words)
        pieces, owners = encoded["input_ids"], encoded.word_ids()
        room = self.max_seq_length - 2
        start = 0
        while True:
            end = min(start + room, len(pieces))
            chunk = owners[start:end]
            # the earlier window has the label of a word that began there
            firsts = [
                i == 0
                and (start == 0 or owners[start - 1] != word)
                or i > 0
                and chunk[i - 1] != word
                for i, word in enumerate(chunk)
            ]
            window: dict[str, Any] = {
                "input_ids": [tokenizer.cls_token_id, *pieces[start:end], tokenizer.sep_token_id],
                "token_type_ids": [0] * (end - start + 2),
                "_words": [
                    word if first else None for word, first in zip(chunk, firsts, strict=True)
                ],
                "_context": (start, len(pieces) - end),  # number of pieces left out on either side
            }
            if example.tags is not None and self.labels is not None:
                number = {tag: i for i, tag in enumerate(self.labels)}
                ids = [  # a type that the training data lacks counts in figures, but has no loss
                    _IGNORED if word is None else number.get(example.tags[word], _IGNORED)
                    for word in window["_words"]
                ]
                window["labels"] = [_IGNORED, *ids, _IGNORED]
            yield window
            if end == len(pieces):
                return
            start += max(1, room // 2)

    # Results

    def decode(
        self,
        example: Sentence,
        windows: Sequence[dict],
        outputs: Sequence[dict[str, np.ndarray]],
    ) -> list[str]:
        """BIO tags, one per word; a word without pieces gets O."""
        scores = self.word_scores(example, windows, outputs)
        return entities.best_path(scores, self.learnt_labels())

    def word_scores(
        self,
        example: Sentence,
        windows: Sequence[dict],
        outputs: Sequence[dict[str, np.ndarray]],
    ) -> np.ndarray:
        """fp32 (words, labels): each word's logits where it has the most context around it."""
        labels = self.learnt_labels()
        scores = np.full((len(example.words), len(labels)), -np.inf, np.float32)
        scores[:, 0] = 0.0
        context = np.full(len(example.words), -1.0)
        for window, output in zip(windows, outputs, strict=True):
            logits, last = output["logits"][1:-1], len(window["_words"]) - 1
            for i, word in enumerate(window["_words"]):
                if word is None:
                    continue
                left = i if window["_context"][0] else np.inf
                right = last - i if window["_context"][1] else np.inf
                if min(left, right) > context[word]:
                    context[word] = min(left, right)
                    scores[word] = logits[i]
        return scores

    def metrics(
        self, examples: Sequence[Sentence], predictions: Sequence[list[str]]
    ) -> dict[str, float]:
        """Precision, recall and F1 of entities in percent, over all types, as conlleval counts."""
        return entities.scores([e.tags for e in examples if e.tags is not None], predictions)

    def write(
        self, path: Path, examples: Sequence[Sentence], predictions: Iterable[list[str]]
    ) -> list[Path]:
        """Write a word, its gold tag if known, and its predicted tag on each line."""
        with whole_file(path) as file:
            for example, tags in zip(examples, predictions, strict=True):
                for i, (word, tag) in enumerate(zip(example.words, tags, strict=True)):
                    gold = [] if example.tags is None else [example.tags[i]]
                    file.write("\t".join([word, *gold, tag]) + "\n")
                file.write("\n")
        return [path]


def _encoded(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> BatchEncoding:
    return tokenizer(
        list(words),
        is_split_into_words=True,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning about a long sentence: it is cut into windows
    )
