"""The first layer of the span boundary head, from products made once per span and per place."""

import torch
from torch.nn import functional as F


def span_boundary_gather(
    spans: torch.Tensor,
    places: torch.Tensor,
    cu_span_lengths: torch.Tensor,
    num_targets: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    eps: float = 1e-12,
) -> torch.Tensor:
    """LN(GELU(spans[s] + places[k])) for target k = 0, 1, ... of each span s in turn."""
    lengths = cu_span_lengths.diff().long()
    span = torch.repeat_interleave(lengths)
    place = torch.arange(num_targets, device=span.device) - cu_span_lengths[span]
    z = spans[span] + places[place]
    return F.layer_norm(F.gelu(z), (z.shape[1],), weight, bias, eps)
