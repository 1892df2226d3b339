"""Triton kernels of `varlen_attention`, backward: no two programs add to one number.

With P = exp(S - lse), M the kept positions, r their scale and delta = sum_d dout out / r:

    dv = r (M P)^T dout      dS = M P (dout v^T) - P delta
    dq = r scale dS k        dk = r scale dS^T q

Sequences that fit one tile go to varlen_attention_one_tile.py, many short sequences to
varlen_attention_one_program.py. The others take two kernels, one over tiles of keys and one over
tiles of queries. These compute S and dP twice (7 products): to compute them once, programs would
have to share dq.
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
    readable,
    sequence_order,
    token_and_head_strides,
)
from spanbert_fast.kernels.attention_dropout import keep_words, keep_words_once
from spanbert_fast.kernels.attention_gradient import kept_and_slope
from spanbert_fast.kernels.product import product
from spanbert_fast.kernels.varlen_attention_one_program import (
    fits_one_program,
    launch_attention_one_program,
)
from spanbert_fast.kernels.varlen_attention_one_tile import fits_one_tile, launch_attention_one_tile


@triton.jit(do_not_specialize=["total"])
def _row_terms_kernel(
    out,
    dout,
    lse,
    log2_sums,
    delta,
    total,
    heads,
    HEAD_DIM: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """log2_sums = lse log2 e and delta = sum_d dout out / r, both (heads, total).

    One program takes ROWS tokens of one head. Grid: (total / ROWS, heads). Bytes: out and dout
    read.
    """
    head = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    inside = (token < total)[:, None] & (d < HEAD_DIM)[None, :]
    o = load_rows(out, token, heads * HEAD_DIM, HEAD_DIM, head, inside, BLOCK_D).to(tl.float32)
    do = load_rows(dout, token, heads * HEAD_DIM, HEAD_DIM, head, inside, BLOCK_D).to(tl.float32)
    KEEP_SCALE: tl.constexpr = 256 / (256 - THRESHOLD)
    row = tl.load(lse + token * heads + head, mask=token < total, other=0.0)
    at = head * total + token
    tl.store(log2_sums + at, row * LOG2_E, mask=token < total)
    tl.store(delta + at, tl.sum(o * do, 1) / KEEP_SCALE, mask=token < total)


@triton.jit(do_not_specialize=["total", "tiles", "site"])
def _attention_dk_dv_kernel(
    dout,
    q,
    k,
    v,
    log2_sums,
    delta,
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
    tiles,
    site,
    scale,
    HEAD_DIM: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """dk and dv of BLOCK_N keys of one head, over BLOCK_M queries at a time.

    Scores are transposed, (keys, queries), so that P^T and dS^T lie in registers as the left
    factors of dv and dk. Grid: (batch * tiles, heads). FLOPs: 8 length^2 head_dim.
    """
    head, sequence, first_key, start, length = locate(cu_seqlens, order, tiles, BLOCK_N)
    if first_key >= length:
        return
    KEEP_SCALE: tl.constexpr = 256 / (256 - THRESHOLD)
    stream = (tl.load(seed), site, head, sequence) if THRESHOLD else None
    fits = (tl.arange(0, BLOCK_D) < HEAD_DIM)[None, :]
    key = first_key + tl.arange(0, BLOCK_N)
    inside = (key < length)[:, None] & fits
    k_tile = load_rows(k, start + key, k_stride, k_head_stride, head, inside, BLOCK_D)
    v_tile = load_rows(v, start + key, v_stride, v_head_stride, head, inside, BLOCK_D)
    dk_tile = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv_tile = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    row_terms = head * total + start
    for first_query in range(0, length, BLOCK_M):
        query = first_query + tl.arange(0, BLOCK_M)
        within = query < length
        of_query = within[:, None] & fits
        q_tile = load_rows(q, start + query, q_stride, q_head_stride, head, of_query, BLOCK_D)
        do = load_rows(dout, start + query, heads * HEAD_DIM, HEAD_DIM, head, of_query, BLOCK_D)
        # past the end P = exp2(-inf) = 0
        log2_sum = tl.load(log2_sums + row_terms + query, mask=within, other=float("inf"))
        d_row = tl.load(delta + row_terms + query, mask=within, other=0.0)
        words = None
        if THRESHOLD:
            words = keep_words_once(first_query, first_key, stream, THRESHOLD, BLOCK_M, BLOCK_N)
        kept, ds = kept_and_slope(
            (k_tile, q_tile),
            (v_tile, do),
            (log2_sum[None, :], d_row[None, :]),
            None,
            words,
            scale,
            True,
            WIDEN,
        )
        dv_tile = product(kept.to(do.dtype), do, dv_tile, WIDEN)
        dk_tile = product(ds.to(q_tile.dtype), q_tile, dk_tile, WIDEN)
    at = ((start + key) * heads + head)[:, None] * HEAD_DIM + tl.arange(0, BLOCK_D)[None, :]
    tl.store(dk + at, (dk_tile * (scale * KEEP_SCALE)).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + at, (dv_tile * KEEP_SCALE).to(dv.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total", "tiles", "site"])
def _attention_dq_kernel(
    dout,
    q,
    k,
    v,
    log2_sums,
    delta,
    dq,
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
    tiles,
    site,
    scale,
    HEAD_DIM: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """dq of BLOCK_M queries of one head, over BLOCK_N keys at a time.

    Grid: (batch * tiles, heads). FLOPs: 6 length^2 head_dim.
    """
    head, sequence, first_query, start, length = locate(cu_seqlens, order, tiles, BLOCK_M)
    if first_query >= length:
        return
    KEEP_SCALE: tl.constexpr = 256 / (256 - THRESHOLD)
    stream = (tl.load(seed), site, head, sequence) if THRESHOLD else None
    fits = (tl.arange(0, BLOCK_D) < HEAD_DIM)[None, :]
    query = first_query + tl.arange(0, BLOCK_M)
    within = query < length
    inside = within[:, None] & fits
    q_tile = load_rows(q, start + query, q_stride, q_head_stride, head, inside, BLOCK_D)
    do = load_rows(dout, start + query, heads * HEAD_DIM, HEAD_DIM, head, inside, BLOCK_D)
    row_terms = head * total + start + query
    log2_sum = tl.load(log2_sums + row_terms, mask=within, other=float("inf"))
    d_row = tl.load(delta + row_terms, mask=within, other=0.0)
    dq_tile = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first_key in range(0, length, BLOCK_N):
        key = first_key + tl.arange(0, BLOCK_N)
        of_key = (key < length)[:, None] & fits
        k_tile = load_rows(k, start + key, k_stride, k_head_stride, head, of_key, BLOCK_D)
        v_tile = load_rows(v, start + key, v_stride, v_head_stride, head, of_key, BLOCK_D)
        words = None
        if THRESHOLD:
            words = keep_words(first_query, first_key, stream, THRESHOLD, BLOCK_M, BLOCK_N)
        _, ds = kept_and_slope(
            (q_tile, k_tile),
            (do, v_tile),
            (log2_sum[:, None], d_row[:, None]),
            (key < length)[None, :],
            words,
            scale,
            False,
            WIDEN,
        )
        dq_tile = product(ds.to(k_tile.dtype), k_tile, dq_tile, WIDEN)
    at = ((start + query) * heads + head)[:, None] * HEAD_DIM + tl.arange(0, BLOCK_D)[None, :]
    tl.store(dq + at, (dq_tile * (scale * KEEP_SCALE)).to(dq.dtype.element_ty), mask=inside)


def launch_tiled_bwd(
    dout: torch.Tensor, inputs, out: torch.Tensor, lse: torch.Tensor, gradients: list[torch.Tensor]
) -> None:
    """Fill [dq, dk, dv] (total, heads, head_dim); all contiguous, as dout, out and lse.

    inputs: the op's `AttentionInputs`, `readable`.
    """
    q, k, v, cu_seqlens, max_seqlen, scale, seed, threshold, site = inputs
    total, heads, head_dim = q.shape
    batch = len(cu_seqlens) - 1
    if min(total, heads, head_dim, batch, max_seqlen) == 0:
        return
    dq, dk, dv = gradients
    terms = [torch.empty((heads, total), dtype=torch.float32, device=q.device) for _ in range(2)]
    rows = 128 // q.element_size()
    _row_terms_kernel[(triton.cdiv(total, rows), heads)](
        out,
        dout,
        lse,
        *terms,
        total,
        heads,
        HEAD_DIM=head_dim,
        THRESHOLD=threshold,
        ROWS=rows,
        BLOCK_D=head_block(head_dim),
        num_warps=4,
    )
    order = sequence_order(cu_seqlens)
    for name, kernel, outputs, side in (
        ("attention_dk_dv", _attention_dk_dv_kernel, (dk, dv), "BLOCK_N"),
        ("attention_dq", _attention_dq_kernel, (dq,), "BLOCK_M"),
    ):
        t = attention_tile(name, q, max_seqlen)
        tiles = triton.cdiv(max_seqlen, t.blocks[side])
        kernel[(batch * tiles, heads)](
            dout,
            q,
            k,
            v,
            *terms,
            *outputs,
            cu_seqlens,
            order,
            seed,
            *token_and_head_strides(q, k, v),
            total,
            heads,
            tiles,
            site,
            scale,
            **launch_options(q, threshold, t),
        )


def varlen_attention_bwd(
    dout: torch.Tensor, inputs, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv) of the op's `AttentionInputs`; the same bits in every run."""
    q, scale = inputs.q, inputs.scale
    gradients = [torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3)]
    inputs = readable(inputs)
    if fits_one_tile(q, inputs.max_seqlen):
        launch = launch_attention_one_tile
    elif fits_one_program(q, inputs.max_seqlen):
        launch = launch_attention_one_program
    else:
        launch = launch_tiled_bwd
    launch(dout.contiguous(), inputs, out.contiguous(), lse.contiguous(), gradients)
    dq, dk, dv = gradients
    return dq if inputs.scale == scale else dq.mul_(scale), dk, dv
