"""Word, position and token-type embeddings of packed tokens: their sum, its norm, and dropout."""

from typing import Any, NamedTuple, TypeGuard

import torch
from torch import nn

from spanbert_fast.nn.linear import is_plain
from spanbert_fast.ops.dropout import Dropout, dropped
from spanbert_fast.ops.embedding_layer_norm import embedding_layer_norm


class EmbeddingTables(NamedTuple):
    """The modules of a model's embeddings. A model without token types has None for them."""

    words: nn.Module
    positions: nn.Module
    token_types: nn.Module | None
    norm: nn.Module


class _WithoutGradientAt(torch.autograd.Function):
    """The identity on a table, with a zero gradient for one row, as torch's `padding_idx` has."""

    @staticmethod
    def forward(ctx, weight: torch.Tensor, row: int) -> torch.Tensor:
        ctx.row = row
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.clone()
        gradient[ctx.row] = 0
        return gradient, None


class PackedIds(NamedTuple):
    """The ids to look up, each int64 (total_tokens,). inputs_embeds (total_tokens, hidden_size) may
    replace input_ids."""

    input_ids: torch.Tensor | None
    position_ids: torch.Tensor
    token_type_ids: torch.Tensor | None
    inputs_embeds: torch.Tensor | None = None


def is_plain_table(module: nn.Module) -> TypeGuard[nn.Embedding]:
    """Whether an op may read `module.weight` instead of calling the module."""
    return (
        is_plain(module, nn.Embedding)
        and module.max_norm is None
        and not (module.sparse or module.scale_grad_by_freq)
    )


def embed(
    tables: EmbeddingTables,
    ids: PackedIds,
    *,
    dropout: Dropout | None = None,
    residual_in_fp32: bool = False,
) -> torch.Tensor:
    """dropout(LayerNorm(word + position + token type)), (total_tokens, hidden_size).

    This is one op if the modules are plain tables and a plain norm. A module with hooks, or an
    adapter in place of a table, is called as a module.
    """
    words, positions, token_types, norm = tables
    if ids.inputs_embeds is None and not is_plain_table(words):
        ids = ids._replace(input_ids=None, inputs_embeds=words(ids.input_ids))
    if not (
        is_plain_table(positions)
        and (token_types is None or is_plain_table(token_types))
        and is_plain(norm, nn.LayerNorm)
    ):
        z = words(ids.input_ids) if ids.inputs_embeds is None else ids.inputs_embeds
        z = z + positions(ids.position_ids)
        if token_types is not None:
            z = z + token_types(ids.token_type_ids)
        return dropped(norm(z), dropout)
    # an adapter keeps the table that it wraps under another name
    table: Any = words.weight if hasattr(words, "weight") else positions.weight
    padding_idx = getattr(words, "padding_idx", None)
    places: torch.Tensor = positions.weight
    if positions.padding_idx is not None:
        places = _WithoutGradientAt.apply(places, positions.padding_idx)
    return embedding_layer_norm(
        ids.input_ids,
        ids.position_ids,
        None if token_types is None else ids.token_type_ids,
        table,
        places,
        None if token_types is None else token_types.weight,
        norm.weight,
        norm.bias,
        inputs_embeds=ids.inputs_embeds,
        padding_idx=-1 if padding_idx is None else padding_idx,
        dropout=dropout,
        eps=norm.eps,
        residual_in_fp32=residual_in_fp32,
    )
