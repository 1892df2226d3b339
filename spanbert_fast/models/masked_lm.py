"""SpanBertForMaskedLM: an encoder with the masked-LM head."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import MaskedLMOutput

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models.base import SpanBertPreTrainedModel
from spanbert_fast.models.encoder import SpanBertModel
from spanbert_fast.models.inputs import Encoded, EncoderInputs, takes_encoder_inputs
from spanbert_fast.nn.heads import MaskedLMHead
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.ops.padding import rows_where
from spanbert_fast.values import IGNORED_TARGET


class MaskedLMHeads(nn.Module):
    """The `cls` module of a masked LM."""

    def __init__(self, config: SpanBertConfig):
        super().__init__()
        self.predictions = MaskedLMHead(
            config.hidden_size, config.vocab_size, config.layer_norm_eps
        )


class TiedDecoder(SpanBertPreTrainedModel):
    """A model whose masked-LM head, `cls.predictions`, decodes with the word embeddings."""

    cls: Any  # a module
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def get_output_embeddings(self) -> nn.Linear:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias


class SpanBertForMaskedLM(TiedDecoder):
    """Drop-in for `transformers.BertForMaskedLM` that takes packed input, too.

    One difference: while training with labels it returns no logits, unless `full_logits` asks for
    them.

        >>> model = SpanBertForMaskedLM.from_pretrained("runs/first/model").eval()
        >>> model(torch.tensor([[2, 7, 4, 3]])).logits.shape == (1, 4, model.config.vocab_size)
        True
    """

    full_logits = False

    def __init__(self, config: SpanBertConfig):
        super().__init__(config)
        self.bert = SpanBertModel(config, add_pooling_layer=False)
        self.cls = MaskedLMHeads(config)
        self.post_init()

    def encode(self, inputs: EncoderInputs, *, rows: torch.Tensor | None = None) -> Encoded:
        """See `SpanBertModel.encode`."""
        return self.bert.encode(inputs, rows=rows)

    def masked_lm_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., vocab_size): every entry's score at every position."""
        return self.cls.predictions.logits(hidden_states)

    @takes_encoder_inputs
    def forward(
        self,
        inputs: EncoderInputs,
        labels: torch.Tensor | None = None,
        full_logits: bool | None = None,
    ) -> MaskedLMOutput:
        """Score every vocabulary entry at every position; in training, the labelled ones only.

        While training with labels, only the labelled rows are decoded. Their scores are never all
        in memory, and the output has no logits.

        Args:
            labels: int64, shaped as input_ids; -100 where no loss is taken.
            full_logits: return all logits while training, too. The default is the attribute of
                this name.
            others: see `SpanBertModel.forward`.

        Returns:
            logits, shaped as the input with vocab_size added (zero where attention_mask is 0);
            loss, the mean over labelled positions.
        """
        wants_logits = self.full_logits if full_logits is None else full_logits
        if labels is not None:
            labels = inputs.packing.pack(labels)
        if labels is not None and self.training and not wants_logits:
            return self._labelled_rows_alone(inputs, labels)
        encoded = self.bert.encode(inputs)
        logits = self.cls.predictions.logits(encoded.hidden_states)
        return MaskedLMOutput(
            loss=None if labels is None else F.cross_entropy(logits.float(), labels),
            logits=encoded.packing.unpack(logits),
            hidden_states=encoded.padded_stages(),
        )

    def _labelled_rows_alone(self, inputs: EncoderInputs, labels: torch.Tensor) -> MaskedLMOutput:
        rows = rows_where(labels != IGNORED_TARGET)
        encoded = self.bert.encode(inputs, rows=None if inputs.every_stage else rows)
        hidden = encoded.hidden_states[rows] if inputs.every_stage else encoded.hidden_states
        head = self.cls.predictions
        losses = linear_cross_entropy(
            head(hidden), head.decoder.weight, head.bias, labels[rows]
        ).losses
        return MaskedLMOutput(loss=losses.mean(), hidden_states=encoded.padded_stages())
