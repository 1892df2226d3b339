"""Triton kernels of `antecedent_loss`: scores of pairs are made in tiles and never stored."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.antecedent_common import (
    bounds,
    is_gold,
    join,
    pair_arguments,
    pair_scores,
    tile_of,
)
from spanbert_fast.kernels.product import product


@triton.jit(do_not_specialize=["mentions"])
def _antecedent_loss_fwd_kernel(
    queries,
    keys,
    mention_scores,
    distance_scores,
    clusters,
    firsts,
    losses,
    lse,
    gold_lse,
    mentions,
    width,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """loss_i = log sum exp s over the candidates and none, minus the same over the gold ones.

    One program scores BLOCK_M queries against the keys before them, in (BLOCK_M, BLOCK_N) tiles.
    Grid: (mentions / BLOCK_M,). mentions^2 width FLOPs. Lee et al. 2017 (arXiv 1707.07045).
    """
    first_row = tl.program_id(0) * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    begin = tl.min(tl.load(firsts + row, mask=row < mentions, other=mentions), 0).to(tl.int32)
    high = tl.zeros((BLOCK_M,), tl.float32)  # the score of none is 0
    total = tl.full((BLOCK_M,), 1.0, tl.float32)
    gold_high = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    gold_total = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(begin, tl.minimum(first_row + BLOCK_M, mentions), BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        s, _ = pair_scores(
            queries, keys, mention_scores, distance_scores, firsts, row, column, mentions, width,
            WIDEN, BLOCK_K,
        )  # fmt: skip
        gold = tl.where(is_gold(clusters, row, column, s, mentions), s, float("-inf"))
        high, total = join(high, total, tl.max(s, 1), s)
        gold_high, gold_total = join(gold_high, gold_total, tl.max(gold, 1), gold)
    all_lse = high + tl.log(total)
    some = gold_total > 0
    found = tl.where(some, gold_high + tl.log(tl.where(some, gold_total, 1.0)), 0.0)
    tl.store(losses + row, all_lse - found, mask=row < mentions)
    tl.store(lse + row, all_lse, mask=row < mentions)
    tl.store(gold_lse + row, found, mask=row < mentions)


@triton.jit
def _pair_gradients(
    queries, keys, mention_scores, distance_scores, clusters, firsts, dlosses, lse, gold_lse, row,
    column, mentions, width, WIDEN: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(d, bucket) of a tile: d = dloss (exp(s - lse) - [gold] exp(s - gold_lse)), fp32."""
    s, bucket = pair_scores(
        queries, keys, mention_scores, distance_scores, firsts, row, column, mentions, width,
        WIDEN, BLOCK_K,
    )  # fmt: skip
    real = row < mentions
    dloss = tl.load(dlosses + row, mask=real, other=0.0).to(tl.float32)
    d = tl.exp(s - tl.load(lse + row, mask=real, other=0.0)[:, None])
    gold = tl.where(is_gold(clusters, row, column, s, mentions), s, float("-inf"))
    d -= tl.exp(gold - tl.load(gold_lse + row, mask=real, other=0.0)[:, None])
    return d * dloss[:, None], bucket


@triton.jit(do_not_specialize=["mentions"])
def _antecedent_gradient_kernel(
    queries,
    keys,
    mention_scores,
    distance_scores,
    clusters,
    firsts,
    lasts,
    dlosses,
    lse,
    gold_lse,
    gradient,
    dscores,
    ddistances,
    mentions,
    width,
    OF_KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dqueries = D K and the sums of D's rows, or OF_KEYS dkeys = D^T Q and its columns' sums.

    One program makes BLOCK_K columns of the gradient of BLOCK_M queries (BLOCK_N keys), from the
    keys before them (the queries behind them), and recomputes their scores for it. Grid: (mentions
    / BLOCK_M or BLOCK_N, width / BLOCK_K); the first column of programs stores the sums. For
    queries, ddistances (mentions, 10) are the sums of D's rows by distance; for keys it is None.
    """
    OWN: tl.constexpr = BLOCK_N if OF_KEYS else BLOCK_M
    OTHERS: tl.constexpr = BLOCK_M if OF_KEYS else BLOCK_N
    first = tl.program_id(0) * OWN
    own = first + tl.arange(0, OWN)
    real = own < mentions
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    if OF_KEYS:
        others, begin = queries, first
        end = tl.max(tl.load(lasts + own, mask=real, other=0), 0).to(tl.int32)
    else:
        others, end = keys, tl.minimum(first + OWN, mentions)
        begin = tl.min(tl.load(firsts + own, mask=real, other=mentions), 0).to(tl.int32)
    total = tl.zeros((OWN, BLOCK_K), tl.float32)
    sums = tl.zeros((OWN,), tl.float32)
    lane = tl.arange(0, 16)
    of_distances = tl.zeros((OWN, 16), tl.float32)
    for start in range(begin, end, OTHERS):
        other = start + tl.arange(0, OTHERS)
        d, bucket = _pair_gradients(
            queries, keys, mention_scores, distance_scores, clusters, firsts, dlosses, lse,
            gold_lse, other if OF_KEYS else own, own if OF_KEYS else other, mentions, width,
            WIDEN, BLOCK_K,
        )  # fmt: skip
        o = tl.minimum(other, mentions - 1).to(tl.int64)
        factor = tl.load(others + o[:, None] * width + k[None, :])
        weights = (tl.trans(d) if OF_KEYS else d).to(factor.dtype)
        total = product(weights, factor, total, WIDEN)
        sums += tl.sum(d, 0 if OF_KEYS else 1)
        if ddistances is not None:
            for b in range(1, 10):  # not unrolled: nine sums at once would fill the registers
                of_bucket = tl.sum(tl.where(bucket == b, d, 0.0), 1)
                of_distances += tl.where(lane[None, :] == b, of_bucket[:, None], 0.0)
    row = own.to(tl.int64)[:, None]
    tl.store(gradient + row * width + k[None, :], total, mask=real[:, None])
    is_first = real & (tl.program_id(1) == 0)
    tl.store(dscores + own, sums, mask=is_first)
    if ddistances is not None:
        inside = is_first[:, None] & (lane < 10)[None, :]
        tl.store(ddistances + row * 10 + lane[None, :], of_distances, mask=inside)


def antecedent_loss_fwd(inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(losses, lse, gold_lse) of the op's `LossInputs`."""
    mentions, device = inputs.queries.shape[0], inputs.queries.device
    losses, lse, gold_lse = (
        torch.empty((mentions,), dtype=torch.float32, device=device) for _ in range(3)
    )
    if mentions == 0:
        return losses, lse, gold_lse
    tile, passed = tile_of("antecedent_pairs", inputs.queries)
    arguments = pair_arguments(inputs, tile)
    firsts, _ = bounds(inputs.cu_mentions, mentions)
    _antecedent_loss_fwd_kernel[(triton.cdiv(mentions, tile.blocks["BLOCK_M"]),)](
        *arguments,
        inputs.clusters.contiguous(),
        firsts,
        losses,
        lse,
        gold_lse,
        mentions,
        arguments[0].shape[1],
        **passed,
    )
    return losses, lse, gold_lse


def antecedent_loss_bwd(
    dlosses: torch.Tensor, inputs, lse: torch.Tensor, gold_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dqueries, dkeys, dmention_scores, ddistance_scores) of the op's `LossInputs`."""
    queries, keys, mention_scores, distance_scores = inputs[:4]
    mentions, features = queries.shape
    if mentions == 0 or features == 0:
        return tuple(torch.zeros_like(t) for t in inputs[:4])
    tile, passed = tile_of("antecedent_gradient", queries)
    arguments = pair_arguments(inputs, tile)
    width = arguments[0].shape[1]
    dqueries, dkeys = (torch.empty_like(t) for t in arguments[:2])
    of_queries, of_keys = (torch.empty_like(lse) for _ in range(2))
    ddistances = torch.empty((mentions, 10), dtype=torch.float32, device=queries.device)
    given = (inputs.clusters, *bounds(inputs.cu_mentions, mentions), dlosses, lse, gold_lse)
    for of_keys_, block, outputs in (
        (False, "BLOCK_M", (dqueries, of_queries, ddistances)),
        (True, "BLOCK_N", (dkeys, of_keys, None)),
    ):
        grid = (triton.cdiv(mentions, tile.blocks[block]), width // tile.blocks["BLOCK_K"])
        _antecedent_gradient_kernel[grid](
            *arguments,
            *(t.contiguous() for t in given),
            *outputs,
            mentions,
            width,
            OF_KEYS=of_keys_,
            **passed,
        )
    return (
        dqueries[:, :features].contiguous(),
        dkeys[:, :features].contiguous(),
        (of_queries + of_keys).to(mention_scores.dtype),
        ddistances.to(distance_scores.dtype),
    )
