"""SpanBertForMaskedLM: the encoder and the masked-LM head."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models.base import SpanBertPreTrainedModel
from spanbert_fast.models.encoder import SpanBertModel
from spanbert_fast.nn.heads import MaskedLMHead

TIED_DECODER = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


class MaskedLMHeads(nn.Module):
    """The `cls` module of a masked LM."""

    def __init__(self, config: SpanBertConfig):
        super().__init__()
        self.predictions = MaskedLMHead(
            config.hidden_size, config.vocab_size, config.layer_norm_eps
        )


class SpanBertForMaskedLM(SpanBertPreTrainedModel):
    """Drop-in for `transformers.BertForMaskedLM`, with packed input beside it."""

    _tied_weights_keys = TIED_DECODER

    def __init__(self, config: SpanBertConfig):
        super().__init__(config)
        self.bert = SpanBertModel(config, add_pooling_layer=False)
        self.cls = MaskedLMHeads(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Scores of every vocabulary entry at every position.

        Args:
            labels: int64, shaped as input_ids; -100 where no loss is taken.
            others: see `SpanBertModel.forward`.

        Returns:
            logits, shaped as the input with vocab_size added (zero where attention_mask is 0);
            loss, the mean over labelled positions.
        """
        self.refuse_attentions(output_attentions, kwargs)
        encoded = self.bert.encode(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            cu_seqlens,
            max_seqlen,
            output_hidden_states=self.wants_hidden_states(output_hidden_states),
        )
        logits = self.cls.predictions.logits(encoded.hidden_states)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float(), encoded.packing.pack(labels))
        return MaskedLMOutput(
            loss=loss,
            logits=encoded.packing.unpack(logits),
            hidden_states=encoded.padded_stages(),
        )
