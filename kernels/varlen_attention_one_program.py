"""Triton kernel of `varlen_attention`, backward: one program for a head of a short sequence.

It computes the scores once for all three gradients (5 products); the formulas are those of
varlen_attention_backward.py.
"""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.attention_common import (
    LOG2_E,
    attention_tile,
    head_block,
    launch_options,
    load_rows,
    locate,
    sequence_order,
    token_and_head_strides,
)
from spanbert_fast.kernels.attention_dropout import keep_words_once
from spanbert_fast.kernels.attention_gradient import kept_and_slope
from spanbert_fast.kernels.product import product

# about two per multiprocessor; below that, one program per tile fills the chip better
ENOUGH_PROGRAMS = 256


@triton.jit(do_not_specialize=["scratch_blocks", "site"])
def _attention_one_program_kernel(
    dout,
    q,
    k,
    v,
    out,
    lse,
    terms,
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
    scratch_blocks,
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

    The outer loop goes over BLOCK_N keys, whose dk and dv stay in registers, the inner loop over
    BLOCK_M queries, whose dq is summed in `sums`, in the L2 cache. No other program adds there, and
    the order is fixed: every run gives the same bits. Scores are transposed, (keys, queries).

    terms (lse log2 e of a block, then its delta) and sums are scratch in whole blocks of BLOCK_M
    rows, scratch_blocks per head. A sequence has its own blocks, so that the inner loop is aligned
    and needs no masks.
    """
    head, sequence, _, start, length = locate(cu_seqlens, order, 1, BLOCK_N)
    KEEP_SCALE: tl.constexpr = 256 / (256 - THRESHOLD)
    stream = (tl.load(seed), site, head, sequence) if THRESHOLD else None
    row = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    fits = (d < HEAD_DIM)[None, :]
    token_stride = heads * HEAD_DIM  # of out, dout and the gradients
    q += start * q_stride + head * q_head_stride
    dout += start * token_stride + head * HEAD_DIM
    out += start * token_stride + head * HEAD_DIM
    lse += start * heads + head
    # floor(a / M) + ceil(b / M) <= floor((a + b) / M) + 1: no two sequences share a block
    scratch = (head * scratch_blocks + start // BLOCK_M + sequence) * BLOCK_M
    terms += 2 * scratch
    sums += scratch * BLOCK_D
    q_at = row[:, None] * q_stride + d[None, :]
    out_at = row[:, None] * token_stride + d[None, :]
    sums_at = row[:, None] * BLOCK_D + d[None, :]
    nothing = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)

    for first in range(0, length, BLOCK_M):
        within = row < length - first
        inside = within[:, None] & fits
        o = tl.load(out + first * token_stride + out_at, mask=inside, other=0.0).to(tl.float32)
        do = tl.load(dout + first * token_stride + out_at, mask=inside, other=0.0).to(tl.float32)
        # past the end P = exp2(-inf) = 0
        log2_sum = tl.load(lse + (first + row) * heads, mask=within, other=float("inf")) * LOG2_E
        tl.store(terms + 2 * first + row, log2_sum)
        tl.store(terms + 2 * first + BLOCK_M + row, tl.sum(o * do, 1) / KEEP_SCALE)
        tl.store(sums + first * BLOCK_D + sums_at, nothing)
    tl.debug_barrier()

    for first_key in range(0, length, BLOCK_N):
        # read again here, since a value that lives through the inner loop takes registers from it
        start = tl.load(cu_seqlens + sequence).to(tl.int64)
        key = first_key + tl.arange(0, BLOCK_N)
        inside = (key < length)[:, None] & fits
        k_tile = load_rows(k, start + key, k_stride, k_head_stride, head, inside, BLOCK_D)
        v_tile = load_rows(v, start + key, v_stride, v_head_stride, head, inside, BLOCK_D)
        dk_tile = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        dv_tile = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for first_query in range(0, length, BLOCK_M):
            of_query = (row < length - first_query)[:, None] & fits
            q_tile = tl.load(q + first_query * q_stride + q_at, mask=of_query, other=0.0)
            do = tl.load(dout + first_query * token_stride + out_at, mask=of_query, other=0.0)
            log2_sum = tl.load(terms + 2 * first_query + row)
            delta = tl.load(terms + 2 * first_query + BLOCK_M + row)
            words = None
            if THRESHOLD:
                words = keep_words_once(first_query, first_key, stream, THRESHOLD, BLOCK_M, BLOCK_N)
            kept, ds = kept_and_slope(
                (k_tile, q_tile),
                (v_tile, do),
                (log2_sum[None, :], delta[None, :]),
                None,
                words,
                scale,
                True,
                WIDEN,
            )
            ds = ds.to(q_tile.dtype)
            dv_tile = product(kept.to(do.dtype), do, dv_tile, WIDEN)
            dk_tile = product(ds, q_tile, dk_tile, WIDEN)
            dq_tile = product(tl.trans(ds), k_tile, nothing, WIDEN)
            tl.atomic_add(sums + first_query * BLOCK_D + sums_at, dq_tile, sem="relaxed")
        start = tl.load(cu_seqlens + sequence).to(tl.int64)
        at = ((start + key) * heads + head)[:, None] * HEAD_DIM + d[None, :]
        tl.store(dk + at, (dk_tile * (scale * KEEP_SCALE)).to(dk.dtype.element_ty), mask=inside)
        tl.store(dv + at, (dv_tile * KEEP_SCALE).to(dv.dtype.element_ty), mask=inside)
    tl.debug_barrier()

    start = tl.load(cu_seqlens + sequence).to(tl.int64)
    dq += start * token_stride + head * HEAD_DIM
    for first in range(0, length, BLOCK_M):
        inside = (row < length - first)[:, None] & fits
        # .cg reads from L2, where the additions were made
        x = tl.load(sums + first * BLOCK_D + sums_at, mask=inside, other=0.0, cache_modifier=".cg")
        x *= scale * KEEP_SCALE
        tl.store(dq + first * token_stride + out_at, x.to(dq.dtype.element_ty), mask=inside)


def fits_one_program(q: torch.Tensor, max_seqlen: int) -> bool:
    """Whether there is a tile for q (total, heads, head_dim) and enough programs for the chip.

    total / max_seqlen is the least number of sequences that are not empty. Empty ones, which fill
    a batch of fixed shape, have a program without work.
    """
    tile = attention_tile("attention_one_program", q, max_seqlen)
    total, heads, _ = q.shape
    return tile.blocks["BLOCK_N"] > 0 and triton.cdiv(total, max_seqlen) * heads >= ENOUGH_PROGRAMS


def launch_attention_one_program(
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
    t = attention_tile("attention_one_program", q, max_seqlen)
    scratch_blocks = total // t.blocks["BLOCK_M"] + batch
    scratch_rows = heads * scratch_blocks * t.blocks["BLOCK_M"]
    terms = torch.empty((2 * scratch_rows,), dtype=torch.float32, device=q.device)
    sums = terms.new_empty((scratch_rows, head_block(head_dim)))
    _attention_one_program_kernel[(batch, heads)](
        dout,
        q,
        k,
        v,
        out,
        lse,
        terms,
        sums,
        *gradients,
        cu_seqlens,
        sequence_order(cu_seqlens),
        seed,
        *token_and_head_strides(q, k, v),
        scratch_blocks,
        heads,
        site,
        scale,
        **launch_options(q, threshold, t),
    )
