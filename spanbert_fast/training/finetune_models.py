"""Models for fine-tuning: a checkpoint's encoder under the task's head, in either engine."""

from collections.abc import Sequence
from pathlib import Path

import transformers
from torch import nn
from transformers import BertConfig, PreTrainedTokenizerBase

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

_HEADS = {
    "coreference": SpanBertForCoreference,
    "question-answering": SpanBertForQuestionAnswering,
    "sequence-classification": SpanBertForSequenceClassification,
    "token-classification": SpanBertForTokenClassification,
}


def _label_fields(task: Task) -> dict:
    if isinstance(task, DocumentTask):
        return task.config_fields()
    if task.head == "question-answering":
        return {}
    if task.labels is None:  # a number is predicted
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "id2label": dict(enumerate(task.labels)),
        "label2id": {label: i for i, label in enumerate(task.labels)},
    }


def initial_model(
    directory: str,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    engine: str,
    dropout: float | None = None,
    new_tokens: Sequence[str] = (),
) -> nn.Module:
    """The checkpoint's encoder under a new head, with rows for the tokenizer's new tokens.

    Args:
        engine: "spanbert_fast", or "transformers" for its class with sdpa attention; both start
            from the same weights, the head's too.
        dropout: of hidden states, attention and head; None for the checkpoint's own.
        new_tokens: what the task has added to the tokenizer.

    Raises:
        UsageError: there is no config.json, its positions do not reach max_seq_length, or an id of
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
    model = _HEADS[task.head].from_pretrained(directory, config=config)
    if vocabulary_size(tokenizer) > config.vocab_size:
        model.resize_token_embeddings(vocabulary_size(tokenizer))
    return model if engine == "spanbert_fast" else _in_transformers(model)


def _in_transformers(model: nn.Module) -> nn.Module:
    """The same weights in transformers' own class."""
    fields = {**model.config.to_dict(), "model_type": "bert"}
    config = BertConfig.from_dict(fields, attn_implementation="sdpa")
    theirs = getattr(transformers, type(model).__name__.removeprefix("Span"))(config)
    theirs.load_state_dict(model.state_dict())
    return theirs


def finetuned_model(directory: Path, task: Task, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The model that a run has left, in our class, whichever engine trained it.

    Raises:
        UsageError: the directory lacks a part of the head, or the tokenizer does not fit.
        DataError: see `from_pretrained`; or its labels are not those of task.json.
    """
    model, report = _HEADS[task.head].from_pretrained(directory, output_loading_info=True)
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
