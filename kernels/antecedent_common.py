"""Helpers of the two antecedent ops' Triton kernels: scores of a tile of pairs, launches."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.linear_cross_entropy_common import options, scores, whole_blocks
from spanbert_fast.kernels.tile_config import Tile, tile_for


@triton.jit
def pair_scores(
    queries,
    keys,
    mention_scores,
    distance_scores,
    firsts,
    row,
    column,
    mentions,
    width,
    WIDEN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(s, bucket) of a tile, both (BLOCK_M, BLOCK_N): s(i, j) in fp32, -inf for no candidate.

    firsts: int64 (mentions,), the first mention of each mention's document.
    """
    s = scores(queries, keys, row, column, mentions, mentions, width, WIDEN, BLOCK_K)
    own = tl.load(mention_scores + row, mask=row < mentions, other=0.0)
    other = tl.load(mention_scores + column, mask=column < mentions, other=0.0)
    first = tl.load(firsts + row, mask=row < mentions, other=0)
    distance = row[:, None] - column[None, :]
    inside = (distance > 0) & (column[None, :] >= first[:, None]) & (row < mentions)[:, None]
    near = tl.minimum(tl.maximum(distance, 0), 4)
    far = (distance >= 5).to(tl.int32) + (distance >= 8) + (distance >= 16) + (distance >= 32)
    bucket = near + far + (distance >= 64)
    at = distance_scores + row.to(tl.int64)[:, None] * 10 + bucket
    s += own[:, None] + other[None, :] + tl.load(at, mask=inside, other=0.0)
    return tl.where(inside, s, float("-inf")), bucket


@triton.jit
def is_gold(clusters, row, column, s, mentions):
    """bool (BLOCK_M, BLOCK_N): whether a candidate is of its query's cluster."""
    own = tl.load(clusters + row, mask=row < mentions, other=-1)
    other = tl.load(clusters + column, mask=column < mentions, other=-2)
    return (own[:, None] == other[None, :]) & (own >= 0)[:, None] & (s > float("-inf"))


@triton.jit
def join(high, total, tile_high, s):
    """Each row's running (max, sum exp(s - max)) after a further tile s; tile_high is its max."""
    new_high = tl.maximum(high, tile_high)
    base = tl.where(new_high == float("-inf"), 0.0, new_high)
    return new_high, total * tl.exp(high - base) + tl.sum(tl.exp(s - base[:, None]), 1)


def bounds(cu_mentions: torch.Tensor, mentions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two int64 (mentions,): where each mention's document begins, and where it ends."""
    place = torch.arange(mentions, device=cu_mentions.device)
    starts = cu_mentions.long()
    document = torch.searchsorted(starts[1:].contiguous(), place, right=True)
    return starts[document], starts[1:][document]


def pair_arguments(inputs, tile: Tile) -> tuple[torch.Tensor, ...]:
    """Queries and keys in whole blocks, mention and distance scores, as the kernels take them."""
    wide = (whole_blocks(t.contiguous(), tile) for t in inputs[:2])
    return (*wide, *(t.contiguous().float() for t in inputs[2:4]))


def tile_of(kernel: str, queries: torch.Tensor) -> tuple[Tile, dict]:
    """(tile, keyword arguments of a launch)."""
    tile = tile_for(kernel, queries.device, itemsize=queries.element_size())
    return tile, options(queries, tile)
