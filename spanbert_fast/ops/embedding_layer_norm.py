"""`embedding_layer_norm`: three gathers, a sum, LayerNorm and dropout in one pass."""

import torch
from torch.nn import functional as F

from spanbert_fast.ops import _common
from spanbert_fast.ops._cpu import register_cpu_kernel
from spanbert_fast.ops._cuda import register_cuda_kernel
from spanbert_fast.ops._dropout import check_dropout
from spanbert_fast.reference import embedding_layer_norm as reference
from spanbert_fast.reference.dropout import dropout_scale, hidden_keep_mask


def embedding_layer_norm(
    input_ids: torch.Tensor | None,
    position_ids: torch.Tensor,
    token_type_ids: torch.Tensor,
    word_embeddings: torch.Tensor,
    position_embeddings: torch.Tensor,
    token_type_embeddings: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    inputs_embeds: torch.Tensor | None = None,
    padding_idx: int = -1,
    dropout_p: float = 0.0,
    dropout_seed: torch.Tensor | None = None,
    dropout_site: int = 0,
    eps: float = 1e-12,
    residual_in_fp32: bool = False,
) -> torch.Tensor:
    """dropout(LayerNorm(word[input_ids] + position[position_ids] + type[token_type_ids])).

    Args:
        input_ids: int64 (tokens,); None where `inputs_embeds` is given.
        position_ids, token_type_ids: int64 (tokens,).
        word_embeddings, position_embeddings, token_type_embeddings: (rows, hidden_size).
        weight, bias: (hidden_size,), the norm's scale and shift.
        inputs_embeds: (tokens, hidden_size), in place of word embeddings.
        padding_idx: word row that gets no gradient, as in torch.nn.Embedding; -1 for none.
        dropout_p, dropout_seed, dropout_site: see `dropout_add_layer_norm`.
        eps: added to the variance.
        residual_in_fp32: write the result, the first layer's residual, in fp32.

    Returns:
        (tokens, hidden_size) in the tables' dtype (autocast's under autocast), or in fp32 with
        residual_in_fp32.

    Raises:
        ValueError: shapes disagree, or (on the CPU, where looking is free) an id is out of range.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("exactly one of input_ids and inputs_embeds must be given")
    tables = (
        ("word_embeddings", word_embeddings),
        ("position_embeddings", position_embeddings),
        ("token_type_embeddings", token_type_embeddings),
    )
    _common.check_shape("position_ids", position_ids, ("tokens",))
    for name, table in tables:
        _common.check_floating(name, table)
        _common.check_shape(name, table, ("rows", word_embeddings.shape[1]))
        _common.check_same_device(name, table, position_ids, "position_ids")
    ids = [("position_ids", position_ids), ("token_type_ids", token_type_ids)]
    if input_ids is not None:
        ids.append(("input_ids", input_ids))
    for name, tensor in ids:
        _common.check_shape(name, tensor, tuple(position_ids.shape))
        _common.check_integer(name, tensor, (torch.int64,))
        _common.check_same_device(name, tensor, position_ids, "position_ids")
    hidden_size = word_embeddings.shape[1]
    if inputs_embeds is not None:
        _common.check_floating("inputs_embeds", inputs_embeds)
        _common.check_shape("inputs_embeds", inputs_embeds, (*position_ids.shape, hidden_size))
    _common.check_shape("weight", weight, (hidden_size,))
    _common.check_shape("bias", bias, (hidden_size,))
    threshold = check_dropout(dropout_p, dropout_seed, dropout_site, position_ids)
    if _common.runs_reference():
        return reference.embedding_layer_norm(
            input_ids,
            position_ids,
            token_type_ids,
            word_embeddings,
            position_embeddings,
            token_type_embeddings,
            weight,
            bias,
            inputs_embeds=inputs_embeds,
            padding_idx=padding_idx,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
            dropout_site=dropout_site,
            eps=eps,
            residual_in_fp32=residual_in_fp32,
        )
    dtype = _common.compute_dtype(word_embeddings if inputs_embeds is None else inputs_embeds)
    y, _, _ = _embedding_layer_norm_fwd(
        input_ids,
        inputs_embeds,
        position_ids,
        token_type_ids,
        word_embeddings,
        position_embeddings,
        token_type_embeddings,
        weight,
        bias,
        dropout_seed if threshold else None,
        threshold,
        dropout_site,
        padding_idx,
        eps,
        _common.opmath_dtype(dtype) if residual_in_fp32 else dtype,
    )
    return y


def _sum(input_ids, inputs_embeds, position_ids, token_type_ids, word, position, token_type):
    opmath = _common.opmath_dtype(word.dtype)
    rows = F.embedding(input_ids, word) if inputs_embeds is None else inputs_embeds
    z = rows.to(opmath) + F.embedding(position_ids, position).to(opmath)
    return z + F.embedding(token_type_ids, token_type).to(opmath)


def _scaled_mask(z: torch.Tensor, seed: torch.Tensor, threshold: int, site: int) -> torch.Tensor:
    tokens = torch.arange(z.shape[0], device=z.device)
    keep = hidden_keep_mask(seed, site, tokens, z.shape[1], threshold)
    return keep.to(z.dtype) * dropout_scale(threshold)


def _composite_fwd(
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    position_ids: torch.Tensor,
    token_type_ids: torch.Tensor,
    word: torch.Tensor,
    position: torch.Tensor,
    token_type: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    seed: torch.Tensor | None,
    threshold: int,
    site: int,
    padding_idx: int,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd); the statistics (tokens, 1) are kept for the backward."""
    if input_ids is not None:
        _common.check_ids("input_ids", input_ids, word.shape[0])
    _common.check_ids("position_ids", position_ids, position.shape[0])
    _common.check_ids("token_type_ids", token_type_ids, token_type.shape[0])
    z = _sum(input_ids, inputs_embeds, position_ids, token_type_ids, word, position, token_type)
    y, mean, rstd = torch.native_layer_norm(
        z, (z.shape[1],), weight.to(z.dtype), bias.to(z.dtype), eps
    )
    if threshold:
        y = y * _scaled_mask(z, seed, threshold, site)
    return y.to(out_dtype), mean, rstd


_embedding_layer_norm_fwd = torch.library.custom_op(
    "spanbert_fast::embedding_layer_norm_fwd", _composite_fwd, mutates_args=()
)
register_cpu_kernel("embedding_layer_norm_fwd", _composite_fwd)
register_cuda_kernel("embedding_layer_norm_fwd", _composite_fwd)


@_embedding_layer_norm_fwd.register_fake
def _(
    input_ids,
    inputs_embeds,
    position_ids,
    token_type_ids,
    word,
    position,
    token_type,
    weight,
    bias,
    seed,
    threshold,
    site,
    padding_idx,
    eps,
    out_dtype,
):
    y = word.new_empty((position_ids.shape[0], word.shape[1]), dtype=out_dtype)
    statistics = word.new_empty((y.shape[0], 1), dtype=_common.opmath_dtype(word.dtype))
    return y, statistics, torch.empty_like(statistics)


def _composite_bwd(
    dy: torch.Tensor,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    position_ids: torch.Tensor,
    token_type_ids: torch.Tensor,
    word: torch.Tensor,
    position: torch.Tensor,
    token_type: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    seed: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    threshold: int,
    site: int,
    padding_idx: int,
) -> list[torch.Tensor]:
    """[dword or dinputs_embeds, dposition, dtoken_type, dweight, dbias]; tables' sums in fp32."""
    z = _sum(input_ids, inputs_embeds, position_ids, token_type_ids, word, position, token_type)
    dy = dy.to(z.dtype)
    if threshold:
        dy = dy * _scaled_mask(z, seed, threshold, site)
    dz, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy,
        z,
        (z.shape[1],),
        mean,
        rstd,
        weight.to(z.dtype),
        bias.to(z.dtype),
        [True, True, True],
    )

    def table_gradient(ids, table, padding_idx=-1):
        # sorts the ids on a GPU, goes through them in order on a CPU: deterministic on both
        return torch.ops.aten.embedding_dense_backward(
            dz, ids, table.shape[0], padding_idx, False
        ).to(table.dtype)

    if inputs_embeds is None:
        drows = table_gradient(input_ids, word, padding_idx)
    else:
        drows = dz.to(inputs_embeds.dtype, copy=True)
    return [
        drows,
        table_gradient(position_ids, position),
        table_gradient(token_type_ids, token_type),
        dweight.to(weight.dtype),
        dbias.to(bias.dtype),
    ]


_embedding_layer_norm_bwd = torch.library.custom_op(
    "spanbert_fast::embedding_layer_norm_bwd", _composite_bwd, mutates_args=()
)
register_cpu_kernel("embedding_layer_norm_bwd", _composite_bwd)
register_cuda_kernel("embedding_layer_norm_bwd", _composite_bwd)


@_embedding_layer_norm_bwd.register_fake
def _(dy, input_ids, inputs_embeds, position_ids, token_type_ids, word, *rest):
    rows = word if inputs_embeds is None else inputs_embeds
    position, token_type, weight, bias, *_ = rest
    return [t.new_empty(t.shape) for t in (rows, position, token_type, weight, bias)]


def _setup_context(ctx, inputs, output):
    *tensors, ctx.threshold, ctx.site, ctx.padding_idx, _eps, _out_dtype = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, mean, rstd)


def _backward(ctx, dy, _dmean, _drstd):
    if dy is None:
        return (None,) * 15
    saved = ctx.saved_tensors  # once: activation checkpointing unpacks no tensor twice
    gradients = _embedding_layer_norm_bwd(dy, *saved, ctx.threshold, ctx.site, ctx.padding_idx)
    drows, dposition, dtoken_type, dweight, dbias = gradients
    from_ids = saved[1] is None
    return (
        None,
        None if from_ids else drows,
        None,
        None,
        drows if from_ids else None,
        dposition,
        dtoken_type,
        dweight,
        dbias,
        *(None,) * 6,
    )


_embedding_layer_norm_fwd.register_autograd(_backward, setup_context=_setup_context)
