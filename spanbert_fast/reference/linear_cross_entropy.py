"""Cross-entropy of a linear layer's scores, with all scores in memory."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    *,
    group_sizes: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses, predictions), each (rows,); scores are hidden weight^T + the bias of the group."""
    if group_sizes is not None:
        bias = bias.repeat_interleave(torch.tensor(group_sizes, device=bias.device), dim=0)
    scores = hidden @ weight.t() + bias
    return F.cross_entropy(scores, targets, reduction="none"), scores.argmax(1)
