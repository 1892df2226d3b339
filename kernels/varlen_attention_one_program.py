"""Triton kernel of `varlen_attention`, backward of a short sequence's head by one program.

All three gradients come from one look at the scores (5 products); the formulas are those of
varlen_attention_backward.py.
"""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.attention_common import (
    LOG2_E,
    attention_tile,
    head_block,
    load_rows,
    locate,
    sequence_order,
    token_and_head_strides,
)
from spanbert_fast.kernels.attention_dropout import drop, keep_words_once
from spanbert_fast.kernels.product import product

# about two for each multiprocessor; with fewer, tiles of a sequence fill the chip better
ENOUGH_PROGRAMS = 256


@triton.jit(do_not_specialize=["total", "site"])
def _attention_one_program_kernel(
    dout,
    q,
    k,
    v,
    out,
    lse,
    log2_sums,
    delta,
    sums,
    dq,
    dk,
    dv,
    cu_seqlens,
    order,
    seed,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    total,
    heads,
    site,
    scale,
    HEAD_DIM: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """dq, dk and dv of one head of one sequence. Grid: (batch, heads). FLOPs: 10 length^2 head_dim.

    Outside go BLOCK_N keys, whose dk and dv stay in registers; inside BLOCK_M queries, whose dq is
    added to in `sums`, which stays in the L2 cache. No other program adds to it, and always in the
    same order: the same bits in every run. Scores are transposed, (keys, queries).
    """
    head = tl.program_id(1)
    sequence, _, start, length = locate(cu_seqlens, order, 1, BLOCK_N)
    KEPT: tl.constexpr = 256 / (256 - THRESHOLD)
    stream = (tl.load(seed), site, head, sequence) if THRESHOLD else None
    row = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    fits = (d < HEAD_DIM)[None, :]
    token_stride = heads * HEAD_DIM  # of out, dout and the gradients
    q += start * q_stride + head * q_head_stride
    dout += start * token_stride + head * HEAD_DIM
    out += start * token_stride + head * HEAD_DIM
    dq += start * token_stride + head * HEAD_DIM
    lse += start * heads + head
    log2_sums += head.to(tl.int64) * total + start
    delta += head.to(tl.int64) * total + start
    sums += (head.to(tl.int64) * total + start) * BLOCK_D
    q_at = row[:, None] * q_stride + d[None, :]
    out_at = row[:, None] * token_stride + d[None, :]
    sums_at = row[:, None] * BLOCK_D + d[None, :]
    nothing = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)

    for first in range(0, length, BLOCK_M):
        within = row < length - first
        inside = within[:, None] & fits
        o = tl.load(out + first * token_stride + out_at, mask=inside, other=0.0).to(tl.float32)
        do = tl.load(dout + first * token_stride + out_at, mask=inside, other=0.0).to(tl.float32)
        log2_sum = tl.load(lse + (first + row) * heads, mask=within, other=0.0) * LOG2_E
        tl.store(log2_sums + first + row, log2_sum, mask=within)
        tl.store(delta + first + row, tl.sum(o * do, 1) / KEPT, mask=within)
        tl.store(sums + first * BLOCK_D + sums_at, nothing, mask=inside)
    tl.debug_barrier()

    for first_key in range(0, length, BLOCK_N):
        key = first_key + tl.arange(0, BLOCK_N)
        inside = (key < length)[:, None] & fits
        k_tile = load_rows(k, start + key, k_stride, k_head_stride, head, inside, BLOCK_D)
        v_tile = load_rows(v, start + key, v_stride, v_head_stride, head, inside, BLOCK_D)
        dk_tile = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        dv_tile = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for first_query in range(0, length, BLOCK_M):
            within = row < length - first_query
            of_query = within[:, None] & fits
            q_tile = tl.load(q + first_query * q_stride + q_at, mask=of_query, other=0.0)
            do = tl.load(dout + first_query * token_stride + out_at, mask=of_query, other=0.0)
            # past the end P = exp2(-inf) = 0
            log2_sum = tl.load(log2_sums + first_query + row, mask=within, other=float("inf"))
            d_row = tl.load(delta + first_query + row, mask=within, other=0.0)
            scores = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            s = product(k_tile, tl.trans(q_tile), scores, WIDEN)  # (keys, queries)
            p = tl.exp2(s * (scale * LOG2_E) - log2_sum[None, :])
            kept = p
            if THRESHOLD:
                words = keep_words_once(first_query, first_key, stream, THRESHOLD, BLOCK_M, BLOCK_N)
                kept = drop(p, words, True)
            dp = product(v_tile, tl.trans(do), scores, WIDEN)
            ds = (kept * dp - p * d_row[None, :]).to(q_tile.dtype)
            dv_tile = product(kept.to(do.dtype), do, dv_tile, WIDEN)
            dk_tile = product(ds, q_tile, dk_tile, WIDEN)
            dq_tile = product(tl.trans(ds), k_tile, nothing, WIDEN)
            here = sums + first_query * BLOCK_D + sums_at
            tl.atomic_add(here, dq_tile, mask=of_query, sem="relaxed")
        at = ((start + key) * heads + head)[:, None] * HEAD_DIM + d[None, :]
        tl.store(dk + at, (dk_tile * (scale * KEPT)).to(dk.dtype.element_ty), mask=inside)
        tl.store(dv + at, (dv_tile * KEPT).to(dv.dtype.element_ty), mask=inside)
    tl.debug_barrier()

    for first in range(0, length, BLOCK_M):
        inside = (row < length - first)[:, None] & fits
        # .cg: from L2, where the additions were made
        x = tl.load(sums + first * BLOCK_D + sums_at, mask=inside, other=0.0, cache_modifier=".cg")
        x *= scale * KEPT
        tl.store(dq + first * token_stride + out_at, x.to(dq.dtype.element_ty), mask=inside)


def fits_one_program(q: torch.Tensor, batch: int, max_seqlen: int) -> bool:
    """Whether this kernel has a tile for q (total, heads, head_dim) and programs for the chip."""
    tile = attention_tile("attention_one_program", q, max_seqlen)
    return tile.blocks["BLOCK_N"] > 0 and batch * q.shape[1] >= ENOUGH_PROGRAMS


def launch_attention_one_program(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    seed: torch.Tensor | None,
    threshold: int,
    site: int,
) -> None:
    """Into given dq, dk, dv (total, heads, head_dim), contiguous, as dout and out are."""
    total, heads, head_dim = q.shape
    batch = len(cu_seqlens) - 1
    if min(total, heads, head_dim, batch) == 0:
        return
    t = attention_tile("attention_one_program", q, max_seqlen)
    block_d = head_block(head_dim)
    terms = [torch.empty((heads, total), dtype=torch.float32, device=q.device) for _ in range(2)]
    sums = torch.empty((heads, total, block_d), dtype=torch.float32, device=q.device)
    _attention_one_program_kernel[(batch, heads)](
        dout,
        q,
        k,
        v,
        out,
        lse,
        *terms,
        sums,
        dq,
        dk,
        dv,
        cu_seqlens,
        sequence_order(cu_seqlens),
        seed,
        *token_and_head_strides(q, k, v),
        total,
        heads,
        site,
        scale,
        HEAD_DIM=head_dim,
        THRESHOLD=threshold,
        **t.blocks,
        BLOCK_D=block_d,
        WIDEN=q.device.type == "cpu",
        num_warps=t.num_warps,
        num_stages=t.num_stages,
    )
