"""Heads over accelerated models: what they do not read is not computed."""

import torch
from torch import nn
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from spanbert_fast.accelerated.encoder import FastModel
from spanbert_fast.accelerated.packed import Fast, FirstTokens, Wanted, warn_once
from spanbert_fast.nn.position_loss import position_loss
from spanbert_fast.values import IGNORED_TARGET


def only(model: nn.Module, wanted: Wanted) -> dict:
    """The argument that has the encoder of `model` compute these rows of its last layer alone;
    nothing where the encoder is a user's own subclass."""
    return {"wanted": wanted} if isinstance(model.base_model, FastModel) else {}


def stock_where_padding_has_labels(given: dict) -> bool:
    """Whether a loss reads padding, which is not computed; said once. A compiled model, which
    cannot ask, raises a RuntimeError then."""
    labels, attention_mask = given.get("labels"), given.get("attention_mask")
    if labels is None or attention_mask is None or labels.shape != attention_mask.shape:
        return False
    on_padding = ((labels != IGNORED_TARGET) & (attention_mask == 0)).any()
    if torch.compiler.is_compiling():
        torch._assert_async(
            ~on_padding, f"a compiled model's labels must be {IGNORED_TARGET} at padding"
        )
        return False
    if not on_padding:
        return False
    warn_once(
        "transformers' own code runs in place of spanbert_fast's: labels are given where "
        f"attention_mask is 0; pad them with {IGNORED_TARGET} to compute no padding"
    )
    return True


class FirstTokenHead(Fast):
    """A head that reads each sequence's first token, or what is pooled of it: of the last layer
    no other token is computed."""

    def forward(self, *others, **named) -> ModelOutput | tuple:
        return super().forward(*others, **named, **only(self, FirstTokens()))


class SummaryHead(FirstTokenHead):
    """ELECTRA's multiple choice, whose summary may be of another token than the first."""

    def forward(self, *others, **named) -> ModelOutput | tuple:
        if self.config.summary_type == "first":
            return super().forward(*others, **named)
        return self.stock.forward(self, *others, **named)


class TokenHead(Fast):
    """A head with a label for each token; labels on padding bring transformers' own code back."""

    def forward(self, *others, **named) -> ModelOutput | tuple:
        if stock_where_padding_has_labels(self.arguments(others, named)):
            named["spanbert_fast"] = False
        return super().forward(*others, **named)


class QuestionAnsweringHead(Fast):
    """Question answering in which padding is never the answer.

    One difference, on purpose, as in SpanBertForQuestionAnswering: where attention_mask is 0 the
    logits are the lowest finite number and take no part in the loss, where transformers scores
    padding like text. `spanbert_fast=False` runs transformers' code, padding included.
    """

    @can_return_tuple
    def forward(self, *others, **named) -> ModelOutput:
        """A position that is padding, or beyond the sequence, takes no part in the loss."""
        given = self.arguments(others, named)
        attention_mask = given.get("attention_mask")
        wants_stock = given.get("spanbert_fast") is False
        if attention_mask is None or attention_mask.dim() != 2 or wants_stock:
            return super().forward(*others, **named)
        starts, ends = (given.pop(f"{name}_positions", None) for name in ("start", "end"))
        outputs = super().forward(**given, return_dict=True)
        is_token = attention_mask != 0
        for name in ("start_logits", "end_logits"):
            logits = outputs[name]
            outputs[name] = logits.masked_fill(~is_token, torch.finfo(logits.dtype).min)
        if starts is not None and ends is not None:
            start_loss = position_loss(outputs.start_logits, starts, is_token)
            end_loss = position_loss(outputs.end_logits, ends, is_token)
            # ModelOutput keeps the order in which its items were set, and `loss` is the first
            return type(outputs)(**{**outputs, "loss": (start_loss + end_loss) / 2})
        return outputs
