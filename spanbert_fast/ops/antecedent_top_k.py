"""`antecedent_top_k`: the best antecedents of each mention, found in tiles of pairs.

Coarse pruning of antecedents (Lee et al. 2018, arXiv 1804.05392, section 4) scores all pairs of
mentions. This op merges each tile's scores into the k best of each mention and keeps no others, so
memory grows with the number of mentions times k. `_antecedents.py` defines the scores.
"""

from typing import NamedTuple

import torch

from spanbert_fast.ops._antecedents import (
    check_antecedents,
    column_tiles,
    documents_of,
    row_tiles,
    tile_scores,
)
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._precision import compute_dtype, opmath_dtype, product_dtype
from spanbert_fast.ops._register import register
from spanbert_fast.reference import antecedent_top_k as reference


class TopAntecedents(NamedTuple):
    """What `antecedent_top_k` returns.

    Attributes:
        scores: (mentions, k), from high to low; -inf where a mention has fewer candidates. fp32
            (fp64 for fp64).
        antecedents: int64 (mentions, k), numbers of mentions; -1 where there is none. Equal scores
            are in the order of the text.
    """

    scores: torch.Tensor
    antecedents: torch.Tensor


@torch.no_grad()
def antecedent_top_k(
    queries: torch.Tensor,
    keys: torch.Tensor,
    mention_scores: torch.Tensor,
    distance_scores: torch.Tensor,
    cu_mentions: torch.Tensor,
    k: int,
) -> TopAntecedents:
    """The k best candidates of each mention, by s(i, j); not differentiable.

        >>> x, zeros = torch.tensor([[1.0], [2.0], [1.0]]), torch.zeros(3, 10)
        >>> cu_mentions = torch.tensor([0, 3], dtype=torch.int32)
        >>> antecedent_top_k(x, x, torch.zeros(3), zeros, cu_mentions, 1).antecedents
        tensor([[-1],
                [ 0],
                [ 1]])

    Args:
        queries, keys, mention_scores, distance_scores, cu_mentions: see `antecedent_loss`.
        k: number of antecedents, at least 1.

    Raises:
        ValueError: shapes disagree, k is below 1, or cu_mentions is not what it should be.
    """
    check_antecedents(queries, keys, mention_scores, distance_scores, cu_mentions)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if runs_reference():
        return TopAntecedents(
            *reference.antecedent_top_k(
                queries, keys, mention_scores, distance_scores, cu_mentions, k
            )
        )
    dtype = product_dtype(compute_dtype(queries), queries.device)
    opmath = opmath_dtype(dtype)
    return TopAntecedents(
        *_top_k(
            queries.to(dtype),
            keys.to(dtype),
            mention_scores.to(opmath),
            distance_scores.to(opmath),
            cu_mentions,
            k,
        )
    )


class TopKInputs(NamedTuple):
    """The arguments of the registered function."""

    queries: torch.Tensor
    keys: torch.Tensor
    mention_scores: torch.Tensor
    distance_scores: torch.Tensor
    cu_mentions: torch.Tensor
    k: int


def _composite_fwd(inputs: TopKInputs) -> tuple[torch.Tensor, torch.Tensor]:
    queries, k = inputs.queries, inputs.k
    mentions, opmath = queries.shape[0], opmath_dtype(queries.dtype)
    first_of_document = documents_of(inputs.cu_mentions, mentions)
    best = queries.new_full((mentions, k), -torch.inf, dtype=opmath)
    antecedents = torch.full((mentions, k), -1, device=queries.device)
    for rows in row_tiles(mentions):
        for columns in column_tiles(rows):
            scores, _ = tile_scores(inputs, first_of_document, rows, columns)
            numbers = torch.arange(columns.start, columns.stop, device=queries.device)
            # candidates found earlier come first: a stable sort keeps them before equal ones
            both = torch.cat([best[rows], scores], 1)
            named = torch.cat([antecedents[rows], numbers.expand(len(scores), -1)], 1)
            both, order = both.sort(dim=1, descending=True, stable=True)
            best[rows] = both[:, :k]
            antecedents[rows] = named.gather(1, order[:, :k])
    return best, antecedents.masked_fill_(best == -torch.inf, -1)


def _fake_fwd(inputs: TopKInputs):
    shape = (inputs.queries.shape[0], inputs.k)
    best = inputs.queries.new_empty(shape, dtype=opmath_dtype(inputs.queries.dtype))
    return best, torch.empty_like(best, dtype=torch.int64)


_top_k = register("antecedent_top_k_fwd", _composite_fwd, _fake_fwd)
