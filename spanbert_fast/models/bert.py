"""transformers' BERT heads over `nn.bert`: what they do not read is not computed."""

import functools
from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import QuestionAnsweringModelOutput, TokenClassifierOutput
from transformers.models.bert import modeling_bert as stock
from transformers.utils.generic import can_return_tuple

from spanbert_fast.models.bert_masked_lm import (
    BertForMaskedLM,
    BertForPreTraining,
    only_rows,
    stock_where_padding_has_labels,
)
from spanbert_fast.nn.bert import BertModel
from spanbert_fast.nn.bert_parts import FAST, in_place_of, make_fast
from spanbert_fast.nn.packing import Packing

__all__ = [
    "FAST",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "make_fast",
]


def _first_rows_only(forward: Callable) -> Callable:
    """`forward` of a head that reads the pooled output alone: of the last layer each sequence's
    first token is computed, and no other. The signature stays, which the Trainer looks at."""

    @functools.wraps(forward)
    def first_rows_only(self, *args, **kwargs):
        return forward(self, *args, **kwargs, **only_rows(self, Packing.first_rows))

    return first_rows_only


@in_place_of(stock.BertForSequenceClassification)
class BertForSequenceClassification(stock.BertForSequenceClassification):
    """transformers.BertForSequenceClassification."""

    def __init__(self, config):
        super().__init__(config)
        make_fast(self)

    forward = _first_rows_only(stock.BertForSequenceClassification.forward)


@in_place_of(stock.BertForMultipleChoice)
class BertForMultipleChoice(stock.BertForMultipleChoice):
    """transformers.BertForMultipleChoice."""

    def __init__(self, config):
        super().__init__(config)
        make_fast(self)

    forward = _first_rows_only(stock.BertForMultipleChoice.forward)


@in_place_of(stock.BertForNextSentencePrediction)
class BertForNextSentencePrediction(stock.BertForNextSentencePrediction):
    """transformers.BertForNextSentencePrediction."""

    def __init__(self, config):
        super().__init__(config)
        make_fast(self)

    forward = _first_rows_only(stock.BertForNextSentencePrediction.forward)


@in_place_of(stock.BertForTokenClassification)
class BertForTokenClassification(stock.BertForTokenClassification):
    """transformers.BertForTokenClassification; labels on padding bring its own code back."""

    def __init__(self, config):
        super().__init__(config)
        make_fast(self)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """See transformers.BertForTokenClassification.forward."""
        return super().forward(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            labels,
            **stock_where_padding_has_labels(labels, attention_mask, kwargs),
        )


@in_place_of(stock.BertForQuestionAnswering)
class BertForQuestionAnswering(stock.BertForQuestionAnswering):
    """transformers.BertForQuestionAnswering in which padding is never the answer.

    One difference, on purpose, as in SpanBertForQuestionAnswering: where attention_mask is 0 the
    logits are the lowest finite number and take no part in the loss, where transformers scores
    padding like text. `spanbert_fast=False` runs transformers' code, padding included.
    """

    def __init__(self, config):
        super().__init__(config)
        make_fast(self)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """See transformers.BertForQuestionAnswering.forward. A position that is padding, or
        beyond the sequence, takes no part in the loss."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        stock_code = kwargs.get("spanbert_fast") is False
        if stock_code or attention_mask is None or attention_mask.dim() != 2:
            return super().forward(*inputs, start_positions, end_positions, **kwargs)
        outputs = super().forward(*inputs, **kwargs, return_dict=True)
        padding = attention_mask == 0
        for name in ("start_logits", "end_logits"):
            logits = outputs[name]
            outputs[name] = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
        if start_positions is not None and end_positions is not None:
            start_loss = _position_loss(outputs.start_logits, start_positions, padding)
            end_loss = _position_loss(outputs.end_logits, end_positions, padding)
            # ModelOutput keeps the order in which its items were set, and `loss` is the first
            return QuestionAnsweringModelOutput(**{**outputs, "loss": (start_loss + end_loss) / 2})
        return outputs


def _position_loss(
    logits: torch.Tensor, positions: torch.Tensor, padding: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of (batch, seqlen) logits at (batch,) positions that are tokens."""
    ignored = logits.shape[1]
    positions = positions.view(-1).clamp(0, ignored)
    is_padding = F.pad(padding, (0, 1)).gather(1, positions[:, None]).squeeze(1)
    positions = positions.masked_fill(is_padding, ignored)
    return F.cross_entropy(logits, positions, ignore_index=ignored)
