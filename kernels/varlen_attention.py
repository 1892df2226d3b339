"""Triton kernel of `varlen_attention`, forward; the backward is in varlen_attention_backward.py."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.attention_common import (
    LOG2_E,
    attention_tile,
    launch_options,
    load_rows,
    locate,
    readable,
    sequence_order,
    token_and_head_strides,
)
from spanbert_fast.kernels.attention_dropout import drop, drop_pairs, keep_words
from spanbert_fast.kernels.product import product
from spanbert_fast.kernels.varlen_attention_backward import varlen_attention_bwd

__all__ = ["varlen_attention_bwd", "varlen_attention_fwd"]


@triton.jit
def _attend_to_tile(
    softmax,
    queries,
    keys,
    first_key,
    scale,
    stream,
    HEAD_DIM: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LAST: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One step of the online softmax (arXiv 1805.02867): a tile of BLOCK_N keys and values.

    softmax is (sum of P v, largest score, sum of P), which is returned anew; queries is (tile,
    first row), keys is (k, v, their strides, length). LAST: the tile may pass the sequence's end.
    """
    acc, high, total = softmax
    q_tile, first_query = queries
    k, v, k_stride, v_stride, length = keys
    BLOCK_M: tl.constexpr = q_tile.shape[0]
    BLOCK_D: tl.constexpr = q_tile.shape[1]
    key = first_key + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    inside = (d < HEAD_DIM)[None, :]
    if LAST:
        inside = inside & (key < length)[:, None]
    # (BLOCK_N, BLOCK_D)
    k_at = key.to(tl.int64)[:, None] * k_stride + d[None, :]
    v_at = key.to(tl.int64)[:, None] * v_stride + d[None, :]
    if LAST or HEAD_DIM != BLOCK_D:
        k_tile = tl.load(k + k_at, mask=inside, other=0.0)
        v_tile = tl.load(v + v_at, mask=inside, other=0.0)
    else:
        k_tile = tl.load(k + k_at)
        v_tile = tl.load(v + v_at)
    s = product(q_tile, tl.trans(k_tile), tl.zeros((BLOCK_M, BLOCK_N), tl.float32), WIDEN)
    if LAST:
        s = tl.where((key < length)[None, :], s, float("-inf"))
    new_high = tl.maximum(high, tl.max(s, 1) * (scale * LOG2_E))
    p = tl.exp2(s * (scale * LOG2_E) - new_high[:, None])
    shrink = tl.exp2(high - new_high)
    total = total * shrink + tl.sum(p, 1)
    acc = acc * shrink[:, None]
    if THRESHOLD:
        words = keep_words(first_query, first_key, stream, THRESHOLD, BLOCK_M, BLOCK_N)
        if WIDEN or v_tile.dtype == tl.float32:
            p = drop(p, words, False).to(v_tile.dtype)
        else:
            p = drop_pairs(p.to(v_tile.dtype), words)
    return product(p.to(v_tile.dtype), v_tile, acc, WIDEN), new_high, total


@triton.jit(do_not_specialize=["tiles", "site"])
def _varlen_attention_fwd_kernel(
    q,
    k,
    v,
    out,
    lse,
    cu_seqlens,
    order,
    seed,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    heads,
    tiles,
    site,
    scale,
    HEAD_DIM: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_TILE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """out = (M softmax(q k^T)) v and lse = log sum exp(q k^T) within a sequence (arXiv 2205.14135).

    One program computes BLOCK_M queries of one head of one sequence, over BLOCK_N keys at a time;
    with ONE_TILE all keys are one tile. Grid: (batch * tiles, heads), a sequence's tiles side by
    side; programs past its end stop at once. FLOPs: 4 length^2 head_dim.
    May be None: order (sequences as they come), seed (no dropout).
    """
    head, sequence, first_query, start, length = locate(cu_seqlens, order, tiles, BLOCK_M)
    if first_query >= length:
        return
    stream = (tl.load(seed), site, head, sequence) if THRESHOLD else None
    query = first_query + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    inside = (query < length)[:, None] & (d < HEAD_DIM)[None, :]  # (BLOCK_M, BLOCK_D)
    token = start + query
    q_tile = load_rows(q, token, q_stride, q_head_stride, head, inside, BLOCK_D)
    k += start * k_stride + head * k_head_stride
    v += start * v_stride + head * v_head_stride
    queries = (q_tile, first_query)
    keys = (k, v, k_stride, v_stride, length)
    softmax = (
        tl.zeros((BLOCK_M, BLOCK_D), tl.float32),
        tl.full((BLOCK_M,), float("-inf"), tl.float32),
        tl.zeros((BLOCK_M,), tl.float32),
    )
    # fp32 has too few registers for two copies of the step
    PEELED: tl.constexpr = q_tile.dtype != tl.float32 and not ONE_TILE
    last = 0
    if PEELED:
        last = (length - 1) // BLOCK_N * BLOCK_N
        for key in range(0, last, BLOCK_N):
            softmax = _attend_to_tile(
                softmax,
                queries,
                keys,
                key,
                scale,
                stream,
                HEAD_DIM,
                THRESHOLD,
                BLOCK_N,
                False,
                WIDEN,
            )
    if ONE_TILE or PEELED:
        softmax = _attend_to_tile(
            softmax, queries, keys, last, scale, stream, HEAD_DIM, THRESHOLD, BLOCK_N, True, WIDEN
        )
    else:
        for key in range(0, length, BLOCK_N):
            softmax = _attend_to_tile(
                softmax,
                queries,
                keys,
                key,
                scale,
                stream,
                HEAD_DIM,
                THRESHOLD,
                BLOCK_N,
                True,
                WIDEN,
            )
    acc, high, total = softmax
    KEEP_SCALE: tl.constexpr = 256 / (256 - THRESHOLD)
    value = acc * (KEEP_SCALE / total)[:, None]
    out_at = (token * heads + head)[:, None] * HEAD_DIM + d[None, :]
    tl.store(out + out_at, value.to(out.dtype.element_ty), mask=inside)
    tl.store(lse + token * heads + head, (high + tl.log2(total)) / LOG2_E, mask=query < length)


def launch_varlen_attention_fwd(inputs, out: torch.Tensor, lse: torch.Tensor) -> None:
    """Fill out (total, heads, head_dim) and lse (total, heads) fp32, both contiguous.

    inputs: the op's `AttentionInputs`, `readable`.
    """
    q, k, v, cu_seqlens, max_seqlen, scale, seed, threshold, site = inputs
    total, heads, _ = q.shape
    batch = len(cu_seqlens) - 1
    if min(total, heads, batch, max_seqlen) == 0:
        return
    t = attention_tile("varlen_attention_fwd", q, max_seqlen)
    tiles = triton.cdiv(max_seqlen, t.blocks["BLOCK_M"])
    one_tile = max_seqlen <= t.blocks["BLOCK_N"]
    _varlen_attention_fwd_kernel[(batch * tiles, heads)](
        q,
        k,
        v,
        out,
        lse,
        cu_seqlens,
        None if one_tile else sequence_order(cu_seqlens),
        seed,
        *token_and_head_strides(q, k, v),
        heads,
        tiles,
        site,
        scale,
        ONE_TILE=one_tile,
        **launch_options(q, threshold, t),
    )


def varlen_attention_fwd(inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) of the op's `AttentionInputs`; q, k and v may be views of one tensor."""
    q = inputs.q
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    launch_varlen_attention_fwd(readable(inputs), out, lse)
    return out, lse
