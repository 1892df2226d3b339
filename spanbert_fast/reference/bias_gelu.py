"""GELU(x + bias), the exact (erf) form that BERT uses."""

import torch
from torch.nn import functional as F


def bias_gelu(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """GELU(x + bias) for x (..., features) and bias (features,)."""
    return F.gelu(x + bias)
