"""LayerNorm(dropout(x + x_bias) + residual), the end of both halves of a BERT layer."""

import torch
from torch.nn import functional as F

from spanbert_fast.reference.dropout import dropout_scale, dropout_threshold, hidden_keep_mask


def dropout_add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    x_bias: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: torch.Tensor | None = None,
    dropout_site: int = 0,
    dropout_rows: torch.Tensor | None = None,
    eps: float = 1e-12,
    residual_in_fp32: bool = False,
) -> torch.Tensor:
    """y = LN(dropout(x + x_bias) + residual) over rows of (tokens, hidden_size)."""
    if residual_in_fp32:
        x, residual = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (x, residual))
        weight, bias = weight.to(residual.dtype), bias.to(residual.dtype)
    if x_bias is not None:
        x = x + x_bias
    threshold = dropout_threshold(dropout_p)
    if threshold:
        if dropout_rows is None:
            dropout_rows = torch.arange(x.shape[0], device=x.device)
        keep = hidden_keep_mask(dropout_seed, dropout_site, dropout_rows, x.shape[1], threshold)
        x = x * keep * dropout_scale(threshold)
    return F.layer_norm(x + residual, (x.shape[1],), weight, bias, eps)
