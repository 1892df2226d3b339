"""`embedding_layer_norm`: three gathers, a sum, LayerNorm and dropout in one pass."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from spanbert_fast.ops import _checks
from spanbert_fast.ops._autograd import differentiable
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._precision import compute_dtype, opmath_dtype
from spanbert_fast.ops._register import register
from spanbert_fast.ops.dropout import Dropout, flat_dropout, hidden_multiplier, of_flat
from spanbert_fast.reference import embedding_layer_norm as reference


def embedding_layer_norm(
    input_ids: torch.Tensor | None,
    position_ids: torch.Tensor,
    token_type_ids: torch.Tensor | None,
    word_embeddings: torch.Tensor,
    position_embeddings: torch.Tensor,
    token_type_embeddings: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    inputs_embeds: torch.Tensor | None = None,
    padding_idx: int = -1,
    dropout: Dropout | None = None,
    eps: float = 1e-12,
    residual_in_fp32: bool = False,
) -> torch.Tensor:
    """dropout(LayerNorm(word[input_ids] + position[position_ids] + type[token_type_ids])).

        >>> table, ids = torch.eye(4), torch.tensor([0, 3])
        >>> embedding_layer_norm(ids, ids, None, table, table, None, torch.ones(4), torch.zeros(4))
        tensor([[ 1.7321, -0.5774, -0.5774, -0.5774],
                [-0.5774, -0.5774, -0.5774,  1.7321]])

    Args:
        input_ids: int64 (tokens,); None where `inputs_embeds` is given.
        position_ids, token_type_ids: int64 (tokens,).
        word_embeddings, position_embeddings, token_type_embeddings: (rows, hidden_size). A model
            without token types passes None for their ids and their table.
        weight, bias: (hidden_size,), the norm's scale and shift.
        inputs_embeds: (tokens, hidden_size), in place of word embeddings.
        padding_idx: row of the word table that gets no gradient, as in torch.nn.Embedding; -1 for
            none.
        dropout: which elements of the result are dropped; None for none.
        eps: added to the variance.
        residual_in_fp32: return fp32, since the first layer takes the result as its residual.

    Returns:
        (tokens, hidden_size) in the tables' dtype (autocast's under autocast), or in fp32 with
        residual_in_fp32.

    Raises:
        ValueError: shapes disagree, or an id is out of range (checked on the CPU only).
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("exactly one of input_ids and inputs_embeds must be given")
    if (token_type_ids is None) != (token_type_embeddings is None):
        raise ValueError("token_type_ids and token_type_embeddings must be given together")
    _checks.check_shape("position_ids", position_ids, ("tokens",))
    hidden_size = word_embeddings.shape[-1]
    for name, table in (
        ("word_embeddings", word_embeddings),
        ("position_embeddings", position_embeddings),
        ("token_type_embeddings", token_type_embeddings),
    ):
        if table is not None:
            _checks.check_floating(name, table)
            _checks.check_shape(name, table, ("rows", hidden_size))
            _checks.check_same_device(name, table, position_ids, "position_ids")
    for name, ids in (
        ("position_ids", position_ids),
        ("token_type_ids", token_type_ids),
        ("input_ids", input_ids),
    ):
        if ids is not None:
            _checks.check_shape(name, ids, tuple(position_ids.shape))
            _checks.check_integer(name, ids, (torch.int64,))
            _checks.check_same_device(name, ids, position_ids, "position_ids")
    if inputs_embeds is not None:
        _checks.check_floating("inputs_embeds", inputs_embeds)
        _checks.check_shape("inputs_embeds", inputs_embeds, (*position_ids.shape, hidden_size))
    _checks.check_shape("weight", weight, (hidden_size,))
    _checks.check_shape("bias", bias, (hidden_size,))
    seed, threshold, site = flat_dropout(dropout, position_ids)
    if runs_reference():
        return reference.embedding_layer_norm(
            input_ids, position_ids, token_type_ids, word_embeddings, position_embeddings,
            token_type_embeddings, weight, bias, inputs_embeds=inputs_embeds,
            padding_idx=padding_idx, dropout=dropout, eps=eps, residual_in_fp32=residual_in_fp32,
        )  # fmt: skip
    rows = word_embeddings if inputs_embeds is None else inputs_embeds
    dtype = compute_dtype(rows)
    return _embedding_layer_norm(
        EmbeddingInputs(
            rows,
            input_ids,
            position_embeddings,
            position_ids,
            token_type_embeddings,
            token_type_ids,
            weight,
            bias,
            seed,
            threshold,
            site,
            padding_idx,
            eps,
            opmath_dtype(dtype) if residual_in_fp32 else dtype,
        )
    )


class EmbeddingInputs(NamedTuple):
    """The arguments of the registered functions. `words` is the word table; if input_ids is None,
    it is the row of each token."""

    words: torch.Tensor
    input_ids: torch.Tensor | None
    positions: torch.Tensor
    position_ids: torch.Tensor
    token_types: torch.Tensor | None
    token_type_ids: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor
    seed: torch.Tensor | None
    threshold: int
    site: int
    padding_idx: int
    eps: float
    out_dtype: torch.dtype


class EmbeddingGradients(NamedTuple):
    """The results of the backward, the tables' summed in fp32; dtoken_types is (0,) without token
    types."""

    dwords: torch.Tensor
    dpositions: torch.Tensor
    dtoken_types: torch.Tensor
    dweight: torch.Tensor
    dbias: torch.Tensor


def _sum(i: EmbeddingInputs) -> torch.Tensor:
    opmath = opmath_dtype(i.words.dtype)
    rows = i.words if i.input_ids is None else F.embedding(i.input_ids, i.words)
    z = rows.to(opmath) + F.embedding(i.position_ids, i.positions).to(opmath)
    if i.token_types is not None and i.token_type_ids is not None:
        z = z + F.embedding(i.token_type_ids, i.token_types).to(opmath)
    return z


def _composite_fwd(
    inputs: EmbeddingInputs,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd); the statistics (tokens, 1) are kept for the backward."""
    for name, ids, table in (
        ("input_ids", inputs.input_ids, inputs.words),
        ("position_ids", inputs.position_ids, inputs.positions),
        ("token_type_ids", inputs.token_type_ids, inputs.token_types),
    ):
        if ids is not None and table is not None:
            _checks.check_ids(name, ids, table.shape[0])
    z = _sum(inputs)
    weight, bias = inputs.weight.to(z.dtype), inputs.bias.to(z.dtype)
    y, mean, rstd = torch.native_layer_norm(z, (z.shape[1],), weight, bias, inputs.eps)
    multiplier = hidden_multiplier(of_flat(inputs.seed, inputs.threshold, inputs.site), z)
    if multiplier is not None:
        y = y * multiplier
    return y.to(inputs.out_dtype), mean, rstd


def _composite_bwd(
    dy: torch.Tensor, inputs: EmbeddingInputs, mean: torch.Tensor, rstd: torch.Tensor
) -> EmbeddingGradients:
    z = _sum(inputs)
    _checks.check_norm_saved(dy, mean, rstd, z)
    dy = dy.to(z.dtype)
    multiplier = hidden_multiplier(of_flat(inputs.seed, inputs.threshold, inputs.site), z)
    if multiplier is not None:
        dy = dy * multiplier
    weight, bias = inputs.weight.to(z.dtype), inputs.bias.to(z.dtype)
    # PyTorch reads them as if they were contiguous
    mean, rstd = mean.contiguous(), rstd.contiguous()
    dz, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy, z, (z.shape[1],), mean, rstd, weight, bias, [True, True, True]
    )

    def table_gradient(ids, table, padding_idx=-1):
        # sorts the ids on a GPU, goes through them in order on a CPU: deterministic on both
        gradient = torch.ops.aten.embedding_dense_backward(
            dz, ids, table.shape[0], padding_idx, False
        )
        return gradient.to(table.dtype)

    if inputs.input_ids is None:
        dwords = dz.to(inputs.words.dtype, copy=True)
    else:
        dwords = table_gradient(inputs.input_ids, inputs.words, inputs.padding_idx)
    if inputs.token_types is None:
        dtoken_types = dz.new_empty(0, dtype=torch.float32)
    else:
        dtoken_types = table_gradient(inputs.token_type_ids, inputs.token_types)
    return EmbeddingGradients(
        dwords,
        table_gradient(inputs.position_ids, inputs.positions),
        dtoken_types,
        dweight.to(inputs.weight.dtype),
        dbias.to(inputs.bias.dtype),
    )


def _fake_fwd(inputs: EmbeddingInputs):
    words, tokens = inputs.words, inputs.position_ids.shape[0]
    y = words.new_empty((tokens, words.shape[1]), dtype=inputs.out_dtype)
    statistics = words.new_empty((tokens, 1), dtype=opmath_dtype(words.dtype))
    return y, statistics, torch.empty_like(statistics)


def _fake_bwd(dy, inputs: EmbeddingInputs, mean, rstd):
    tables = (inputs.words, inputs.positions, inputs.token_types, inputs.weight, inputs.bias)
    none = inputs.words.new_empty(0, dtype=torch.float32)
    return EmbeddingGradients(*(none if t is None else t.new_empty(t.shape) for t in tables))


_embedding_layer_norm = differentiable(
    EmbeddingInputs,
    register("embedding_layer_norm_fwd", _composite_fwd, _fake_fwd),
    register("embedding_layer_norm_bwd", _composite_bwd, _fake_bwd),
    gradients=("words", "positions", "token_types", "weight", "bias"),
)
