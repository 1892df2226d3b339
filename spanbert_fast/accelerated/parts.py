"""What stands inside a layer, and the embeddings: one mixin for each role in a `Family`."""

import torch
from torch import nn
from transformers.activations import GELUActivation

from spanbert_fast.accelerated.packed import Fast, Packed, active_p
from spanbert_fast.nn.embeddings import EmbeddingTables, PackedIds, embed, is_plain_table
from spanbert_fast.nn.linear import apply_linears, is_plain, linear_gelu, linear_without_bias
from spanbert_fast.nn.packing import Packing
from spanbert_fast.ops._precision import is_autocast
from spanbert_fast.ops.dropout import Dropout, DropoutPlan
from spanbert_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm
from spanbert_fast.ops.varlen_attention import varlen_attention


class FastEmbeddings(Fast):
    """Word, position and token-type tables, their norm and dropout, in one op on packed tokens."""

    def forward(
        self, *others, packed: Packed | None = None, given: dict | None = None, **named
    ) -> torch.Tensor:
        """As transformers'; with `packed`, and the model's arguments `given` by their names,
        (total_tokens, hidden_size)."""
        if packed is None or given is None:
            return super().forward(*others, **named)
        packing, ids = packed.packing, given.get("input_ids")
        embeds = given.get("inputs_embeds")
        if embeds is None and not is_plain_table(self.word_embeddings):
            # a hook, or an adapter in the table's place, sees padded input as in transformers
            ids, embeds = None, self.word_embeddings(ids)
        words = None if ids is None else packing.pack_ids(ids).long()
        embeds = None if embeds is None else packing.pack(embeds)
        if (more := self.other_tables(given, packing)) is not None:
            embeds = more + (embeds if embeds is not None else self.word_embeddings(words))
            words = None
        places = self.places(given, packing)
        types = given.get("token_type_ids")
        types = torch.zeros_like(places) if types is None else packing.pack_ids(types).long()
        tables = EmbeddingTables(
            self.word_embeddings,
            self.position_embeddings,
            getattr(self, "token_type_embeddings", None),
            self.LayerNorm,
        )
        return embed(
            tables,
            PackedIds(words, places, types, embeds),
            dropout=packed.of_embeddings(self.dropout),
            residual_in_fp32=norm_gives_fp32(self.LayerNorm.weight),
        )

    def places(self, given: dict, packing: Packing) -> torch.Tensor:
        """int64 (total_tokens,), rows of the position table."""
        places = given.get("position_ids")
        return packing.position_ids() if places is None else packing.pack_ids(places).long()

    def num_places(self) -> int:
        """Tokens of the longest sequence that the position table has rows for."""
        return self.position_embeddings.num_embeddings

    def other_tables(self, given: dict, packing: Packing) -> torch.Tensor | None:
        """(total_tokens, hidden_size) to add, of the tables that BERT has not."""
        return None

    def can_pack(self) -> bool:
        """Whether nothing here but the words' table needs padded input, as hooks do."""
        plain = all(
            is_plain_table(child)
            if isinstance(child, nn.Embedding)
            else type(child) in (nn.LayerNorm, nn.Dropout) and is_plain(child, type(child))
            for child in self.children()
            if child is not self.word_embeddings
        )
        return plain and is_plain(self, type(self))


class PositionsFromPadding(FastEmbeddings):
    """RoBERTa's: a token's position is padding_idx plus its number among what is not padding."""

    def places(self, given: dict, packing: Packing) -> torch.Tensor:
        if given.get("position_ids") is not None:
            return super().places(given, packing)
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if packing.padded_shape is None:
            return self._places_of_packed(ids, packing)
        if ids is None:
            places = self.create_position_ids_from_inputs_embeds(embeds, self.padding_idx)
        else:
            places = self.create_position_ids_from_input_ids(ids, self.padding_idx)
        return packing.pack_ids(places)

    def num_places(self) -> int:
        return super().num_places() - self.padding_idx - 1

    def _places_of_packed(self, ids: torch.Tensor | None, packing: Packing) -> torch.Tensor:
        places = packing.position_ids()
        if ids is None:
            return places + self.padding_idx + 1
        is_token = (ids != self.padding_idx).long()
        count = is_token.cumsum(0)
        starts = torch.arange(len(ids), device=ids.device) - places
        count = count - (count - is_token)[starts]  # from the start of each sequence
        return count * is_token + self.padding_idx


class ErnieEmbeddings(FastEmbeddings):
    """ERNIE's: a table of tasks beside BERT's."""

    def other_tables(self, given: dict, packing: Packing) -> torch.Tensor | None:
        if not self.use_task_id:
            return None
        tasks = given.get("task_type_ids")
        if tasks is None:
            return self.task_type_embeddings.weight[0]
        return self.task_type_embeddings(packing.pack_ids(tasks))


class LayoutEmbeddings(FastEmbeddings):
    """LayoutLM's: the edges, height and width of each token's box."""

    def other_tables(self, given: dict, packing: Packing) -> torch.Tensor | None:
        box = given.get("bbox")
        if box is None:
            x, y = self.x_position_embeddings.weight[0], self.y_position_embeddings.weight[0]
            size = self.h_position_embeddings.weight[0] + self.w_position_embeddings.weight[0]
            return x + y + x + y + size
        left, upper, right, lower = packing.pack(box).unbind(-1)
        x, y = self.x_position_embeddings, self.y_position_embeddings
        return (
            x(left)
            + y(upper)
            + x(right)
            + y(lower)
            + self.h_position_embeddings(lower - upper)
            + self.w_position_embeddings(right - left)
        )


class FastSelfAttention(Fast):
    """Multi-head self-attention within each sequence; heads concatenated, not yet projected."""

    linears = ("query", "key", "value")

    def forward(
        self, *others, packed: Packed | None = None, **named
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(context, attention probabilities or None), shaped as hidden_states."""
        if packed is not None:
            return self.packed(others[0], packed), None
        output = self.on_tokens(self.packed, others, named)
        return super().forward(*others, **named) if output is None else (output, None)

    def packed(self, x: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(total_tokens, hidden_size) -> the same."""
        q, k, v = (
            y.unflatten(1, (-1, self.attention_head_size))
            for y in apply_linears([getattr(self, name) for name in self.linears], x)
        )
        # transformers' attention goes by its own mode, whatever its dropout module's
        dropout = packed.of_attention(self.dropout.p if self.training else 0.0)
        context = varlen_attention(
            q,
            k,
            v,
            packed.packing.cu_seqlens,
            packed.packing.max_seqlen,
            softmax_scale=self.scaling,
            dropout=dropout,
        )
        return context.flatten(1)


class FastAttention(Fast):
    """Self-attention and its projection."""

    parts = ("self", "output")

    def forward(
        self, *others, packed: Packed | None = None, **named
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if packed is None:
            return super().forward(*others, **named)
        x = others[0]
        context, _ = self.self(x, packed=packed)
        if packed.rows is not None:
            context, x = context[packed.rows], x[packed.rows]
        return self.output(context, x, dropout=packed.after_attention(self.output.dropout)), None


class FastOutput(Fast):
    """LayerNorm(dropout(dense(x)) + residual) in one op after the matrix product."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        input_tensor: torch.Tensor,
        *,
        dropout: Dropout | None = None,
    ) -> torch.Tensor:
        """Without `dropout` the module draws its own where its dropout module is training."""
        norm = self.LayerNorm
        if not (is_plain(norm, nn.LayerNorm) and is_plain(self.dropout, nn.Dropout)):
            return super().forward(hidden_states, input_tensor)
        y, bias = linear_without_bias(self.dense, hidden_states)
        if dropout is None and (p := active_p(self.dropout)):
            dropout = DropoutPlan.draw(y.device).after_attention(0, p)
        return add_norm(norm, y, input_tensor, bias, dropout)


def norm_gives_fp32(residual: torch.Tensor) -> bool:
    """Whether transformers' norm of a sum with `residual` gives fp32 under autocast: on a GPU
    always, on a CPU where one of them is fp32. Our residuals have the same dtype: with trained
    weights 16-bit ones gave larger errors than transformers has."""
    return is_autocast(residual.device) and (
        residual.device.type != "cpu" or residual.dtype == torch.float32
    )


def add_norm(
    norm: nn.LayerNorm,
    y: torch.Tensor,
    residual: torch.Tensor,
    bias: torch.Tensor | None,
    dropout: Dropout | None,
) -> torch.Tensor:
    """norm(dropout(y + bias) + residual), shaped as residual."""
    output = dropout_add_layer_norm(
        y.flatten(0, -2),
        residual.flatten(0, -2),
        norm.weight,
        norm.bias,
        x_bias=bias,
        dropout=dropout,
        eps=norm.eps,
        residual_in_fp32=norm_gives_fp32(residual),
    )
    # FSDP warns of views that leave its units
    return output if residual.dim() == 2 else output.view(residual.shape)


class FastIntermediate(Fast):
    """GELU(W x + b) with bias and activation in one op; other activations by transformers."""

    gelu_name = "intermediate_act_fn"

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not is_plain(self.intermediate_act_fn, GELUActivation):
            return super().forward(hidden_states)
        return linear_gelu(self.dense, hidden_states)
