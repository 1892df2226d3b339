"""The loss over gold antecedents, with the scores of all pairs in memory."""

import torch

# A pair's distance in mentions falls into one of ten: 0, 1, 2, 3, 4, 5-7, 8-15, 16-31, 32-63, 64+.
DISTANCE_BOUNDS = (1, 2, 3, 4, 5, 8, 16, 32, 64)


def distance_buckets(distances: torch.Tensor) -> torch.Tensor:
    """int64, the bucket of each distance (Lee et al. 2018, the released code)."""
    return torch.stack([distances >= bound for bound in DISTANCE_BOUNDS]).sum(0)


def antecedent_scores(
    queries: torch.Tensor,
    keys: torch.Tensor,
    mention_scores: torch.Tensor,
    distance_scores: torch.Tensor,
    cu_mentions: torch.Tensor,
) -> torch.Tensor:
    """(mentions, mentions): s(i, j); -inf for a j that is not before i in i's document."""
    place = torch.arange(len(queries), device=queries.device)
    document = torch.searchsorted(cu_mentions[1:].long(), place, right=True)
    distance = place[:, None] - place
    scores = queries @ keys.t() + mention_scores[:, None] + mention_scores
    scores = scores + distance_scores.gather(1, distance_buckets(distance))
    is_candidate = (distance > 0) & (document[:, None] == document)
    return scores.masked_fill(~is_candidate, -torch.inf)


def antecedent_loss(
    queries: torch.Tensor,
    keys: torch.Tensor,
    mention_scores: torch.Tensor,
    distance_scores: torch.Tensor,
    clusters: torch.Tensor,
    cu_mentions: torch.Tensor,
) -> torch.Tensor:
    """(mentions,): log sum exp over all antecedents, minus that over the gold ones."""
    scores = antecedent_scores(queries, keys, mention_scores, distance_scores, cu_mentions)
    is_gold = (clusters[:, None] == clusters) & (clusters >= 0) & scores.isfinite()
    none = torch.zeros_like(scores[:, :1])  # the score of no antecedent
    gold = torch.where(is_gold.any(1, keepdim=True), -torch.inf, none)
    gold_scores = torch.cat([gold, scores.masked_fill(~is_gold, -torch.inf)], 1)
    return torch.cat([none, scores], 1).logsumexp(1) - gold_scores.logsumexp(1)
