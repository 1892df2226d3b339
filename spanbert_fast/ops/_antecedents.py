"""Shared by the two antecedent ops: their checks, and the scores of a tile of pairs.

    s(i, j) = q_i . k_j + m_i + m_j + d_i[bucket(i - j)],    j before i in i's document
    s(i, none) = 0

q . k is the coarse score of Lee et al. 2018 (arXiv 1804.05392, equation 6) or the antecedent score
of Kirstain et al. 2021 (arXiv 2101.00434, equation 5). m are the mention scores. d is the prior of
a distance in mentions, which the released code of Lee et al. adds to the coarse score.
"""

from collections.abc import Iterator

import torch

from spanbert_fast.ops import _checks
from spanbert_fast.ops._precision import opmath_dtype
from spanbert_fast.reference.antecedent_loss import DISTANCE_BOUNDS, distance_buckets

NUM_DISTANCES = len(DISTANCE_BOUNDS) + 1
_ROWS, _COLUMNS = 256, 512  # the composites' tile


def check_antecedents(
    queries: torch.Tensor,
    keys: torch.Tensor,
    mention_scores: torch.Tensor,
    distance_scores: torch.Tensor,
    cu_mentions: torch.Tensor,
) -> None:
    """Check shapes, dtypes and devices, and on the CPU also the values of the prefix sums."""
    tensors = (
        ("queries", queries),
        ("keys", keys),
        ("mention_scores", mention_scores),
        ("distance_scores", distance_scores),
    )
    for name, tensor in tensors:
        _checks.check_floating(name, tensor)
        _checks.check_same_device(name, tensor, queries, "queries")
    _checks.check_shape("queries", queries, ("mentions", "features"))
    mentions = queries.shape[0]
    _checks.check_shape("keys", keys, tuple(queries.shape))
    _checks.check_shape("mention_scores", mention_scores, (mentions,))
    _checks.check_shape("distance_scores", distance_scores, (mentions, NUM_DISTANCES))
    _checks.check_cu_seqlens("cu_mentions", cu_mentions)
    _checks.check_same_device("cu_mentions", cu_mentions, queries, "queries")
    if cu_mentions.device.type == "cpu" and not torch.compiler.is_compiling():
        _checks.check_cu_values("cu_mentions", cu_mentions.tolist(), mentions)


def documents_of(cu_mentions: torch.Tensor, mentions: int) -> torch.Tensor:
    """int64 (mentions,): the first mention of each mention's document."""
    place = torch.arange(mentions, device=cu_mentions.device)
    starts = cu_mentions.long()
    return starts[torch.searchsorted(starts[1:], place, right=True)]


def row_tiles(mentions: int) -> Iterator[slice]:
    """Tiles of queries."""
    return (slice(r, min(r + _ROWS, mentions)) for r in range(0, mentions, _ROWS))


def column_tiles(rows: slice) -> Iterator[slice]:
    """Tiles of the keys that may be candidates of a tile of queries."""
    return (slice(c, min(c + _COLUMNS, rows.stop)) for c in range(0, rows.stop, _COLUMNS))


def tile_scores(inputs, first_of_document: torch.Tensor, rows: slice, columns: slice):
    """(scores in fp32, -inf where a column is no candidate; buckets) of a tile."""
    queries, keys, mention_scores, distance_scores = inputs[:4]
    opmath = opmath_dtype(queries.dtype)
    i = torch.arange(rows.start, rows.stop, device=queries.device)[:, None]
    j = torch.arange(columns.start, columns.stop, device=queries.device)
    buckets = distance_buckets(i - j)
    scores = (queries[rows] @ keys[columns].t()).to(opmath)
    scores = scores + mention_scores[rows, None].to(opmath) + mention_scores[columns].to(opmath)
    scores = scores + distance_scores[rows].to(opmath).gather(1, buckets)
    is_candidate = (j < i) & (j >= first_of_document[rows, None])
    return scores.masked_fill_(~is_candidate, -torch.inf), buckets
