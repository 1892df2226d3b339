"""Triton kernel of `antecedent_top_k`: the best k of each query stay in registers."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.antecedent_common import bounds, pair_arguments, pair_scores, tile_of


@triton.jit(do_not_specialize=["mentions"])
def _antecedent_top_k_kernel(
    queries,
    keys,
    mention_scores,
    distance_scores,
    firsts,
    best_scores,
    best_keys,
    mentions,
    width,
    k,
    KEPT: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The k best candidates of each query, in any order; of equal ones the earliest.

    One program takes BLOCK_M queries through (BLOCK_M, BLOCK_N) tiles of the keys before them and
    keeps the best scores, (BLOCK_M, KEPT) with KEPT >= k. While a row of the tile has a score above
    its least kept one, the row's largest replaces that: often in the first tiles, seldom later.
    Grid: (mentions / BLOCK_M,). mentions^2 width FLOPs.
    """
    first_row = tl.program_id(0) * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    begin = tl.min(tl.load(firsts + row, mask=row < mentions, other=mentions), 0).to(tl.int32)
    place = tl.arange(0, KEPT)
    # places from k on hold inf and are never the least
    kept = (
        tl.zeros((BLOCK_M, KEPT), tl.float32)
        + tl.where(place < k, float("-inf"), float("inf"))[None, :]
    )
    named = tl.full((BLOCK_M, KEPT), -1, tl.int32) + tl.zeros((BLOCK_M, KEPT), tl.int32)
    for start in range(begin, tl.minimum(first_row + BLOCK_M, mentions), BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        s, _ = pair_scores(
            queries, keys, mention_scores, distance_scores, firsts, row, column, mentions, width,
            WIDEN, BLOCK_K,
        )  # fmt: skip
        least = tl.min(kept, 1)
        top = tl.max(s, 1)
        while tl.sum((top > least).to(tl.int32), 0) > 0:
            better = top > least
            which = tl.min(tl.where(s == top[:, None], column[None, :], 2147483647), 1)
            # replaced: of equal scores the last in the text, of empty places the last
            is_least = kept == least[:, None]
            oldest = tl.max(tl.where(is_least, named, -2), 1)
            goes = is_least & (named == oldest[:, None])
            last = tl.max(tl.where(goes, place[None, :], -1), 1)
            put = better[:, None] & (place[None, :] == last[:, None])
            kept = tl.where(put, top[:, None], kept)
            named = tl.where(put, which[:, None], named)
            s = tl.where(column[None, :] == which[:, None], float("-inf"), s)
            least = tl.min(kept, 1)
            top = tl.max(s, 1)
    at = row.to(tl.int64)[:, None] * k + place[None, :]
    inside = (row < mentions)[:, None] & (place < k)[None, :]
    tl.store(best_scores + at, kept, mask=inside)
    tl.store(best_keys + at, named.to(tl.int64), mask=inside)


def antecedent_top_k_fwd(inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores, antecedents) of the op's `TopKInputs`, from high to low, ties in text order."""
    mentions, k, device = inputs.queries.shape[0], inputs.k, inputs.queries.device
    best = torch.empty((mentions, k), dtype=torch.float32, device=device)
    antecedents = torch.empty((mentions, k), dtype=torch.int64, device=device)
    if mentions == 0:
        return best, antecedents
    tile, passed = tile_of("antecedent_top_k_fwd", inputs.queries)
    arguments = pair_arguments(inputs, tile)
    firsts, _ = bounds(inputs.cu_mentions, mentions)
    _antecedent_top_k_kernel[(triton.cdiv(mentions, tile.blocks["BLOCK_M"]),)](
        *arguments,
        firsts,
        best,
        antecedents,
        mentions,
        arguments[0].shape[1],
        k,
        KEPT=triton.next_power_of_2(k),
        **passed,
    )
    antecedents, order = antecedents.sort(dim=1, stable=True)
    best, order = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best, antecedents.gather(1, order)
