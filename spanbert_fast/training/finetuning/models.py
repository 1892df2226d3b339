"""Models for fine-tuning: a checkpoint's encoder with the task's head, for either engine."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import BertConfig, PreTrainedModel, PreTrainedTokenizerBase

from spanbert_fast.data.tokenizer import check_fits, vocabulary_size
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.models import (
    SpanBertConfig,
    SpanBertForCoreference,
    SpanBertForQuestionAnswering,
    SpanBertForSequenceClassification,
    SpanBertForTokenClassification,
)
from spanbert_fast.tasks.base import DocumentTask, Task

logger = logging.getLogger("spanbert_fast")

_KINDS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForCoreference",
)
_HEADS = {
    "coreference": SpanBertForCoreference,
    "question-answering": SpanBertForQuestionAnswering,
    "sequence-classification": SpanBertForSequenceClassification,
    "token-classification": SpanBertForTokenClassification,
}


def _label_fields(task: Task) -> dict:
    """The fields of a configuration that depend on the head. All of them are set, so that nothing
    remains of a task that the checkpoint was fine-tuned on before."""
    if isinstance(task, DocumentTask):
        return task.config_fields()
    kind: str | None = None
    labels = ["LABEL_0", "LABEL_1"]
    if task.head != "question-answering":
        kind, labels = "regression", ["LABEL_0"]
        if task.labels is not None:
            is_of_texts = task.head == "sequence-classification"
            kind, labels = "single_label_classification" if is_of_texts else None, task.labels
    return {
        "problem_type": kind,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def _goes_on(stored: BertConfig, task: Task) -> bool:
    """Whether a checkpoint's head fits this task: the same kind, the same labels in order."""
    kind = _HEADS[task.head].__name__.removeprefix("SpanBert")
    if not any(name.endswith(kind) for name in stored.architectures or ()):
        return False
    fields = _label_fields(task)
    if isinstance(task, DocumentTask) or task.head == "question-answering":
        return True
    if task.labels is None:
        return stored.problem_type == "regression"
    return stored.id2label == fields["id2label"]


def _needs_new_head(directory: Path, task: Task) -> bool:
    """Whether the checkpoint has no head, or one of another task; logs the decision."""
    stored = SpanBertConfig.from_pretrained(directory)
    tasks = [n for n in stored.architectures or () if n.endswith((*_KINDS,))]
    if _goes_on(stored, task):
        logger.info("%s: its head is of the same labels, and is gone on with", directory)
        return False
    if tasks:
        logger.info("%s: its head is of another task (%s): a new one", directory, tasks[0])
    return True


def initial_model(
    directory: str | Path,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    engine: str,
    dropout: float | None = None,
    new_tokens: Sequence[str] = (),
) -> PreTrainedModel:
    """The checkpoint's encoder with a new head, and with rows for new tokens of the tokenizer.

    Args:
        engine: "spanbert_fast", or "transformers" for its class with sdpa attention. Both start
            from the same weights, the head's included.
        dropout: of hidden states, attention and head; None for the checkpoint's.
        new_tokens: tokens that the task has added to the tokenizer.

    Raises:
        UsageError: there is no config.json, it has fewer positions than max_seq_length, or an id of
            the tokenizer is beyond its vocabulary.
        DataError: see `from_pretrained`.
    """
    if not (Path(directory) / "config.json").is_file():
        raise UsageError(f"{directory}: no config.json there")
    if engine != "spanbert_fast" and isinstance(task, DocumentTask):
        raise UsageError(f"--engine must be spanbert_fast for {task.name}, got {engine}")
    fields = _label_fields(task)
    if dropout is not None:
        names = ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"]
        names += ["coref_dropout"] if isinstance(task, DocumentTask) else []
        fields |= dict.fromkeys(names, dropout)
    config = SpanBertConfig.from_pretrained(directory, **fields)
    if task.max_seq_length > config.max_position_embeddings:
        raise UsageError(
            f"--max-seq-length must be at most the checkpoint's {config.max_position_embeddings} "
            f"positions, got {task.max_seq_length}"
        )
    check_fits(tokenizer, config.vocab_size, directory, new_tokens)
    model = _HEADS[task.head].from_pretrained(
        directory,
        config=config,
        dtype=torch.float32,  # fp32, however it is stored: half precision loses small steps
        new_head=_needs_new_head(Path(directory), task),
    )
    if vocabulary_size(tokenizer) > config.vocab_size:
        model.resize_token_embeddings(vocabulary_size(tokenizer))
    return model if engine == "spanbert_fast" else _in_transformers(model)


def _in_transformers(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in transformers' own class."""
    fields = {**model.config.to_dict(), "model_type": "bert"}
    config = BertConfig.from_dict(fields, attn_implementation="sdpa")
    theirs = getattr(transformers, type(model).__name__.removeprefix("Span"))(config)
    theirs.load_state_dict(model.state_dict())
    return theirs


def finetuned_model(directory: Path, task: Task, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The model of a finished run, in our class, whichever engine trained it.

    Raises:
        UsageError: the directory lacks a part of the head, or the tokenizer does not fit.
        DataError: the labels are not those of task.json; or see `from_pretrained`.
    """
    model, report = _HEADS[task.head].from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise UsageError(
            f"{directory}: has no {lacking[0]}; is it a model of the task {task.name}?"
        )
    check_fits(tokenizer, model.config.vocab_size, str(directory))
    labels = [model.config.id2label.get(i) for i in range(model.config.num_labels)]
    if task.labels is not None and labels != task.labels:
        raise DataError(
            f"{directory}: config.json has the labels {_short(labels)}, task.json has "
            f"{_short(task.labels)}"
        )
    return model


def _short(labels: list) -> str:
    return ", ".join(map(str, labels[:5])) + (f", ... ({len(labels)})" if labels[5:] else "")
