"""Classifies texts and pairs of texts, or predicts numbers: on GLUE and on any table."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spanbert_fast.data.tokenizer import piece_ids
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks.base import Bad, Defaults, Task
from spanbert_fast.tasks.classify_metrics import (
    CLASS_FIGURES,
    NUMBER_FIGURES,
    class_figures,
    number_figures,
)
from spanbert_fast.tasks.classify_reading import GLUE, Text, read_texts
from spanbert_fast.tasks.writing import whole_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prediction(NamedTuple):
    """What `Classification.decode` returns.

    Attributes:
        value: a class, or a number.
        cut: number of word pieces that the model did not see.
    """

    value: str | float
    cut: int


class Classification(Task[Text, Prediction]):
    """Classification of one text or two, on GLUE and on any table of texts and labels.

        >>> from pathlib import Path
        >>> _ = Path("dev.csv").write_text("text,label\\nA good book,1\\n")
        >>> Classification().read("dev.csv").items[0].texts
        ('A good book',)

    Texts that are longer than a window lose word pieces at their ends; of two texts, the longer one
    loses them. The figure `truncated` counts such examples.

    The figures are percent. Classes: accuracy; f1, of two classes that of the second in the order
    of `labels` (1 after 0 or -1), of more the mean over them; and Matthews' mcc. Numbers: the
    correlations pearson and spearman. `score`, which chooses the best checkpoint, is the mean of
    `score_figures`: on GLUE those of its leaderboard (cola mcc, mrpc and qqp accuracy and f1, stsb
    pearson and spearman, else accuracy); elsewhere accuracy, or pearson and spearman.

    Args:
        glue_task: a key of `GLUE`, which gives the columns, the score, and whether labels are
            numbers (stsb). The paper trains cola for 4 epochs.
        text_columns, label_column: see `read_texts`.
        regression: labels are numbers.
        score: the one figure that is the score.
        max_seq_length, labels: see `Task`; with numbers there are no labels.

    Raises:
        UsageError: an option is out of range.
    """

    name = "classify"
    head = "sequence-classification"
    metric = "score"
    # Rate and batch are the release's for TACRED; the paper chooses them on GLUE's dev sets from
    # 5e-6, 1e-5, 2e-5, 3e-5, 5e-5 and 16, 32 (Joshi et al. 2020, appendix B).
    defaults = Defaults(learning_rate=2e-5, epochs=10, batch_size=32, max_seq_length=128)
    predictions_file = "predictions.tsv"

    def __init__(
        self,
        *,
        glue_task: str | None = None,
        text_columns: Sequence[str] | None = None,
        label_column: str | None = None,
        regression: bool = False,
        score: str | None = None,
        max_seq_length: int | None = None,
        labels: Sequence[str] | None = None,
    ):
        super().__init__(max_seq_length=max_seq_length, labels=labels)
        if glue_task not in (None, *GLUE):
            raise UsageError(f"--glue-task must be one of {', '.join(GLUE)}, got {glue_task}")
        if text_columns is not None and not 1 <= len(text_columns) <= 2:
            raise UsageError(f"--text-columns must be one or two names, got {len(text_columns)}")
        if self.max_seq_length < 5:  # [CLS] text [SEP] text [SEP]
            raise UsageError(f"--max-seq-length must be at least 5, got {self.max_seq_length}")
        self.glue_task, self.label_column = glue_task, label_column
        self.text_columns = None if text_columns is None else list(text_columns)
        if regression and glue_task not in (None, "stsb"):
            raise UsageError(f"--regression: the labels of {glue_task} are classes")
        self.regression = regression or glue_task == "stsb"
        figures = NUMBER_FIGURES if self.regression else CLASS_FIGURES
        if score not in (None, *figures):
            raise UsageError(f"--score must be one of {', '.join(figures)} here, got {score}")
        self.score = score

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """See `Task`."""
        add = parser.add_argument
        add("--glue-task", choices=tuple(GLUE), help="the data is this task's of GLUE")
        add(
            "--text-columns",
            nargs="+",
            metavar="NAME",
            help="one or two (default: text1 text2, sentence1 sentence2, text or sentence)",
        )
        add("--label-column", metavar="NAME", help="default: label")
        add("--regression", action="store_true", help="labels are numbers")
        add(
            "--score",
            choices=(*CLASS_FIGURES, *NUMBER_FIGURES),
            help="chooses the best epoch (default: GLUE's; accuracy; pearson and spearman)",
        )

    def state(self) -> dict[str, Any]:
        """See `Task`."""
        own = ("glue_task", "text_columns", "label_column", "regression", "score")
        return {**super().state(), **{name: getattr(self, name) for name in own}}

    @property
    def score_figures(self) -> tuple[str, ...]:
        """The figures whose mean is `score`."""
        if self.score is not None:
            return (self.score,)
        if self.glue_task is not None:
            return GLUE[self.glue_task].score
        return NUMBER_FIGURES if self.regression else ("accuracy",)

    # Data

    def parse(self, path: Path) -> Iterator[Text | Bad]:
        """See `Task` and `classify_reading.read_texts`."""
        return read_texts(
            path,
            glue_task=self.glue_task,
            text_columns=self.text_columns,
            label_column=self.label_column,
            regression=self.regression,
        )

    def learn(self, examples: Sequence[Text]) -> None:
        """Learn `labels`: all classes, whole numbers first and in their order.

        Raises:
            DataError: a label is missing, or there is only one class.
        """
        _refuse_unlabelled(examples)
        if self.regression:
            return
        self.labels = sorted({str(example.label) for example in examples}, key=_order)
        if len(self.labels) < 2:
            raise DataError(f"{examples[0].place}: every label is {self.labels[0]}")

    def unknown_label(self, example: Text) -> str | None:
        """See `Task`."""
        label = example.label
        if self.regression or label is None or label in self.learnt_labels():
            return None
        return f"the label {label} is not in the training data"

    def has_answers(self, examples: Sequence[Text]) -> bool:
        """See `Task`."""
        return all(example.label is not None for example in examples)

    def windows(self, example: Text, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict]:
        """See `Task`; there is one. `_cut` is the number of word pieces left out."""
        texts = piece_ids(tokenizer, example.texts)
        kept = _longest_first(texts, self.max_seq_length - len(texts) - 1)
        window: dict[str, Any] = {"input_ids": [tokenizer.cls_token_id], "token_type_ids": [0]}
        for kind, pieces in enumerate(kept):
            window["input_ids"] += [*pieces, tokenizer.sep_token_id]
            window["token_type_ids"] += [kind] * (len(pieces) + 1)
        window["_cut"] = sum(map(len, texts)) - sum(map(len, kept))
        if example.label is not None and self.regression:
            window["labels"] = float(example.label)
        elif self.labels is not None and example.label in self.labels:
            # an unknown label counts in the figures, but has no loss
            window["labels"] = self.labels.index(str(example.label))
        yield window

    # Results

    def decode(
        self, example: Text, windows: Sequence[dict], outputs: Sequence[dict[str, np.ndarray]]
    ) -> Prediction:
        """The likeliest class, or the number."""
        logits = outputs[0]["logits"]
        cut = windows[0]["_cut"]
        if self.regression:
            return Prediction(float(logits[0]), cut)
        return Prediction(self.learnt_labels()[int(logits.argmax())], cut)

    def metrics(
        self, examples: Sequence[Text], predictions: Sequence[Prediction]
    ) -> dict[str, float]:
        """See the class.

        Raises:
            DataError: the file has no label for an example.
        """
        _refuse_unlabelled(examples)
        gold = [example.label for example in examples if example.label is not None]
        predicted = [prediction.value for prediction in predictions]
        if self.regression:
            figures = number_figures([float(x) for x in gold], [float(x) for x in predicted])
        else:
            labels = self.learnt_labels()
            figures = class_figures([str(x) for x in gold], [str(x) for x in predicted], labels)
        score = sum(figures[name] for name in self.score_figures) / len(self.score_figures)
        truncated = sum(prediction.cut > 0 for prediction in predictions)
        return {"score": score, **figures, "truncated": truncated}

    def write(
        self, path: Path, examples: Sequence[Text], predictions: Iterable[Prediction]
    ) -> list[Path]:
        """Write a file for GLUE's server: a header, then an index, a tab and a prediction on each
        line; numbers have three decimals."""
        with whole_file(path) as file:
            file.write("index\tprediction\n")
            for example, (value, _) in zip(examples, predictions, strict=True):
                shown = f"{value:.3f}" if self.regression else value
                file.write(f"{example.id}\t{shown}\n")
        return [path]


def _longest_first(texts: Sequence[list[int]], room: int) -> list[list[int]]:
    """The beginnings of one text or two, with `room` pieces in all. The longer text is shortened;
    of two equally long ones, the first keeps one piece more."""
    if len(texts) == 1:
        return [texts[0][:room]]
    first, second = texts
    first = first[: max(room - len(second), room - room // 2)]
    return [first, second[: room - len(first)]]


def _order(label: str) -> tuple:
    is_number = re.fullmatch(r"[+-]?\d{1,1000}", label)  # int() refuses very long numbers
    return (0, int(label), label) if is_number else (1, 0, label)


def _refuse_unlabelled(examples: Sequence[Text]) -> None:
    unlabelled = next((example for example in examples if example.label is None), None)
    if unlabelled is not None:
        raise DataError(f"{unlabelled.place}: has no label (--label-column names its column)")
