"""Triton kernels of `linear_cross_entropy`, forward: scores are made in tiles and never stored.

Programs keep an online softmax over a part of the vocabulary, and a second kernel joins the parts.
The products cost 2 rows width vocab FLOPs. The backward is in linear_cross_entropy_backward.py.
"""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.linear_cross_entropy_backward import linear_cross_entropy_bwd
from spanbert_fast.kernels.linear_cross_entropy_common import (
    options,
    pairs,
    rows_of,
    scores,
    whole_blocks,
)
from spanbert_fast.kernels.tile_config import tile_for

__all__ = ["linear_cross_entropy_bwd", "linear_cross_entropy_fwd"]

_COLUMNS_PER_SPLIT = 4096


@triton.jit(
    do_not_specialize=["first_rows", "rows", "stride"],
    # slices of a pair of groups, which may begin at any row
    do_not_specialize_on_alignment=["targets", "largest", "total", "score", "best"],
)
def _linear_cross_entropy_fwd_kernel(
    x,
    weight,
    bias,
    targets,
    largest,
    total,
    score,
    best,
    first_rows,
    rows,
    vocab,
    width,
    stride,
    tiles,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Each row's max s, sum exp(s - max), target score and argmax over a part of the vocabulary.

    One program takes BLOCK_M rows through `tiles` tiles of BLOCK_N entries. Grid: (tiles of rows,
    splits), rows first, so that programs that run together read the same weights. The rows are
    those of two groups, of which the first has first_rows; bias is (2, vocab). Results are
    (splits, stride) each. May be None: best.
    """
    row, rows, group = rows_of(tl.program_id(0), first_rows, rows, BLOCK_M)
    bias += group * vocab
    split = tl.program_id(1)
    target = tl.load(targets + row, mask=row < rows, other=-1)
    high = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    of_target = tl.zeros((BLOCK_M,), tl.float32)
    argmax = tl.zeros((BLOCK_M,), tl.int32)
    for tile in range(tiles):
        column = (split * tiles + tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        s = scores(x, weight, row, column, rows, vocab, width, WIDEN, BLOCK_K)
        # loaded after the products, which leave no register free
        shift = tl.load(bias + column, mask=column < vocab, other=float("-inf"))
        s += shift.to(tl.float32)[None, :]
        of_target += tl.sum(tl.where(column[None, :] == target[:, None], s, 0.0), 1)
        tile_high = tl.max(s, 1)
        if best is not None:
            first = tl.min(tl.where(s == tile_high[:, None], column[None, :], 2147483647), 1)
            argmax = tl.where(tile_high > high, first, argmax)
        new_high = tl.maximum(high, tile_high)
        base = tl.where(new_high == float("-inf"), 0.0, new_high)
        sums = sums * tl.exp(high - base) + tl.sum(tl.exp(s - base[:, None]), 1)
        high = new_high
    at = split.to(tl.int64) * stride + row
    tl.store(largest + at, high, mask=row < rows)
    tl.store(total + at, sums, mask=row < rows)
    tl.store(score + at, of_target, mask=row < rows)
    if best is not None:
        tl.store(best + at, argmax, mask=row < rows)


@triton.jit(
    do_not_specialize=["rows"],
    # slices of one tensor of parts, which may begin anywhere
    do_not_specialize_on_alignment=["largest", "total", "score"],
)
def _join_parts_kernel(
    targets,
    largest,
    total,
    score,
    best,
    losses,
    lse,
    predictions,
    rows,
    vocab,
    splits,
    BLOCK: tl.constexpr,
):
    """lse = max + log(sum exp), loss = lse - target score, from the splits' parts in order.

    One program joins BLOCK rows. Grid: (rows / BLOCK,). A target out of range gives NaN.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    target = tl.load(targets + row, mask=inside, other=0)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    of_target = tl.zeros((BLOCK,), tl.float32)
    argmax = tl.zeros((BLOCK,), tl.int32)
    for split in range(splits):
        at = row + split * rows
        part = tl.load(largest + at, mask=inside, other=0.0)
        of_target += tl.load(score + at, mask=inside, other=0.0)
        if best is not None:
            argmax = tl.where(part > high, tl.load(best + at, mask=inside, other=0), argmax)
        new_high = tl.maximum(high, part)
        base = tl.where(new_high == float("-inf"), 0.0, new_high)
        sums = sums * tl.exp(high - base)
        sums += tl.load(total + at, mask=inside, other=1.0) * tl.exp(part - base)
        high = new_high
    of_target = tl.where((target >= 0) & (target < vocab), of_target, float("nan"))
    logarithm = tl.log(sums)
    tl.store(lse + row, high, mask=inside)
    tl.store(lse + rows + row, logarithm, mask=inside)
    tl.store(losses + row, (high - of_target) + logarithm, mask=inside)
    if best is not None:
        tl.store(predictions + row, argmax.to(tl.int64), mask=inside)


def linear_cross_entropy_fwd(
    inputs,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(losses, predictions, lse (2, rows), saved (rows, 0)) of the op's `LossInputs`."""
    hidden, weight, bias, targets, group_sizes, with_predictions, _ = inputs
    rows, vocab = hidden.shape[0], weight.shape[0]
    device = hidden.device
    losses = torch.empty((rows,), dtype=torch.float32, device=device)
    lse = torch.empty((2, rows), dtype=torch.float32, device=device)
    predictions = torch.empty((rows * with_predictions,), dtype=torch.int64, device=device)
    saved = torch.empty((rows, 0), dtype=hidden.dtype, device=device)
    if rows == 0 or vocab == 0:
        return losses.fill_(torch.nan), predictions.zero_(), lse.fill_(-torch.inf), saved
    t = tile_for("linear_cross_entropy_fwd", device, itemsize=hidden.element_size())
    targets, bias = targets.contiguous(), bias.contiguous()
    weight = whole_blocks(weight.to(hidden.dtype).contiguous(), t)
    hidden = whole_blocks(hidden.contiguous(), t)
    width = hidden.shape[1]
    block_m, block_n = t.blocks["BLOCK_M"], t.blocks["BLOCK_N"]
    tiles = triton.cdiv(vocab, block_n)
    tiles_per_split = triton.cdiv(tiles, triton.cdiv(vocab, _COLUMNS_PER_SPLIT))
    splits = triton.cdiv(tiles, tiles_per_split)
    parts = torch.empty((3, splits, rows), dtype=torch.float32, device=device)
    best = torch.empty((splits, rows), dtype=torch.int32, device=device)
    for pair in pairs(group_sizes):
        r = pair.rows
        _linear_cross_entropy_fwd_kernel[(sum(pair.tiles(block_m)), splits)](
            hidden[r],
            weight,
            bias[pair.groups],
            targets[r],
            *parts[..., r],
            best[:, r] if with_predictions else None,
            pair.first_rows,
            r.stop - r.start,
            vocab,
            width,
            rows,
            tiles_per_split,
            **options(hidden, t),
        )
    t = tile_for("join_parts", device)
    _join_parts_kernel[(triton.cdiv(rows, t.blocks["BLOCK"]),)](
        targets,
        *parts,
        best if with_predictions else None,
        losses,
        lse,
        predictions,
        rows,
        vocab,
        splits,
        **t.blocks,
        num_warps=t.num_warps,
    )
    return losses, predictions, lse, saved
