"""The best antecedents of each mention, with the scores of all pairs in memory."""

import torch

from spanbert_fast.reference.antecedent_loss import antecedent_scores


def antecedent_top_k(
    queries: torch.Tensor,
    keys: torch.Tensor,
    mention_scores: torch.Tensor,
    distance_scores: torch.Tensor,
    cu_mentions: torch.Tensor,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores, antecedents), each (mentions, k); -inf and -1 where there are fewer than k."""
    scores = antecedent_scores(queries, keys, mention_scores, distance_scores, cu_mentions)
    lacking = max(0, k - scores.shape[1])
    scores = torch.nn.functional.pad(scores, (0, lacking), value=-torch.inf)
    best, antecedents = scores.sort(dim=1, descending=True, stable=True)
    best, antecedents = best[:, :k], antecedents[:, :k]
    return best, antecedents.masked_fill(best == -torch.inf, -1)
