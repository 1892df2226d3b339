"""Triton kernel of `linear_cross_entropy`, backward.

It makes D = dl (softmax - onehot) for a chunk of the vocabulary at a time, in the dtype of the
inputs, and leaves dX = D W and dW = D^T X to the BLAS. The products cost 6 rows width vocab FLOPs;
beside them D's traffic of 4 bytes per score is small (width >= 768: a hundredth of the time).
"""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.column_sums import column_sums
from spanbert_fast.kernels.linear_cross_entropy_common import (
    options,
    pairs,
    rows_of,
    scores,
    whole_blocks,
)
from spanbert_fast.kernels.tile_config import tile_for

_CHUNK_BYTES = 96 << 20  # of D at once: three chunks for 4,896 rows of a vocabulary of 28,996


@triton.jit(
    do_not_specialize=["first_rows", "rows", "all_rows", "entries"],
    # slices of a pair of groups, which may begin at any row
    do_not_specialize_on_alignment=["targets", "lse", "dlosses"],
)
def _score_gradient_kernel(
    x,
    weight,
    bias,
    targets,
    lse,
    dlosses,
    d,
    partial,
    first_rows,
    rows,
    all_rows,
    entries,
    first,
    vocab,
    width,
    stride,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """D = dl (exp(x weight^T + bias - lse) - onehot(target)) of a chunk of `vocab` entries.

    weight and bias are the chunk's, which begins at entry `first`; lse is (2, all_rows), max and
    log of the sum. One program makes a (BLOCK_M, BLOCK_N) tile of D and its sum down the rows, in
    fp32. The rows are those of two groups, of which the first has first_rows; their biases are
    `entries` apart. Grid: (tiles of rows, vocab / BLOCK_N). FLOPs: 2 rows width vocab.
    """
    tile = tl.program_id(0)
    row, rows, group = rows_of(tile, first_rows, rows, BLOCK_M)
    bias += group * entries
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    s = scores(x, weight, row, column, rows, vocab, width, WIDEN, BLOCK_K)
    s += tl.load(bias + tl.minimum(column, vocab - 1)).to(tl.float32)[None, :]
    high = tl.load(lse + row, mask=row < rows, other=0.0)
    logarithm = tl.load(lse + all_rows + row, mask=row < rows, other=0.0)
    target = tl.load(targets + row, mask=row < rows, other=-1) - first
    dl = tl.load(dlosses + row, mask=row < rows, other=0.0).to(tl.float32)
    p = tl.exp((s - high[:, None]) - logarithm[:, None])
    p = tl.where(column[None, :] == target[:, None], p - 1.0, p)
    inside = (row < rows)[:, None] & (column < vocab)[None, :]
    p = tl.where(inside, p * dl[:, None], 0.0)
    at = row.to(tl.int64)[:, None] * stride + column[None, :]
    # the stride holds whole tiles: a mask by column would split the stores
    tl.store(d + at, p.to(d.dtype.element_ty), mask=(row < rows)[:, None])
    sums = partial + tile.to(tl.int64) * stride + column
    tl.store(sums, tl.sum(p, 0), mask=column < vocab)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in fp32, on a GPU straight from the accumulators."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def linear_cross_entropy_bwd(
    dlosses: torch.Tensor, inputs, lse: torch.Tensor, saved: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dhidden, dweight, dbias), summed in fp32, of the op's `LossInputs`."""
    hidden, weight, bias, targets, group_sizes, _, _ = inputs
    rows, vocab = hidden.shape[0], weight.shape[0]
    dweight, dbias = (torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in (weight, bias))
    dhidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    if rows == 0 or vocab == 0:
        return dhidden.to(hidden.dtype), dweight, dbias
    hidden, targets, bias, lse, dlosses = (
        t.contiguous() for t in (hidden, targets, bias, lse, dlosses)
    )
    t = tile_for("score_gradient", hidden.device, itemsize=hidden.element_size())
    block_m, block_n = t.blocks["BLOCK_M"], t.blocks["BLOCK_N"]
    fitting = _CHUNK_BYTES // (hidden.element_size() * rows) // block_n * block_n
    # a stride of whole tiles: rows of D start aligned whatever the size of the vocabulary
    stride = min(max(fitting, block_n), triton.cdiv(vocab, block_n) * block_n)
    d = torch.empty((rows, stride), dtype=hidden.dtype, device=hidden.device)
    x = whole_blocks(hidden, t)
    for first in range(0, vocab, stride):
        entries = slice(first, min(first + stride, vocab))
        w = weight[entries].to(hidden.dtype).contiguous()
        w_blocks = whole_blocks(w, t)
        for pair in pairs(group_sizes):
            r, count, tiles = pair.rows, w.shape[0], pair.tiles(block_m)
            grid = (sum(tiles), triton.cdiv(count, block_n))
            partial = torch.empty((grid[0], stride), dtype=torch.float32, device=w.device)
            _score_gradient_kernel[grid](
                x[r],
                w_blocks,
                bias[pair.groups, entries],
                targets[r],
                lse[:, r],
                dlosses[r],
                d[r],
                partial,
                pair.first_rows,
                r.stop - r.start,
                rows,
                vocab,
                first,
                count,
                x.shape[1],
                stride,
                **options(hidden, t),
            )
            of_groups = partial[:, :count].split(tiles)
            for group_sums, gradient in zip(of_groups, dbias[pair.groups, entries], strict=False):
                column_sums(group_sums[None], gradient)
        chunk = d[:, : w.shape[0]]
        dhidden += _product(chunk, w)
        dweight[entries] = _product(chunk.t(), hidden).to(dweight.dtype)
    return dhidden.to(hidden.dtype), dweight, dbias
