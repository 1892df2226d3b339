"""LayerNorm(dropout(x + x_bias) + residual), which ends attention and feed-forward in BERT."""

import torch
from torch.nn import functional as F

from spanbert_fast.reference.dropout import Dropout, dropped


def dropout_add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    x_bias: torch.Tensor | None = None,
    dropout: Dropout | None = None,
    eps: float = 1e-12,
    residual_in_fp32: bool = False,
) -> torch.Tensor:
    """y = LN(dropout(x + x_bias) + residual) over rows of (tokens, hidden_size)."""
    if residual_in_fp32:
        x, residual = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (x, residual))
        weight, bias = weight.to(residual.dtype), bias.to(residual.dtype)
    if x_bias is not None:
        x = x + x_bias
    return F.layer_norm(dropped(x, dropout) + residual, (x.shape[1],), weight, bias, eps)
