"""The vector of a span: its first row, its last row, and the mean of its rows by attention."""

import torch


def span_representation(
    firsts: torch.Tensor,
    lasts: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    *,
    inner: torch.Tensor | None = None,
    logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """[firsts[start]; lasts[end]; sum over t in start..end of softmax(logits)[t] inner[t]]."""
    parts = [firsts[starts], lasts[ends]]
    if inner is not None and logits is not None:
        row = torch.arange(len(inner), device=inner.device)
        inside = (starts[:, None] <= row) & (row <= ends[:, None])
        parts.append(torch.where(inside, logits, -torch.inf).softmax(1) @ inner)
    return torch.cat(parts, dim=1)
