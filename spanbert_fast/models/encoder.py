"""SpanBertModel: the BERT encoder on packed tokens, with the API of a Hugging Face model."""

import functools
from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models.base import SpanBertPreTrainedModel
from spanbert_fast.models.inputs import Encoded, EncoderInputs, takes_encoder_inputs
from spanbert_fast.nn.embeddings import EmbeddingTables, PackedIds, embed
from spanbert_fast.nn.layer import NormOptions, TransformerLayer
from spanbert_fast.nn.linear import apply_linear
from spanbert_fast.nn.packing import Packing
from spanbert_fast.ops._precision import is_autocast
from spanbert_fast.ops.dropout import DropoutPlan


class SpanBertEmbeddings(nn.Module):
    """Word, position and token-type tables, with their LayerNorm and dropout."""

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
        self.num_layers = config.num_hidden_layers
        self.residual_in_fp32 = config.residual_in_fp32

    def forward(self, inputs: EncoderInputs, plan: DropoutPlan | None) -> torch.Tensor:
        tables = EmbeddingTables(
            self.word_embeddings,
            self.position_embeddings,
            self.token_type_embeddings,
            self.LayerNorm,
        )
        ids = PackedIds(
            inputs.input_ids, inputs.position_ids, inputs.token_type_ids, inputs.inputs_embeds
        )
        autocast = is_autocast(inputs.position_ids.device)
        return embed(
            tables,
            ids,
            dropout=None if plan is None else plan.embeddings(self.num_layers, self.dropout),
            residual_in_fp32=self.residual_in_fp32 and autocast,
        )


class SpanBertEncoder(nn.Module):
    """The stack of layers, on packed rows."""

    _gradient_checkpointing_func: Callable  # set by gradient_checkpointing_enable()

    def __init__(self, config: SpanBertConfig):
        super().__init__()
        norm = NormOptions(
            config.hidden_dropout_prob, config.layer_norm_eps, config.residual_in_fp32
        )
        self.layer = nn.ModuleList(
            TransformerLayer(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                attention_dropout=config.attention_probs_dropout_prob,
                norm=norm,
                layer_index=index,
            )
            for index in range(config.num_hidden_layers)
        )
        self.gradient_checkpointing = False  # switched by gradient_checkpointing_enable()

    def forward(
        self,
        x: torch.Tensor,
        packing: Packing,
        *,
        rows: torch.Tensor | None = None,
        plan: DropoutPlan | None = None,
        every_stage: bool = False,
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """(hidden states, those of every stage or None). With `rows`, the last layer computes only
        these rows after attention, and the hidden states are theirs."""
        stages = [x] if every_stage else None
        for index, layer in enumerate(self.layer):
            is_last = index == len(self.layer) - 1
            run = functools.partial(layer, rows=rows if is_last else None, plan=plan)
            if self.gradient_checkpointing and self.training:
                # as an argument, the plan makes a checkpoint's second forward drop what the first
                # did
                run = functools.partial(self._gradient_checkpointing_func, run)
            x = run(x, packing)
            if stages is not None:
                stages.append(x)
        return x, stages


class SpanBertPooler(nn.Module):
    """tanh(W x + b) of each sequence's first token."""

    def __init__(self, config: SpanBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_tokens: torch.Tensor) -> torch.Tensor:
        return torch.tanh(apply_linear(self.dense, first_tokens))


class SpanBertModel(SpanBertPreTrainedModel):
    """A BERT encoder that computes no padding (contract C7).

    Takes the inputs of `transformers.BertModel`, or packed ones: `input_ids` (total_tokens,) with
    `cu_seqlens` int32 (batch + 1,). With the same weights, its outputs equal BertModel's at every
    token, and are zero where `attention_mask` is 0. The pooler and every head that reads first
    tokens take a zero vector for a sequence without tokens.

        >>> model = SpanBertModel.from_pretrained("runs/first/model").eval()
        >>> hidden = model(torch.tensor([[2, 7, 9, 3]])).last_hidden_state
        >>> hidden.shape[:2]
        torch.Size([1, 4])
    """

    def __init__(self, config: SpanBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = SpanBertEmbeddings(config)
        self.encoder = SpanBertEncoder(config)
        self.pooler = SpanBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = cast(nn.Embedding, value)

    def encode(
        self,
        inputs: EncoderInputs,
        *,
        rows: torch.Tensor | None = None,
        plan: DropoutPlan | None = None,
    ) -> Encoded:
        """Run the encoder; the result stays packed.

        Args:
            rows: int64, the packed rows that the caller needs. The last layer computes only these
                after attention, and `hidden_states` holds them in this order. Not with
                inputs.every_stage.
            plan: gives all dropout masks while training; None to draw one from torch's generator.
        """
        if not self.training:
            plan = None
        elif plan is None:
            plan = DropoutPlan.draw(inputs.position_ids.device)
        x = self.embeddings(inputs, plan)
        x, stages = self.encoder(
            x, inputs.packing, rows=rows, plan=plan, every_stage=inputs.every_stage
        )
        return Encoded(x, inputs.packing, stages)

    def encode_first_tokens(self, inputs: EncoderInputs) -> tuple[Encoded, torch.Tensor]:
        """The encoder's result, and the rows of the first tokens. Unless every stage is wanted, the
        last layer computes only these."""
        if inputs.every_stage:
            encoded = self.encode(inputs)
            return encoded, encoded.first_tokens()
        encoded = self.encode(inputs, rows=inputs.packing.first_rows())
        return encoded, inputs.packing.of_first_tokens(encoded.hidden_states)

    @takes_encoder_inputs
    def forward(self, inputs: EncoderInputs) -> BaseModelOutputWithPooling:
        """Encode a batch.

        Args:
            input_ids: int64 (batch, seqlen), or (total_tokens,) with cu_seqlens.
            attention_mask: (batch, seqlen), nonzero for tokens; padded input only.
            token_type_ids, position_ids: int64, shaped as input_ids. Defaults: zeros, and the
                places in the sequence.
            inputs_embeds: (..., hidden_size) in place of input_ids.
            cu_seqlens: int32 (batch + 1,), prefix sums of packed sequences' lengths.
            max_seqlen: longest packed length; needed on a GPU.
            output_hidden_states: also return the hidden states of every stage.

        Returns:
            last_hidden_state, shaped as the input with hidden_size added; pooler_output
            (batch, hidden_size).
        """
        encoded = self.encode(inputs)
        return BaseModelOutputWithPooling(
            last_hidden_state=encoded.packing.unpack(encoded.hidden_states),
            pooler_output=None if self.pooler is None else self.pooler(encoded.first_tokens()),
            hidden_states=encoded.padded_stages(),
        )
