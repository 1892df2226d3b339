"""Extractive question answering: finds the part of a text that answers a question, or none."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spanbert_fast.data.tokenizer import piece_ids
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks.base import Bad, Defaults, Task
from spanbert_fast.tasks.qa_decoding import Prediction, best_answers
from spanbert_fast.tasks.qa_metrics import squad_figures
from spanbert_fast.tasks.qa_offsets import answer_pieces, take_accents
from spanbert_fast.tasks.qa_reading import Question, read_questions
from spanbert_fast.tasks.writing import JsonObject, whole_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SPECIAL = 3  # [CLS] question [SEP] context [SEP]
_OPTIONS = {
    "doc_stride": "pieces between the beginnings of two windows (default 128)",
    "max_query_length": "pieces of a question (default 64)",
    "n_best_size": "answers to keep of a question (default 20)",
    "max_answer_length": "pieces of an answer (default 30)",
}


class QuestionAnswering(Task[Question, Prediction]):
    """Extractive question answering on SQuAD 1.1, SQuAD 2.0 and MRQA.

        >>> import json; from pathlib import Path
        >>> item = {"question": "Who?", "context": "Ann reads."}
        >>> item["answers"] = [{"text": "Ann", "answer_start": 0}]
        >>> _ = Path("dev.jsonl").write_text(json.dumps(item))
        >>> QuestionAnswering().read("dev.jsonl").items[0].span
        (0, 3)

    A context that is longer than a window is read in windows whose beginnings are `doc_stride`
    pieces apart; `qa_decoding.best_answers` has the rule that merges them. Training uses the first
    gold answer. A window without the whole answer, and every window of a question without an
    answer, points to [CLS].

    The figures are in percent. `f1` is that of SQuAD 1.1, and of SQuAD 2.0 with a threshold on
    `Prediction.null_odds`. The threshold is `null_threshold` if given; else it is the best one on
    the questions that `metrics` sees first, which are the dev set, and is found again whenever the
    dev set is measured again (its `f1` is SQuAD's `best_f1`). Other questions never move it.

    Args:
        doc_stride: pieces from the beginning of one window of a context to that of the next.
        max_query_length: the most pieces of a question; longer ones are cut.
        n_best_size: number of answers in `Prediction.nbest` and in nbest_predictions.json.
        max_answer_length: the most pieces of an answer.
        null_threshold: leave questions with higher null odds unanswered; None: answer all.
        max_seq_length, labels: see `Task`; this task has no labels.

    Raises:
        UsageError: an option is below 1, or a window has no room for a context.
    """

    name = "qa"
    head = "question-answering"
    metric = "f1"
    # The release's for SQuAD; the paper chooses the rate from 5e-6, 1e-5, 2e-5, 3e-5, 5e-5
    # (Joshi et al. 2020, appendix B).
    defaults = Defaults(learning_rate=2e-5, epochs=4, batch_size=32, max_seq_length=512)
    predictions_file = "predictions.json"

    def __init__(
        self,
        *,
        doc_stride: int = 128,
        max_query_length: int = 64,
        n_best_size: int = 20,
        max_answer_length: int = 30,
        null_threshold: float | None = None,
        max_seq_length: int | None = None,
        labels: Sequence[str] | None = None,
    ):
        super().__init__(max_seq_length=max_seq_length, labels=labels)
        self.doc_stride, self.max_query_length = doc_stride, max_query_length
        self.n_best_size, self.max_answer_length = n_best_size, max_answer_length
        for name in _OPTIONS:
            if getattr(self, name) < 1:
                raise UsageError(f"{_flag(name)} must be at least 1, got {getattr(self, name)}")
        if self.max_seq_length <= max_query_length + _SPECIAL:
            raise UsageError(
                f"--max-seq-length must be above --max-query-length + {_SPECIAL} = "
                f"{max_query_length + _SPECIAL}, got {self.max_seq_length}"
            )
        self.null_threshold = null_threshold
        self._threshold_is_given = null_threshold is not None
        self._dev_ids: list[str] | None = None
        self._tokenized: tuple = (None, None, None)

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """See `Task`."""
        for name, what in _OPTIONS.items():
            parser.add_argument(_flag(name), type=int, metavar="N", help=what)

    def state(self) -> dict[str, Any]:
        """See `Task`."""
        own = {name: getattr(self, name) for name in _OPTIONS}
        return {**super().state(), **own, "null_threshold": self.null_threshold}

    # Data

    def parse(self, path: Path) -> Iterator[Question | Bad]:
        """See `Task` and `qa_reading.read_questions`."""
        return read_questions(path)

    def learn(self, examples: Sequence[Question]) -> None:
        """Check that every question has answers; there is nothing to learn.

        Raises:
            DataError: a question has no answers.
        """
        _refuse_unknown_answers(examples)

    def has_answers(self, examples: Sequence[Question]) -> bool:
        """See `Task`."""
        return all(example.answers is not None for example in examples)

    def windows(self, example: Question, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict]:
        """See `Task`; `_offsets`, `_first` and `_context_start` are for `qa_decoding`."""
        question = piece_ids(tokenizer, [example.question])[0][: self.max_query_length]
        pieces, offsets = self._context_pieces(example.context, tokenizer)
        head = [tokenizer.cls_token_id, *question, tokenizer.sep_token_id]
        room = self.max_seq_length - len(question) - _SPECIAL
        answer = None if example.span is None else answer_pieces(offsets, *example.span)
        for first in count(step=min(self.doc_stride, room)):
            end = min(first + room, len(pieces))
            own = pieces[first:end]
            window = {
                "input_ids": [*head, *own, tokenizer.sep_token_id],
                "token_type_ids": [0] * len(head) + [1] * (len(own) + 1),
                "_offsets": offsets[first:end],
                "_first": first,
                "_context_start": len(head),
            }
            if example.answers is not None:
                window["start_positions"] = window["end_positions"] = 0
                if answer is not None and first <= answer[0] <= answer[1] < end:
                    window["start_positions"] = answer[0] - first + len(head)
                    window["end_positions"] = answer[1] - first + len(head)
            yield window
            if end == len(pieces):
                return

    def _context_pieces(
        self, context: str, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[int], np.ndarray]:
        """(ids, offsets (pieces, 2)) of a context, cached for its next question."""
        if self._tokenized[0] is not context or self._tokenized[1] is not tokenizer:
            encoded = tokenizer(
                context,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                return_offsets_mapping=True,
                verbose=False,  # no warning about a long text: it is cut into windows
            )
            offsets = np.asarray(encoded["offset_mapping"], np.int32).reshape(-1, 2)
            take_accents(offsets, context)
            self._tokenized = (context, tokenizer, (encoded["input_ids"], offsets))
        return self._tokenized[2]

    # Results

    def decode(
        self,
        example: Question,
        windows: Sequence[dict],
        outputs: Sequence[dict[str, np.ndarray]],
    ) -> Prediction:
        """See `Task` and `qa_decoding.best_answers`."""
        return best_answers(
            example.context,
            [window["_offsets"] for window in windows],
            [window["_first"] for window in windows],
            [window["_context_start"] for window in windows],
            [(output["start_logits"], output["end_logits"]) for output in outputs],
            n_best_size=self.n_best_size,
            max_answer_length=self.max_answer_length,
        )

    def metrics(
        self, examples: Sequence[Question], predictions: Sequence[Prediction]
    ) -> dict[str, float]:
        """See the class and `qa_metrics.squad_figures`.

        Raises:
            DataError: the file does not give the answers of a question.
        """
        _refuse_unknown_answers(examples)
        ids = [example.id for example in examples]
        if self._dev_ids is None:
            self._dev_ids = ids
        choose = not self._threshold_is_given and ids == self._dev_ids
        figures = squad_figures(
            [prediction.text for prediction in predictions],
            [prediction.null_odds for prediction in predictions],
            [example.answers or [] for example in examples],
            self.null_threshold,
            choose=choose,
        )
        if choose:
            self.null_threshold = figures.get("best_f1_thresh")
        return figures

    def final_text(self, prediction: Prediction) -> str:
        """The answer, or "" if the null odds are above the threshold."""
        threshold = self.null_threshold
        unanswered = threshold is not None and prediction.null_odds > threshold
        return "" if unanswered else prediction.text

    def measured(self, prediction: Prediction) -> Prediction:
        """See `Task`: the prediction without its n-best list."""
        return dataclasses.replace(prediction, nbest=[])

    def write(
        self, path: Path, examples: Sequence[Question], predictions: Iterable[Prediction]
    ) -> list[Path]:
        """Write SQuAD's files: predictions (id: text), and beside them nbest_predictions (id: list
        of text, probability, start_logit, end_logit) and, where a question may have no answer,
        null_odds (id: number)."""
        with_null = self.null_threshold is not None or any(e.answers == [] for e in examples)
        files: dict[Path, Callable[[Prediction], Any]] = {
            path: self.final_text,
            path.with_name(f"nbest_{path.name}"): lambda prediction: prediction.rows(with_null),
        }
        if with_null:
            name = path.name.replace("predictions", "null_odds")
            odds = path.with_name(name if name != path.name else f"null_odds_{name}")
            files[odds] = lambda prediction: prediction.null_odds
        with contextlib.ExitStack() as stack:
            objects = [(JsonObject(stack.enter_context(whole_file(f))), files[f]) for f in files]
            for example, prediction in zip(examples, predictions, strict=True):
                for written, value_of in objects:
                    written.add(example.id, value_of(prediction))
            for written, _ in objects:
                written.close()
        return list(files)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse_unknown_answers(examples: Sequence[Question]) -> None:
    unknown = next((example for example in examples if example.answers is None), None)
    if unknown is not None:
        raise DataError(f"{unknown.place}: the file does not say what its answers are")


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    context: str,
    *,
    batch_size: int = 16,
    **options: Any,
) -> Prediction:
    """Answer one question, in place of the pipeline that transformers 5 removed.

        >>> from transformers import AutoTokenizer, BertForQuestionAnswering
        >>> tokenizer = AutoTokenizer.from_pretrained("runs/first/model")
        >>> model = BertForQuestionAnswering.from_pretrained("runs/first/model")
        >>> found = answer(model, tokenizer, "Who?", "The captain answers.", max_query_length=8)
        >>> found.text in "The captain answers."
        True

    Args:
        model: any BERT with a question-answering head, ours or transformers' own.
        tokenizer: its fast tokenizer.
        context: a text of any length.
        batch_size: number of windows of full length in one forward.
        options: arguments of `QuestionAnswering`; `max_seq_length` is at most what the model reads.

    Raises:
        ValueError: the context is blank, or an option is out of range.
    """
    from spanbert_fast.tasks.predict import predict  # this import loads torch

    if not context.strip():
        raise ValueError(f"context must not be blank, got {context!r}")
    longest = min(QuestionAnswering.defaults.max_seq_length, model.config.max_position_embeddings)
    task = QuestionAnswering(**{"max_seq_length": longest, **options})
    example = Question("0", "the question", question, context)
    tokens = batch_size * task.max_seq_length
    return predict(model, task, [example], tokenizer, tokens_per_batch=tokens)[0]
