"""SpanBertModel: the BERT encoder on packed tokens, behind the Hugging Face model API."""

import functools
from typing import NamedTuple

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models.base import SpanBertPreTrainedModel
from spanbert_fast.nn.layer import TransformerLayer
from spanbert_fast.nn.linear import draw_dropout_seed
from spanbert_fast.nn.packing import Packing, first_token_rows
from spanbert_fast.ops.embedding_layer_norm import embedding_layer_norm


class SpanBertEmbeddings(nn.Module):
    """Word, position and token-type tables, their LayerNorm and dropout."""

    def __init__(self, config: SpanBertConfig):
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(
            config.vocab_size, size, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob
        self.dropout_site = 2 * config.num_hidden_layers
        self.residual_in_fp32 = config.residual_in_fp32

    def forward(self, input_ids, position_ids, token_type_ids, inputs_embeds, dropout_seed):
        padding_idx = self.word_embeddings.padding_idx
        return embedding_layer_norm(
            input_ids,
            position_ids,
            token_type_ids,
            self.word_embeddings.weight,
            self.position_embeddings.weight,
            self.token_type_embeddings.weight,
            self.LayerNorm.weight,
            self.LayerNorm.bias,
            inputs_embeds=inputs_embeds,
            padding_idx=-1 if padding_idx is None else padding_idx,
            dropout_p=self.dropout if self.training else 0.0,
            dropout_seed=dropout_seed,
            dropout_site=self.dropout_site,
            eps=self.LayerNorm.eps,
            residual_in_fp32=self.residual_in_fp32
            and torch.is_autocast_enabled(position_ids.device.type),
        )


class SpanBertEncoder(nn.Module):
    """The stack of layers, on packed rows."""

    def __init__(self, config: SpanBertConfig):
        super().__init__()
        self.layer = nn.ModuleList(
            TransformerLayer(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                attention_dropout=config.attention_probs_dropout_prob,
                hidden_dropout=config.hidden_dropout_prob,
                layer_norm_eps=config.layer_norm_eps,
                layer_index=index,
                residual_in_fp32=config.residual_in_fp32,
            )
            for index in range(config.num_hidden_layers)
        )
        self.gradient_checkpointing = False  # switched by gradient_checkpointing_enable()

    def forward(self, x, packing: Packing, rows, dropout_seed, keep_hidden_states: bool):
        """(hidden states, those of every stage or None); with `rows`, those rows at the end."""
        stages = [x] if keep_hidden_states else None
        for index, layer in enumerate(self.layer):
            is_last = index == len(self.layer) - 1
            run = functools.partial(
                layer, rows=rows if is_last else None, dropout_seed=dropout_seed
            )
            if self.gradient_checkpointing and self.training:
                # the seed is an argument: the second forward drops what the first one dropped
                run = functools.partial(self._gradient_checkpointing_func, run)
            x = run(x, packing.cu_seqlens, packing.max_seqlen)
            if stages is not None:
                stages.append(x)
        return x, stages


class SpanBertPooler(nn.Module):
    """tanh(W x + b) of each sequence's first token."""

    def __init__(self, config: SpanBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_rows: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(first_rows))


class Encoded(NamedTuple):
    """What the encoder gives to the heads: packed rows and how they are packed."""

    hidden_states: torch.Tensor
    packing: Packing
    stages: list[torch.Tensor] | None

    def padded_stages(self) -> tuple[torch.Tensor, ...] | None:
        """Every stage's hidden states in the shape of the input."""
        if self.stages is None:
            return None
        return tuple(self.packing.unpack(stage) for stage in self.stages)


class SpanBertModel(SpanBertPreTrainedModel):
    """A BERT encoder that computes no padding (contract C7).

    Takes the inputs of `transformers.BertModel`, or packed ones: `input_ids` (total_tokens,) with
    `cu_seqlens` int32 (batch + 1,). With the same weights its outputs equal BertModel's at every
    real position; where `attention_mask` is 0 they are zero.
    """

    def __init__(self, config: SpanBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = SpanBertEmbeddings(config)
        self.encoder = SpanBertEncoder(config)
        self.pooler = SpanBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def packing_of(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        max_seqlen: int | None,
    ) -> Packing:
        """How the given inputs are packed; raises where they are not an encoder's input."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        if inputs_embeds is None:
            name, given, shape = "input_ids", input_ids, input_ids.shape
        else:
            name, given, shape = "inputs_embeds", inputs_embeds, inputs_embeds.shape[:-1]
        if len(shape) == 1:
            if attention_mask is not None:
                raise ValueError(f"attention_mask must be None with packed {name}")
            return Packing.of_packed(cu_seqlens, max_seqlen, shape[0])
        if len(shape) != 2 or cu_seqlens is not None:
            raise ValueError(
                f"{name} must be padded (batch, seqlen, ...), or packed (total_tokens, ...) with "
                f"cu_seqlens, got {tuple(given.shape)} and cu_seqlens "
                f"{'given' if cu_seqlens is not None else 'None'}"
            )
        return Packing.of_padded(tuple(shape), attention_mask, given.device)

    def encode(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        *,
        packing: Packing | None = None,
        rows: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        dropout_seed: torch.Tensor | None = None,
    ) -> Encoded:
        """Run the encoder and leave the result packed.

        Args:
            packing: as `packing_of` gives it, where the caller has needed it before.
            rows: int64 packed rows that the caller needs; the last layer computes no others, and
                `hidden_states` holds them in this order.
            dropout_seed: int64 0-dim, which gives all dropout masks while training; drawn from
                torch's generator where it is None.
        """
        if packing is None:
            packing = self.packing_of(
                input_ids, attention_mask, inputs_embeds, cu_seqlens, max_seqlen
            )
        if position_ids is None:
            limit = self.config.max_position_embeddings
            is_packed = packing.padded_shape is None
            longest = packing.max_seqlen if is_packed else packing.padded_shape[1]
            if longest > limit:
                raise ValueError(
                    f"sequences must not be longer than max_position_embeddings = {limit}, "
                    f"got {longest}"
                )
            position_ids = packing.position_ids()
        else:
            position_ids = packing.pack(self._expanded(position_ids, packing))
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        else:
            token_type_ids = packing.pack(self._expanded(token_type_ids, packing))
        if dropout_seed is None and self.training:
            dropout_seed = draw_dropout_seed(position_ids.device)
        x = self.embeddings(
            None if input_ids is None else packing.pack(input_ids),
            position_ids,
            token_type_ids,
            None if inputs_embeds is None else packing.pack(inputs_embeds),
            dropout_seed,
        )
        x, stages = self.encoder(x, packing, rows, dropout_seed, output_hidden_states)
        return Encoded(x, packing, stages)

    @staticmethod
    def _expanded(ids: torch.Tensor, packing: Packing) -> torch.Tensor:
        """(1, seqlen) ids serve every sequence of a padded batch, as in BertModel."""
        if packing.padded_shape is None:
            return ids
        return ids.expand(packing.padded_shape)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode a batch.

        Args:
            input_ids: int64 (batch, seqlen), or (total_tokens,) with cu_seqlens.
            attention_mask: (batch, seqlen), nonzero for tokens; padded input only.
            token_type_ids, position_ids: int64, shaped as input_ids; default zeros, and places in
                the sequence.
            inputs_embeds: (..., hidden_size) in place of input_ids.
            cu_seqlens: int32 (batch + 1,), prefix sums of packed sequences' lengths.
            max_seqlen: longest packed length; needed on a GPU.
            output_hidden_states: also return the hidden states of every stage.

        Returns:
            last_hidden_state, shaped as the input with hidden_size added; pooler_output
            (batch, hidden_size).
        """
        self.refuse_attentions(output_attentions, kwargs)
        encoded = self.encode(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            cu_seqlens,
            max_seqlen,
            output_hidden_states=self.wants_hidden_states(output_hidden_states),
        )
        pooled = None
        if self.pooler is not None:
            pooled = self.pooler(first_rows(encoded))
        return BaseModelOutputWithPooling(
            last_hidden_state=encoded.packing.unpack(encoded.hidden_states),
            pooler_output=pooled,
            hidden_states=encoded.padded_stages(),
        )


def first_rows(encoded: Encoded) -> torch.Tensor:
    """(batch, hidden_size): each sequence's first token, [CLS] in BERT."""
    return encoded.hidden_states[first_token_rows(encoded.packing)]
