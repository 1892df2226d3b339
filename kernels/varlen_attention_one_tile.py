"""Triton kernel of `varlen_attention`, backward of sequences that fit one tile.

It computes the scores once for all three gradients (5 products); the formulas are those of
varlen_attention_backward.py.
"""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.attention_common import (
    LOG2_E,
    attention_tile,
    launch_options,
    load_rows,
    locate,
    token_and_head_strides,
)
from spanbert_fast.kernels.attention_dropout import drop, keep_words
from spanbert_fast.kernels.product import product


@triton.jit(do_not_specialize=["site"])
def _attention_one_tile_kernel(
    dout,
    q,
    k,
    v,
    out,
    lse,
    dq,
    dk,
    dv,
    cu_seqlens,
    seed,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    heads,
    site,
    scale,
    HEAD_DIM: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """dq, dk and dv of one head of one sequence of at most BLOCK tokens. Grid: (batch, heads).

    FLOPs: 10 length^2 head_dim. Bytes: eight matrices (length, head_dim), each once.
    """
    head, sequence, _, start, length = locate(cu_seqlens, None, 1, BLOCK)
    if length == 0:
        return
    KEEP_SCALE: tl.constexpr = 256 / (256 - THRESHOLD)
    row = tl.arange(0, BLOCK)
    token = start + row
    within = row < length
    inside = within[:, None] & (tl.arange(0, BLOCK_D) < HEAD_DIM)[None, :]
    q_tile = load_rows(q, token, q_stride, q_head_stride, head, inside, BLOCK_D)
    k_tile = load_rows(k, token, k_stride, k_head_stride, head, inside, BLOCK_D)
    v_tile = load_rows(v, token, v_stride, v_head_stride, head, inside, BLOCK_D)
    do = load_rows(dout, token, heads * HEAD_DIM, HEAD_DIM, head, inside, BLOCK_D)
    o = load_rows(out, token, heads * HEAD_DIM, HEAD_DIM, head, inside, BLOCK_D)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1) / KEEP_SCALE
    log2_sum = tl.load(lse + token * heads + head, mask=within, other=float("inf")) * LOG2_E

    scores = tl.zeros((BLOCK, BLOCK), tl.float32)
    # not by `kept_and_slope`: it gets its dropout words before the products, and would spill here
    dp = product(do, tl.trans(v_tile), scores, WIDEN)
    s = product(q_tile, tl.trans(k_tile), scores, WIDEN)  # (queries, keys)
    p = tl.exp2(s * (scale * LOG2_E) - log2_sum[:, None])
    p = tl.where(within[None, :], p, 0.0)
    kept = p
    if THRESHOLD:
        stream = (tl.load(seed), site, head, sequence)
        kept = drop(p, keep_words(0, 0, stream, THRESHOLD, BLOCK, BLOCK), False)
    ds = kept * dp - p * delta[:, None]
    kept, ds = kept.to(do.dtype), ds.to(q_tile.dtype)
    nothing = tl.zeros((BLOCK, BLOCK_D), tl.float32)

    at = (token * heads + head)[:, None] * HEAD_DIM + tl.arange(0, BLOCK_D)[None, :]
    dv_tile = product(tl.trans(kept), do, nothing, WIDEN) * KEEP_SCALE
    tl.store(dv + at, dv_tile.to(dv.dtype.element_ty), mask=inside)
    dk_tile = product(tl.trans(ds), q_tile, nothing, WIDEN) * (scale * KEEP_SCALE)
    tl.store(dk + at, dk_tile.to(dk.dtype.element_ty), mask=inside)
    dq_tile = product(ds, k_tile, nothing, WIDEN) * (scale * KEEP_SCALE)
    tl.store(dq + at, dq_tile.to(dq.dtype.element_ty), mask=inside)


def fits_one_tile(q: torch.Tensor, max_seqlen: int) -> bool:
    """Whether sequences of q (total, heads, head_dim) are short enough for this kernel."""
    return max_seqlen <= attention_tile("attention_one_tile", q, max_seqlen).blocks["BLOCK"]


def launch_attention_one_tile(
    dout: torch.Tensor, inputs, out: torch.Tensor, lse: torch.Tensor, gradients: list[torch.Tensor]
) -> None:
    """Fill [dq, dk, dv] (total, heads, head_dim); all contiguous, as dout, out and lse.

    inputs: the op's `AttentionInputs`, `readable`.
    """
    q, k, v, cu_seqlens, max_seqlen, scale, seed, threshold, site = inputs
    total, heads, head_dim = q.shape
    batch = len(cu_seqlens) - 1
    if min(total, heads, head_dim, batch) == 0:
        return
    t = attention_tile("attention_one_tile", q, max_seqlen)
    _attention_one_tile_kernel[(batch, heads)](
        dout,
        q,
        k,
        v,
        out,
        lse,
        *gradients,
        cu_seqlens,
        seed,
        *token_and_head_strides(q, k, v),
        heads,
        site,
        scale,
        **launch_options(q, threshold, t),
    )
