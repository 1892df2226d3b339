"""The loss of a start or an end position, in which padding takes no part."""

import torch
from torch.nn import functional as F

from spanbert_fast.ops._precision import opmath_dtype


def position_loss(
    logits: torch.Tensor, positions: torch.Tensor, is_token: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy of logits at the positions that are tokens, in fp32 (fp64 for fp64).

    Args:
        logits: (batch, seqlen).
        positions: int64 (batch,) or (batch, 1). One that is no token, or outside its sequence,
            takes no part in the mean.
        is_token: bool (batch, seqlen).
    """
    ignored = logits.shape[1]
    positions = positions.view(-1).clamp(0, ignored)
    is_counted = F.pad(is_token, (0, 1)).gather(1, positions[:, None]).squeeze(1)
    positions = positions.where(is_counted, ignored)
    logits = logits.to(opmath_dtype(logits.dtype))
    return F.cross_entropy(logits, positions, ignore_index=ignored)
