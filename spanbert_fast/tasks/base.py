"""`Task`: how a fine-tuning task reads data, feeds a model, and decodes, measures and writes."""

from __future__ import annotations

import abc
import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from spanbert_fast.errors import DataError

if TYPE_CHECKING:  # the command line asks a task for its options before torch is loaded
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Defaults:
    """A task's default hyper-parameters.

    Attributes:
        learning_rate: the highest rate. It rises over a tenth of the steps, then falls linearly
            to 0.
        epochs: passes over the training data.
        batch_size: windows (sequences) of one optimiser step.
        max_seq_length: word pieces of a window.
        head_learning_rate: learning rate of the head; None for the encoder's.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    max_seq_length: int
    head_learning_rate: float | None = None


@dataclasses.dataclass
class Example:
    """One example; tasks add their own fields.

    Attributes:
        id: its name in the data, or its number.
        place: "file:line" or "file, question id", for messages.
    """

    id: str
    place: str


ExampleT = TypeVar("ExampleT", bound=Example)
PredictionT = TypeVar("PredictionT")


class Bad(NamedTuple):
    """Data that cannot be used: where it is, and what is wrong. `Task.parse` yields it."""

    place: str
    reason: str


class Examples(NamedTuple):
    """The result of `Task.read`: the examples, and how many bad ones were left out."""

    items: list
    skipped: int


class Task(abc.ABC, Generic[ExampleT, PredictionT]):
    """One kind of fine-tuning, of its own class of examples and its own predictions.

    An example becomes one or several windows. Each window is one sequence of the model's input, and
    the outputs of all windows of an example are decoded together.

    Attributes:
        name: its name on the command line.
        head: "token-classification", "sequence-classification", "question-answering" or
            "coreference".
        metric: the figure that chooses the best checkpoint; higher is better.
        defaults: hyper-parameters, from the paper if it has them.
        predictions_file: the default name of a file of predictions.
    """

    name: ClassVar[str]
    head: ClassVar[str]
    metric: ClassVar[str]
    defaults: ClassVar[Defaults]
    predictions_file: ClassVar[str] = "predictions.txt"

    def __init__(self, *, max_seq_length: int | None = None, labels: Sequence[str] | None = None):
        default = self.defaults.max_seq_length
        self.max_seq_length = default if max_seq_length is None else max_seq_length
        self.labels: list[str] | None = None if labels is None else list(labels)

    # Options

    @classmethod
    @abc.abstractmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """Add the task's own options, each with the name of a keyword argument of __init__."""

    def state(self) -> dict[str, Any]:
        """The keyword arguments from which this task is made again; task.json beside a model has
        them."""
        return {"max_seq_length": self.max_seq_length, "labels": self.labels}

    # Data

    @abc.abstractmethod
    def parse(self, path: Path) -> Iterator[ExampleT | Bad]:
        """The examples of a file in order, with a `Bad` in place of each bad one.

        Raises:
            DataError: the file as a whole cannot be read.
        """

    def read(self, path: str | Path, *, skip_bad: bool = False) -> Examples:
        """All examples of a file.

        Raises:
            DataError: an example is bad and `skip_bad` is not set (the message has file and line),
                or there is no example.
        """
        return _sorted_out(self.parse(Path(path)), path, skip_bad)

    def misfit(self, example: ExampleT, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Why a window cannot hold what it must hold of an example; None if it can."""
        return None

    def fitting(
        self,
        examples: Sequence[ExampleT],
        tokenizer: PreTrainedTokenizerBase,
        path: str | Path,
        *,
        skip_bad: bool = False,
    ) -> Examples:
        """The examples of a file that fit into a window; see `misfit`.

        Args:
            tokenizer: knows the task's `special_tokens`.
            path: the file, for messages.

        Raises:
            DataError: as `read`.
        """
        found = _judged(examples, lambda example: self.misfit(example, tokenizer))
        return _sorted_out(found, path, skip_bad)

    def learn(self, examples: Sequence[ExampleT]) -> None:
        """Learn from the training data what the task needs to know, such as `labels`."""
        return None

    def learnt_labels(self) -> list[str]:
        """`labels`, which `learn` or the constructor has set.

        Raises:
            ValueError: neither has.
        """
        if self.labels is None:
            raise ValueError("labels must be known: call learn, or give them to the task")
        return self.labels

    def unknown_label(self, example: ExampleT) -> str | None:
        """A label of the example that the training data did not have; None if there is none."""
        return None

    def check_labels(
        self, examples: Sequence[ExampleT], path: str | Path = "", *, skip_bad: bool = False
    ) -> Examples:
        """The examples of a file whose labels the training data had.

        Args:
            path: the file, for messages.

        Raises:
            DataError: as `read`.
        """
        return _sorted_out(_judged(examples, self.unknown_label), path, skip_bad)

    def has_answers(self, examples: Sequence[ExampleT]) -> bool:
        """Whether the examples have gold answers, so that predictions can be measured."""
        return True

    def special_tokens(self, examples: Sequence[ExampleT]) -> list[str]:
        """Tokens that the tokenizer must have as one piece each."""
        return []

    @abc.abstractmethod
    def windows(self, example: ExampleT, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict]:
        """Yield the model's inputs for an example, one window after the other.

        Yields:
            Dicts of unpadded lists of equal length: input_ids and token_type_ids. If there are gold
            answers, also what the loss needs: labels (a list as long as input_ids, or one number
            for a sequence), or start_positions and end_positions. Keys that begin with "_" are for
            `decode`, and no model sees them.
        """

    # Results

    @abc.abstractmethod
    def decode(
        self, example: ExampleT, windows: Sequence[dict], outputs: Sequence[dict[str, np.ndarray]]
    ) -> PredictionT:
        """The prediction of an example.

        Args:
            windows: the windows of the example.
            outputs: for each window, in fp32 and without padding: logits (length, num_labels) or
                (num_labels,); or start_logits and end_logits, (length,).
        """

    def measured(self, prediction: PredictionT) -> PredictionT:
        """The part of a prediction that `metrics` needs; the rest may be dropped."""
        return prediction

    @abc.abstractmethod
    def metrics(
        self, examples: Sequence[ExampleT], predictions: Sequence[PredictionT]
    ) -> dict[str, float]:
        """The task's figures, with `metric` among them; in [0, 1] or percent, as is usual in its
        field."""

    @abc.abstractmethod
    def write(
        self, path: Path, examples: Sequence[ExampleT], predictions: Iterable[PredictionT]
    ) -> list[Path]:
        """Write predictions one by one, in the task's official format; returns the files."""


class DocumentTask(Task[ExampleT, PredictionT]):
    """A task whose model reads whole examples: windows serve training only."""

    @abc.abstractmethod
    def config_fields(self) -> dict[str, Any]:
        """Fields of the model's configuration."""

    @abc.abstractmethod
    def collator(self) -> Callable[[Sequence[dict]], dict]:
        """Makes one packed batch out of windows."""

    @abc.abstractmethod
    def predictions(
        self, model, examples: Sequence[ExampleT], tokenizer: PreTrainedTokenizerBase, **options
    ) -> Iterator[PredictionT]:
        """One prediction per example, in order; the options are those of `predict.predictions`."""

    def decode(self, example: ExampleT, windows: Sequence[dict], outputs: Sequence[dict]):
        """Not used by these tasks; `predictions` replaces it."""
        raise TypeError(f"the task {self.name} predicts whole examples, not windows")


def _judged(
    examples: Iterable[ExampleT], reason_of: Callable[[ExampleT], str | None]
) -> Iterator[ExampleT | Bad]:
    for example in examples:
        reason = reason_of(example)
        yield example if reason is None else Bad(example.place, reason)


def _sorted_out(found: Iterable[Example | Bad], path: str | Path, skip_bad: bool) -> Examples:
    """The good examples and the number of bad ones. DataError at a bad one, or if none is good."""
    items, skipped = [], 0
    for item in found:
        if not isinstance(item, Bad):
            items.append(item)
        elif skip_bad:
            skipped += 1
        else:
            raise DataError(f"{item.place}: {item.reason}")
    if not items:
        bad = f" ({skipped} were bad)" if skipped else ""
        raise DataError(f"{path}: there is no example in it{bad}")
    return Examples(items, skipped)
