"""Masked-LM heads over accelerated models: rows without a label are not computed."""

import dataclasses
import sys
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from spanbert_fast.accelerated.heads import only, stock_where_padding_has_labels
from spanbert_fast.accelerated.packed import Fast, Labelled, needs_batch_dimension
from spanbert_fast.nn.linear import is_plain
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.ops.padding import rows_where
from spanbert_fast.values import IGNORED_TARGET


@dataclasses.dataclass(frozen=True)
class LMHead:
    """How a model's masked-LM head is made.

    Attributes:
        steps: what is applied to a hidden state before the decoder: modules of the model by name,
            and functions.
        decoder: the name of its linear layer.
        around: names of the modules that stand around these, and are not called.
    """

    steps: tuple[str | Callable[[torch.Tensor], torch.Tensor], ...]
    decoder: str
    around: tuple[str, ...] = ()


class MaskedLMHead(Fast):
    """A masked LM that decodes labelled rows alone while training.

    Its output then has no logits: the one difference from transformers. `full_logits=True`, for a
    call or as an attribute, brings them back; without labels, or in evaluation mode, they are
    always there.
    """

    full_logits = False

    @can_return_tuple
    def forward(self, *others, full_logits: bool | None = None, **named) -> ModelOutput:
        given = self.arguments(others, named)
        if stock_where_padding_has_labels(given):
            given["spanbert_fast"] = named["spanbert_fast"] = False
        labels = given.pop("labels", None)
        if labels is None or self.needs_logits(full_logits, given):
            return super().forward(*others, **named)
        outputs = self.base_model(**given, return_dict=True, **only(self, Labelled(labels)))
        return MaskedLMOutput(
            loss=self.labelled_rows_loss(outputs.last_hidden_state, labels),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _lm_head(self) -> LMHead:
        assert self.row.lm_head is not None, f"{self.row.title} must have an lm_head, got None"
        return self.row.lm_head

    def needs_logits(self, full_logits: bool | None, given: dict) -> bool:
        """Whether transformers' head has to run."""
        head = self._lm_head()
        decoder = self.get_submodule(head.decoder)
        around = [self.get_submodule(name) for name in head.around]
        return (
            not self.training
            or (self.full_logits if full_logits is None else full_logits)
            or given.get("spanbert_fast") is False
            or not is_plain(decoder, nn.Linear)
            or decoder.bias is None
            or not all(_is_transformers_own(module) for module in around)
            or needs_batch_dimension(self) is not None
        )

    def labelled_rows_loss(self, hidden_states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """0-dim, the mean over labelled positions; NaN where there is none, as in transformers."""
        labels = labels.reshape(-1)
        rows = rows_where(labels != IGNORED_TARGET)
        x = self.features(hidden_states.flatten(0, 1)[rows])
        decoder = self.get_submodule(self._lm_head().decoder)
        assert isinstance(decoder, nn.Linear)  # else `needs_logits`
        return linear_cross_entropy(x, decoder.weight, decoder.bias, labels[rows]).losses.mean()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(num_rows, hidden_size) -> (num_rows, decoder_size): what the head does before its
        decoder."""
        for step in self._lm_head().steps:
            x = self.get_submodule(step)(x) if isinstance(step, str) else step(x)
        return x


class PreTrainingHead(MaskedLMHead):
    """BERT's two objectives; see `MaskedLMHead`. Its output then has no prediction_logits."""

    @can_return_tuple
    def forward(self, *others, full_logits: bool | None = None, **named) -> ModelOutput:
        given = self.arguments(others, named)
        labels, is_next = (given.pop(name, None) for name in ("labels", "next_sentence_label"))
        if labels is None or is_next is None:  # there is no loss
            return self.stock.forward(self, *others, **named)
        if stock_where_padding_has_labels({**given, "labels": labels}):
            given["spanbert_fast"] = named["spanbert_fast"] = False
        if self.needs_logits(full_logits, given):
            return self.stock.forward(self, *others, **named)
        outputs = self.base_model(**given, return_dict=True)
        scores = self.cls.seq_relationship(outputs.pooler_output)
        loss = self.labelled_rows_loss(outputs.last_hidden_state, labels)
        output = getattr(sys.modules[self.stock.__module__], f"{self.stock.__name__}Output")
        return output(
            loss=loss + F.cross_entropy(scores.view(-1, 2), is_next.view(-1)),
            seq_relationship_logits=scores,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _is_transformers_own(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.") and is_plain(module, type(module))
