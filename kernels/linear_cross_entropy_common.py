"""Helpers of the loss's forward and backward: scores in tiles, widths in whole blocks, groups."""

from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from spanbert_fast.kernels.product import product
from spanbert_fast.kernels.tile_config import Tile


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


def groups(group_sizes: list[int]) -> list[tuple[int, slice]]:
    """(group, slice of its rows) for each group that has rows."""
    stops = accumulate(group_sizes)
    rows = [slice(stop - size, stop) for size, stop in zip(group_sizes, stops, strict=True)]
    return [(group, r) for group, r in enumerate(rows) if r.stop > r.start]
