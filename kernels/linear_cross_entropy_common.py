"""Helpers of the loss's forward and backward: scores in tiles, widths in whole blocks, groups."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from spanbert_fast.kernels.product import product
from spanbert_fast.kernels.tile_config import Tile


@triton.jit
def rows_of(tile, first_rows, rows, BLOCK_M: tl.constexpr):
    """(rows of a tile, end of its group, number of its group), of two groups of rows.

    The first group has first_rows of the rows; no tile has rows of both.
    """
    first_tiles = tl.cdiv(first_rows, BLOCK_M)
    is_second = tile >= first_tiles
    begin = tl.where(is_second, first_rows - first_tiles * BLOCK_M, 0) + tile * BLOCK_M
    end = tl.where(is_second, rows, first_rows)
    return begin + tl.arange(0, BLOCK_M), end, is_second.to(tl.int32)


@triton.jit
def scores(
    x,
    weight,
    row,
    column,
    rows,
    vocab,
    width,
    WIDEN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x weight^T, fp32 (BLOCK_M, BLOCK_N); past the ends the last row or entry repeats.

    width is a multiple of BLOCK_K: masks, or rows that are not aligned, would split the loads.
    """
    r = tl.minimum(row, rows - 1).to(tl.int64)
    c = tl.minimum(column, vocab - 1).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    x_tile = x + r[:, None] * width + k[None, :]  # (BLOCK_M, BLOCK_K)
    w_tile = weight + c[None, :] * width + k[:, None]  # (BLOCK_K, BLOCK_N)
    acc = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    for _ in range(width // BLOCK_K):
        acc = product(tl.load(x_tile), tl.load(w_tile), acc, WIDEN)
        x_tile += BLOCK_K
        w_tile += BLOCK_K
    return acc


def options(hidden: torch.Tensor, tile: Tile) -> dict:
    """The keyword arguments of a launch with this tile."""
    return {
        "WIDEN": hidden.device.type == "cpu",
        **tile.blocks,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def whole_blocks(x: torch.Tensor, tile: Tile) -> torch.Tensor:
    """x (rows, width), padded with zeros on the right to whole blocks of BLOCK_K columns."""
    excess = -x.shape[1] % tile.blocks["BLOCK_K"]
    return F.pad(x, (0, excess)) if excess else x


class Pair(NamedTuple):
    """Two groups that one launch takes.

    Attributes:
        groups: their numbers; the second may be missing, or have no rows.
        rows: the rows of both.
        first_rows: how many of them are the first group's.
    """

    groups: slice
    rows: slice
    first_rows: int

    def tiles(self, block: int) -> tuple[int, int]:
        """The number of tiles of each group."""
        second_rows = self.rows.stop - self.rows.start - self.first_rows
        return triton.cdiv(self.first_rows, block), triton.cdiv(second_rows, block)


def pairs(group_sizes: list[int]) -> Iterator[Pair]:
    """The groups two by two; pairs without rows are left out."""
    start = 0
    for group in range(0, len(group_sizes), 2):
        sizes = group_sizes[group : group + 2]
        stop = start + sum(sizes)
        if stop > start:
            yield Pair(slice(group, group + 2), slice(start, stop), sizes[0])
        start = stop
