"""`antecedent_loss`: the marginal log-likelihood of gold antecedents, computed in tiles of pairs.

    loss_i = log sum_{j or none} exp s(i, j) - log sum_{gold j} exp s(i, j)
    ds(i, j) = dloss_i (p_ij - r_ij),   p and r the softmax over all and over the gold antecedents

(Lee et al. 2017, arXiv 1707.07045, section 3.) The forward keeps the two logarithms of each
mention; the backward computes the scores again, tile by tile. So memory grows with the number of
mentions, not of pairs. `_antecedents.py` defines s.
"""

from typing import NamedTuple

import torch

from spanbert_fast.ops import _checks
from spanbert_fast.ops._antecedents import (
    check_antecedents,
    column_tiles,
    documents_of,
    row_tiles,
    tile_scores,
)
from spanbert_fast.ops._autograd import differentiable
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._precision import compute_dtype, opmath_dtype, product_dtype
from spanbert_fast.ops._register import register
from spanbert_fast.reference import antecedent_loss as reference


def antecedent_loss(
    queries: torch.Tensor,
    keys: torch.Tensor,
    mention_scores: torch.Tensor,
    distance_scores: torch.Tensor,
    clusters: torch.Tensor,
    cu_mentions: torch.Tensor,
) -> torch.Tensor:
    """-log of the probability that each mention's antecedent is a gold one.

        >>> x, zeros = torch.eye(2), torch.zeros(2, 10)
        >>> cu_mentions = torch.tensor([0, 2], dtype=torch.int32)
        >>> antecedent_loss(x, x, torch.zeros(2), zeros, torch.tensor([5, 5]), cu_mentions)
        tensor([0.0000, 0.6931])

    A mention's candidates are the mentions before it in its document, and "none", whose score is 0.
    If no candidate is of the mention's cluster, "none" is the gold antecedent.

    Args:
        queries, keys: (mentions, features), floating; mentions in the order of the text.
        mention_scores: (mentions,), floating; a pair adds those of both its mentions.
        distance_scores: (mentions, 10), floating: a mention's score for an antecedent at each
            distance in mentions: 0 (never read), 1, 2, 3, 4, 5-7, 8-15, 16-31, 32-63, 64+.
        clusters: int64 (mentions,), equal for mentions of one gold cluster; negative for a mention
            that is in none.
        cu_mentions: int32 (documents + 1,), prefix sums of the documents' mentions.

    Returns:
        (mentions,) in fp32 (fp64 for fp64), differentiable in the first four.

    Raises:
        ValueError: shapes disagree, or (checked on the CPU only) cu_mentions is not a rising
            sequence from 0 to mentions.
    """
    check_antecedents(queries, keys, mention_scores, distance_scores, cu_mentions)
    _checks.check_shape("clusters", clusters, (queries.shape[0],))
    _checks.check_integer("clusters", clusters, (torch.int64,))
    _checks.check_same_device("clusters", clusters, queries, "queries")
    if runs_reference():
        return reference.antecedent_loss(
            queries, keys, mention_scores, distance_scores, clusters, cu_mentions
        )
    dtype = product_dtype(compute_dtype(queries), queries.device)
    return _antecedent_loss(
        LossInputs(
            queries.to(dtype),
            keys.to(dtype),
            mention_scores.to(opmath_dtype(mention_scores.dtype)),
            distance_scores.to(opmath_dtype(distance_scores.dtype)),
            clusters,
            cu_mentions,
        )
    )


class LossInputs(NamedTuple):
    """The arguments of the registered functions."""

    queries: torch.Tensor
    keys: torch.Tensor
    mention_scores: torch.Tensor
    distance_scores: torch.Tensor
    clusters: torch.Tensor
    cu_mentions: torch.Tensor


def _gold(inputs: LossInputs, scores: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    clusters = inputs.clusters
    same = (clusters[rows, None] == clusters[columns]) & (clusters[columns] >= 0)
    return same & (scores > -torch.inf)


def _composite_fwd(inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(losses, lse, gold_lse), each (mentions,)."""
    mentions, opmath = inputs.queries.shape[0], opmath_dtype(inputs.queries.dtype)
    first_of_document = documents_of(inputs.cu_mentions, mentions)
    lse = inputs.queries.new_zeros((mentions,), dtype=opmath)  # of "none" alone
    gold_lse = torch.full_like(lse, -torch.inf)
    for rows in row_tiles(mentions):
        for columns in column_tiles(rows):
            scores, _ = tile_scores(inputs, first_of_document, rows, columns)
            lse[rows] = torch.logaddexp(lse[rows], scores.logsumexp(1))
            is_gold = _gold(inputs, scores, rows, columns)
            gold = scores.masked_fill(~is_gold, -torch.inf).logsumexp(1)
            gold_lse[rows] = torch.logaddexp(gold_lse[rows], gold)
    gold_lse.masked_fill_(gold_lse == -torch.inf, 0.0)
    return lse - gold_lse, lse, gold_lse


def _composite_bwd(
    dlosses: torch.Tensor, inputs: LossInputs, lse: torch.Tensor, gold_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dqueries, dkeys, dmention_scores, ddistance_scores), summed in fp32."""
    queries, keys, mention_scores, distance_scores = inputs[:4]
    for name, of_rows in (("dlosses", dlosses), ("lse", lse), ("gold_lse", gold_lse)):
        _checks.check_shape(name, of_rows, (queries.shape[0],))
    first_of_document = documents_of(inputs.cu_mentions, queries.shape[0])
    dq, dk, dm, dd = (torch.zeros_like(t, dtype=lse.dtype) for t in inputs[:4])
    for rows in row_tiles(queries.shape[0]):
        for columns in column_tiles(rows):
            scores, buckets = tile_scores(inputs, first_of_document, rows, columns)
            is_gold = _gold(inputs, scores, rows, columns)
            d = (scores - lse[rows, None]).exp()
            d = d - torch.where(is_gold, (scores - gold_lse[rows, None]).exp(), 0.0)
            d = d * dlosses[rows, None]
            dm[rows] += d.sum(1)
            dm[columns] += d.sum(0)
            dd[rows] = dd[rows].scatter_add(1, buckets, d)
            d = d.to(queries.dtype)
            dq[rows] += (d @ keys[columns]).to(dq.dtype)
            dk[columns] += (d.t() @ queries[rows]).to(dk.dtype)
    return (
        dq.to(queries.dtype),
        dk.to(keys.dtype),
        dm.to(mention_scores.dtype),
        dd.to(distance_scores.dtype),
    )


def _fake_fwd(inputs: LossInputs):
    made = inputs.queries.new_empty(
        (inputs.queries.shape[0],), dtype=opmath_dtype(inputs.queries.dtype)
    )
    return made, torch.empty_like(made), torch.empty_like(made)


def _fake_bwd(dlosses, inputs: LossInputs, lse, gold_lse):
    return tuple(t.new_empty(t.shape) for t in inputs[:4])


_antecedent_loss = differentiable(
    LossInputs,
    register("antecedent_loss_fwd", _composite_fwd, _fake_fwd),
    register("antecedent_loss_bwd", _composite_bwd, _fake_bwd),
    gradients=("queries", "keys", "mention_scores", "distance_scores"),
)
