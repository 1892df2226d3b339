"""Triton kernels of `embedding_layer_norm`."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.column_sums import column_sums, split_rows
from spanbert_fast.kernels.hidden_dropout import keep_row, keep_scale
from spanbert_fast.kernels.rows import (
    contiguous,
    layer_norm_slope,
    load_row,
    row_options,
    row_statistics,
)


@triton.jit
def _table_row(table, ids, token, rows, column, fits, width):
    """Row ids[token] of a (rows, width) table; an id out of range gives NaN, which shows."""
    index = tl.load(ids + token)
    inside = (index >= 0) & (index < rows)
    value = tl.load(table + index * width + column, mask=fits & inside, other=0.0).to(tl.float32)
    return tl.where(inside, value, float("nan"))


@triton.jit
def _embedded(
    input_ids,
    position_ids,
    token_type_ids,
    word,
    position,
    token_type,
    words,
    positions,
    token_types,
    token,
    column,
    fits,
    width,
):
    """The sum of a token's rows, (BLOCK,) in fp32, 0 outside `fits`."""
    if input_ids is None:
        z = load_row(word, token * width + column, fits)
    else:
        z = _table_row(word, input_ids, token, words, column, fits, width)
    z += _table_row(position, position_ids, token, positions, column, fits, width)
    if token_type is not None:
        z += _table_row(token_type, token_type_ids, token, token_types, column, fits, width)
    return tl.where(fits, z, 0.0)


# with embeddings given in place of ids, `words` is their number of rows
@triton.jit(do_not_specialize=["words", "site"])
def _embedding_layer_norm_fwd_kernel(
    input_ids,
    position_ids,
    token_type_ids,
    word,
    position,
    token_type,
    weight,
    bias,
    seed,
    y,
    mean,
    rstd,
    words,
    positions,
    token_types,
    width,
    threshold,
    scale,
    site,
    eps,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """y = drop(LN(word[id] + position[p] + type[t]) weight + bias) scale, statistics in fp32.

    One program makes a token's row, whole in registers: (BLOCK,) with BLOCK >= width. Grid:
    (tokens,). May be None: input_ids (`word` has a row per token), token types, seed (no dropout).
    Bytes: a row of the word table read and y written once; positions and types come from the cache.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    fits = column < width
    z = _embedded(
        input_ids,
        position_ids,
        token_type_ids,
        word,
        position,
        token_type,
        words,
        positions,
        token_types,
        token,
        column,
        fits,
        width,
    )
    m, s = row_statistics(z, fits, width, eps)
    out = (z - m) * s * load_row(weight, column, fits) + load_row(bias, column, fits)
    if seed is not None:
        keep = keep_row(tl.load(seed), site, token, width, threshold, BLOCK, WHOLE)
        out = tl.where(keep, out * scale, 0.0)
    tl.store(y + token * width + column, out.to(y.dtype.element_ty), mask=fits)
    tl.store(mean + token, m)
    tl.store(rstd + token, s)


@triton.jit(do_not_specialize=["words", "tokens", "steps", "site"])
def _embedding_layer_norm_bwd_kernel(
    dy,
    input_ids,
    position_ids,
    token_type_ids,
    word,
    position,
    token_type,
    weight,
    seed,
    mean,
    rstd,
    dz,
    partial_weight,
    partial_bias,
    words,
    positions,
    token_types,
    tokens,
    width,
    steps,
    threshold,
    scale,
    site,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """dz = LN'(drop(dy) scale) in fp32; partial sums of dweight and dbias.

    The sum of the three rows is gathered again. One program goes down `steps` tokens, each row
    whole in registers, (BLOCK,). Grid: (parts,).
    Bytes: dy and a row of the word table read, dz (fp32) written once.
    """
    part = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    fits = column < width
    dweight = tl.zeros((BLOCK,), tl.float32)
    dbias = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        token = tl.minimum(part * steps + step, tokens - 1)  # the last part may be shorter
        inside = fits & (part * steps + step < tokens)
        z = _embedded(
            input_ids,
            position_ids,
            token_type_ids,
            word,
            position,
            token_type,
            words,
            positions,
            token_types,
            token,
            column,
            inside,
            width,
        )
        g = load_row(dy, token * width + column, inside)
        if seed is not None:
            keep = keep_row(tl.load(seed), site, token, width, threshold, BLOCK, WHOLE)
            g = tl.where(keep, g * scale, 0.0)
        w = load_row(weight, column, fits)  # reloaded from the cache to save registers
        d, normed = layer_norm_slope(
            g, z, w, tl.load(mean + token), tl.load(rstd + token), inside, width
        )
        dweight += g * normed
        dbias += g
        tl.store(dz + token * width + column, d.to(dz.dtype.element_ty), mask=inside)
    at = part * width + column
    tl.store(partial_weight + at, dweight, mask=fits)
    tl.store(partial_bias + at, dbias, mask=fits)


def embedding_layer_norm_fwd(inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd) of the op's `EmbeddingInputs`."""
    word, input_ids, position, position_ids, token_type, token_type_ids, *rest = inputs
    weight, bias, seed, threshold, site, _, eps, out_dtype = rest
    tokens, width = position_ids.shape[0], word.shape[1]
    y = torch.empty((tokens, width), dtype=out_dtype, device=word.device)
    mean = torch.empty((tokens, 1), dtype=torch.float32, device=word.device)
    rstd = torch.empty_like(mean)
    if y.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    tensors = (input_ids, position_ids, token_type_ids, word, position, token_type)
    _embedding_layer_norm_fwd_kernel[(tokens,)](
        *contiguous(*tensors, weight, bias, seed if threshold else None),
        y,
        mean,
        rstd,
        word.shape[0],
        position.shape[0],
        0 if token_type is None else token_type.shape[0],
        width,
        threshold,
        keep_scale(threshold),
        site,
        eps,
        WHOLE=width % 256 == 0,
        **row_options("embedding_layer_norm_fwd", word.device, width),
    )
    return y, mean, rstd


def _table_gradient(
    dz: torch.Tensor, ids: torch.Tensor, table: torch.Tensor, padding_idx: int = -1
) -> torch.Tensor:
    """Sums of dz's rows by id, in the order of a stable sort: deterministic, no host sync."""
    ids = ids.clamp(0, table.shape[0] - 1)  # an id out of range has made NaN and must not write
    sums = torch.ops.aten.embedding_dense_backward(dz, ids, table.shape[0], padding_idx, False)
    return sums.to(table.dtype)


def embedding_layer_norm_bwd(
    dy: torch.Tensor, inputs, mean: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """(dwords, dpositions, dtoken_types, dweight, dbias) of the op's `EmbeddingInputs`."""
    word, input_ids, position, position_ids, token_type, token_type_ids, *rest = inputs
    weight, bias, seed, threshold, site, padding_idx, _, _ = rest
    tokens, width = dy.shape
    dz = torch.empty(dy.shape, dtype=torch.float32, device=dy.device)
    dweight, dbias = (torch.empty(t.shape, dtype=t.dtype, device=dy.device) for t in (weight, bias))
    parts, steps = split_rows(tokens)
    partial = torch.empty((2, parts, width), dtype=torch.float32, device=dy.device)
    if dz.numel():
        tensors = (dy, input_ids, position_ids, token_type_ids)
        tables = (word, position, token_type, weight, seed if threshold else None)
        _embedding_layer_norm_bwd_kernel[(parts,)](
            *contiguous(*tensors, *tables, mean, rstd),
            dz,
            *partial,
            word.shape[0],
            position.shape[0],
            0 if token_type is None else token_type.shape[0],
            tokens,
            width,
            steps,
            threshold,
            keep_scale(threshold),
            site,
            WHOLE=width % 256 == 0,
            **row_options("embedding_layer_norm_bwd", dy.device, width),
        )
    column_sums(partial, dweight, dbias)
    if input_ids is None:
        dwords = dz.to(word.dtype, copy=True)
    else:
        dwords = _table_gradient(dz, input_ids, word, padding_idx)
    dpositions = _table_gradient(dz, position_ids, position)
    if token_type is None:
        dtoken_types = dz.new_empty(0)
    else:
        dtoken_types = _table_gradient(dz, token_type_ids, token_type)
    return dwords, dpositions, dtoken_types, dweight, dbias
