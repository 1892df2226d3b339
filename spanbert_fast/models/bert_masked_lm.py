"""transformers' masked-LM heads over `nn.bert`: rows without a label are not computed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.bert import modeling_bert as stock
from transformers.utils.generic import can_return_tuple

from spanbert_fast.nn.bert import BertModel
from spanbert_fast.nn.bert_parts import in_place_of, make_fast, warn_once
from spanbert_fast.nn.linear import is_plain
from spanbert_fast.nn.packing import Packing
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.values import IGNORED_TARGET


def stock_where_padding_has_labels(
    labels: torch.Tensor | None, attention_mask: torch.Tensor | None, kwargs: dict
) -> dict:
    """kwargs, with `spanbert_fast=False` where a loss reads padding, which is not computed."""
    if labels is None or attention_mask is None or labels.shape != attention_mask.shape:
        return kwargs
    if not ((labels != IGNORED_TARGET) & (attention_mask == 0)).any():
        return kwargs
    warn_once(
        "transformers' own code runs in place of spanbert_fast's: labels are given where "
        f"attention_mask is 0; pad them with {IGNORED_TARGET} to compute no padding"
    )
    return {**kwargs, "spanbert_fast": False}


def only_rows(model: nn.Module, rows_of: Callable[[Packing], torch.Tensor]) -> dict:
    """The argument that has the encoder of `model` compute these rows of its last layer alone;
    nothing where the encoder is a user's own subclass."""
    return {"rows_of": rows_of} if isinstance(model.bert, BertModel) else {}


class _LabelledRowsOnly(nn.Module):
    """The masked-LM heads' loss from the labelled rows alone.

    While training with labels, the decoder computes no other row, and the output has no logits:
    the one difference from transformers. `full_logits=True`, for a call or as an attribute, brings
    them back; without labels, or in evaluation mode, they are always there.
    """

    full_logits = False
    cls: Any  # of the stock class

    def _needs_logits(self, full_logits: bool | None, kwargs: dict) -> bool:
        head = self.cls.predictions
        return (
            not self.training
            or (self.full_logits if full_logits is None else full_logits)
            or kwargs.get("spanbert_fast") is False
            or not is_plain(head, stock.BertLMPredictionHead)
            or not is_plain(head.decoder, nn.Linear)
            or head.decoder.bias is None
            or bool(self.cls._forward_hooks or self.cls._forward_pre_hooks)
        )

    def _only_labelled(self, labels: torch.Tensor) -> dict:
        def rows_of(packing: Packing) -> torch.Tensor:
            return torch.nonzero(packing.pack(labels) != IGNORED_TARGET).squeeze(1)

        return only_rows(self, rows_of)

    def _masked_lm_loss(self, hidden_states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """0-dim, the mean over labelled positions; NaN where there is none, as in transformers."""
        head, labels = self.cls.predictions, labels.view(-1)
        rows = torch.nonzero(labels != IGNORED_TARGET).squeeze(1)
        return linear_cross_entropy(
            head.transform(hidden_states.flatten(0, 1)[rows]),
            head.decoder.weight,
            head.decoder.bias,
            labels[rows],
        ).losses.mean()


@in_place_of(stock.BertForMaskedLM)
class BertForMaskedLM(_LabelledRowsOnly, stock.BertForMaskedLM):
    """transformers.BertForMaskedLM that decodes labelled rows alone while training.

    Its output then has no logits; `full_logits=True` brings them back (see `accelerate`).
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
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        full_logits: bool | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """See transformers.BertForMaskedLM.forward; full_logits: see the class."""
        kwargs = stock_where_padding_has_labels(labels, attention_mask, kwargs)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            **kwargs,
        }
        if labels is None or self._needs_logits(full_logits, kwargs):
            return super().forward(labels=labels, **inputs)
        outputs = self.bert(**inputs, return_dict=True, **self._only_labelled(labels))
        return MaskedLMOutput(
            loss=self._masked_lm_loss(outputs.last_hidden_state, labels),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@in_place_of(stock.BertForPreTraining)
class BertForPreTraining(_LabelledRowsOnly, stock.BertForPreTraining):
    """transformers.BertForPreTraining that decodes labelled rows alone while training.

    Its output then has no prediction_logits; `full_logits=True` brings them back.
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
        labels: torch.Tensor | None = None,
        next_sentence_label: torch.Tensor | None = None,
        full_logits: bool | None = None,
        **kwargs,
    ) -> stock.BertForPreTrainingOutput:
        """See transformers.BertForPreTraining.forward; full_logits: see the class."""
        both = labels is not None and next_sentence_label is not None  # else there is no loss
        kwargs = stock_where_padding_has_labels(labels if both else None, attention_mask, kwargs)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            **kwargs,
        }
        if labels is None or next_sentence_label is None or self._needs_logits(full_logits, kwargs):
            return super().forward(labels=labels, next_sentence_label=next_sentence_label, **inputs)
        outputs = self.bert(**inputs, return_dict=True)
        scores = self.cls.seq_relationship(outputs.pooler_output)
        loss = self._masked_lm_loss(outputs.last_hidden_state, labels)
        return stock.BertForPreTrainingOutput(
            loss=loss + F.cross_entropy(scores.view(-1, 2), next_sentence_label.view(-1)),
            seq_relationship_logits=scores,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
