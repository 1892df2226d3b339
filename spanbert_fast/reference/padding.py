"""From padded batches to packed tokens and back."""

import torch
from torch.nn import functional as F


def unpad(
    x: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """(packed, indices, cu_seqlens, max_seqlen) of (batch, seqlen, ...) and (batch, seqlen)."""
    real = attention_mask.bool()
    lengths = real.sum(1)
    indices = real.flatten().nonzero().squeeze(1)
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return x.flatten(0, 1)[indices], indices, cu_seqlens, max(lengths.tolist(), default=0)


def pad(x: torch.Tensor, indices: torch.Tensor, batch: int, seqlen: int) -> torch.Tensor:
    """(total_tokens, ...) -> (batch, seqlen, ...), with zeros at padding."""
    padded = x.new_zeros((batch * seqlen, *x.shape[1:]))
    return padded.index_put((indices,), x).unflatten(0, (batch, seqlen))
