"""Softmax attention within each sequence of a packed batch."""

import torch

from spanbert_fast.reference.dropout import Dropout, attention_keep_mask, dropout_scale


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    *,
    softmax_scale: float | None = None,
    dropout: Dropout | None = None,
) -> torch.Tensor:
    """out = dropout(softmax(q k^T * softmax_scale)) v, sequence by sequence, all heads at once."""
    scale = q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
    outputs = []
    bounds = cu_seqlens.tolist()
    for sequence, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        qs, ks, vs = (t[start:end].transpose(0, 1) for t in (q, k, v))  # (heads, len, head_dim)
        probabilities = torch.softmax(qs @ ks.transpose(1, 2) * scale, dim=-1)
        if dropout is not None and dropout.p:
            number = torch.tensor([sequence], device=q.device)
            keep = attention_keep_mask(dropout, number, q.shape[1], end - start)
            probabilities = probabilities * keep[0] * dropout_scale(dropout.threshold)
        outputs.append((probabilities @ vs).transpose(0, 1))
    return torch.cat(outputs) if outputs else q + k + v  # the sum keeps inputs in the graph
