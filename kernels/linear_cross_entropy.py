"""Triton kernels of `linear_cross_entropy`: scores are made in tiles and never stored.

The forward's programs keep an online softmax over a part of the vocabulary, and a second kernel
joins the parts. The backward makes D = dl (softmax - onehot) for a chunk of the vocabulary at a
time, in the dtype of the inputs, and leaves dX = D W and dW = D^T X to the BLAS. Products cost
2 rows width vocab FLOPs forward and 6 backward, against which the chunk's 4 bytes per score of
traffic are few (width >= 768: a hundredth of the time).
"""

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from spanbert_fast.kernels.column_sums import column_sums
from spanbert_fast.kernels.product import product
from spanbert_fast.kernels.tile_config import Tile, tile_for

_CHUNK_BYTES = 96 << 20  # of D at once: three chunks for 4,896 rows of a vocabulary of 28,996
_COLUMNS_PER_SPLIT = 4096


@triton.jit
def _scores(
    x,
    weight,
    bias,
    row,
    column,
    rows,
    vocab,
    width,
    WIDEN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x weight^T + bias, fp32 (BLOCK_M, BLOCK_N); past the ends the last row and entry again.

    width is a multiple of BLOCK_K: masks, and rows that start unaligned, would cut the loads up.
    """
    r = tl.minimum(row, rows - 1).to(tl.int64)
    c = tl.minimum(column, vocab - 1).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    x_tile = x + r[:, None] * width + k[None, :]  # (BLOCK_M, BLOCK_K)
    w_tile = weight + c[None, :] * width + k[:, None]  # (BLOCK_K, BLOCK_N)
    scores = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    for _ in range(width // BLOCK_K):
        scores = product(tl.load(x_tile), tl.load(w_tile), scores, WIDEN)
        x_tile += BLOCK_K
        w_tile += BLOCK_K
    return scores + tl.load(bias + c).to(tl.float32)[None, :]


@triton.jit
def _linear_cross_entropy_fwd_kernel(
    x,
    weight,
    bias,
    targets,
    largest,
    total,
    score,
    best,
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
    """Of a part of the vocabulary, each row's max s, sum exp(s - max), target score and argmax.

    One program takes BLOCK_M rows through `tiles` tiles of BLOCK_N entries. Grid: (rows / BLOCK_M,
    splits), rows first, so that programs that run together read the same weights. Results are
    (splits, stride) each. Absent: best.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(1)
    target = tl.load(targets + row, mask=row < rows, other=-1)
    high = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    of_target = tl.zeros((BLOCK_M,), tl.float32)
    argmax = tl.zeros((BLOCK_M,), tl.int32)
    for tile in range(tiles):
        column = (split * tiles + tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        s = _scores(x, weight, bias, row, column, rows, vocab, width, WIDEN, BLOCK_K)
        of_target += tl.sum(tl.where(column[None, :] == target[:, None], s, 0.0), 1)
        s = tl.where((column < vocab)[None, :], s, float("-inf"))
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


@triton.jit
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
    """lse = max + log(sum exp), loss = lse - target score, of the splits' parts in order.

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


@triton.jit
def _score_gradient_kernel(
    x,
    weight,
    bias,
    targets,
    lse,
    dlosses,
    d,
    partial,
    rows,
    all_rows,
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
    fp32. Grid: (rows / BLOCK_M, vocab / BLOCK_N). FLOPs: 2 rows width vocab.
    """
    tile = tl.program_id(0)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    s = _scores(x, weight, bias, row, column, rows, vocab, width, WIDEN, BLOCK_K)
    high = tl.load(lse + row, mask=row < rows, other=0.0)
    logarithm = tl.load(lse + all_rows + row, mask=row < rows, other=0.0)
    target = tl.load(targets + row, mask=row < rows, other=-1) - first
    dl = tl.load(dlosses + row, mask=row < rows, other=0.0).to(tl.float32)
    p = tl.exp((s - high[:, None]) - logarithm[:, None])
    p = tl.where(column[None, :] == target[:, None], p - 1.0, p)
    inside = (row < rows)[:, None] & (column < vocab)[None, :]
    p = tl.where(inside, p * dl[:, None], 0.0)
    at = row.to(tl.int64)[:, None] * stride + column[None, :]
    # whole tiles, as the stride holds them: a mask by column would cut the stores up
    tl.store(d + at, p.to(d.dtype.element_ty), mask=(row < rows)[:, None])
    sums = partial + tile.to(tl.int64) * vocab + column
    tl.store(sums, tl.sum(p, 0), mask=column < vocab)


def _options(hidden: torch.Tensor, tile: Tile) -> dict:
    return {
        "WIDEN": hidden.device.type == "cpu",
        **tile.blocks,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def _whole_blocks(x: torch.Tensor, tile: Tile) -> torch.Tensor:
    """x (rows, width) with zeros to the right, if its width is not blocks of the products."""
    excess = -x.shape[1] % tile.blocks["BLOCK_K"]
    return F.pad(x, (0, excess)) if excess else x


def _groups(group_sizes: list[int]) -> list[tuple[int, slice]]:
    """(group, its rows) of the groups that have any."""
    stops = torch.tensor(group_sizes).cumsum(0).tolist()
    rows = [slice(stop - size, stop) for size, stop in zip(group_sizes, stops, strict=True)]
    return [(group, r) for group, r in enumerate(rows) if r.stop > r.start]


def linear_cross_entropy_fwd(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    group_sizes: list[int],
    with_predictions: bool,
    kept_columns: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(losses, lse (2, rows), predictions, kept (rows, 0)); arguments as the custom op's."""
    rows, vocab = hidden.shape[0], weight.shape[0]
    device = hidden.device
    losses = torch.empty((rows,), dtype=torch.float32, device=device)
    lse = torch.empty((2, rows), dtype=torch.float32, device=device)
    predictions = torch.empty((rows * with_predictions,), dtype=torch.int64, device=device)
    kept = torch.empty((rows, 0), dtype=hidden.dtype, device=device)
    if rows == 0 or vocab == 0:
        return losses.fill_(torch.nan), lse.fill_(-torch.inf), predictions.zero_(), kept
    t = tile_for("linear_cross_entropy_fwd", device, itemsize=hidden.element_size())
    targets, bias = targets.contiguous(), bias.contiguous()
    weight = _whole_blocks(weight.to(hidden.dtype).contiguous(), t)
    hidden = _whole_blocks(hidden.contiguous(), t)
    width = hidden.shape[1]
    block_m, block_n = t.blocks["BLOCK_M"], t.blocks["BLOCK_N"]
    tiles = triton.cdiv(vocab, block_n)
    tiles_per_split = triton.cdiv(tiles, triton.cdiv(vocab, _COLUMNS_PER_SPLIT))
    splits = triton.cdiv(tiles, tiles_per_split)
    parts = torch.empty((3, splits, rows), dtype=torch.float32, device=device)
    best = torch.empty((splits, rows), dtype=torch.int32, device=device)
    for group, r in _groups(group_sizes):
        size = r.stop - r.start
        _linear_cross_entropy_fwd_kernel[(triton.cdiv(size, block_m), splits)](
            hidden[r],
            weight,
            bias[group],
            targets[r],
            *parts[..., r],
            best[:, r] if with_predictions else None,
            size,
            vocab,
            width,
            rows,
            tiles_per_split,
            **_options(hidden, t),
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
    return losses, lse, predictions, kept


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in fp32, on a GPU straight from the accumulators."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def linear_cross_entropy_bwd(
    dlosses: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    lse: torch.Tensor,
    kept: torch.Tensor,
    group_sizes: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dhidden, dweight, dbias), summed in fp32; arguments as the custom op's."""
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
    x = _whole_blocks(hidden, t)
    for first in range(0, vocab, stride):
        entries = slice(first, min(first + stride, vocab))
        w = weight[entries].to(hidden.dtype).contiguous()
        w_blocks = _whole_blocks(w, t)
        for group, r in _groups(group_sizes):
            size, count = r.stop - r.start, w.shape[0]
            grid = (triton.cdiv(size, block_m), triton.cdiv(count, block_n))
            partial = torch.empty((grid[0], count), dtype=torch.float32, device=w.device)
            _score_gradient_kernel[grid](
                x[r],
                w_blocks,
                bias[group, entries],
                targets[r],
                lse[:, r],
                dlosses[r],
                d[r],
                partial,
                size,
                rows,
                first,
                count,
                x.shape[1],
                stride,
                **_options(hidden, t),
            )
            column_sums(partial, dbias[group, entries])
        chunk = d[:, : w.shape[0]]
        dhidden += _product(chunk, w)
        dweight[entries] = _product(chunk.t(), hidden).to(dweight.dtype)
    return dhidden.to(hidden.dtype), dweight, dbias
