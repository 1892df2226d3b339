"""span_representation of candidate spans beside the same in PyTorch's operators.

Spans of 1 to 10 rows begin at every row. The forward reads the spans' rows from the cache and
writes y; the backward reads dy.
"""

import torch
from op_case import COMPILED, DTYPES, OURS, PYTORCH, OpCase, Provider, compiled, leaf

from spanbert_fast.ops.span_representation import span_representation

VARIANTS = ("bf16", "fp32")
SIZES = {"tiny": (30, 24), "cpu": (500, 384), "cuda": (3000, 1024)}
WIDEST = 10


def case(variant: str, device: str, size: str) -> OpCase:
    """First, last and inner rows are the same matrix, as in a model."""
    rows, hidden = SIZES[size]
    dtype = DTYPES[variant]
    leaves = [
        leaf(rows, hidden, dtype=dtype, device=device),
        leaf(rows, dtype=dtype, device=device),
    ]
    starts = torch.arange(rows - WIDEST, device=device).repeat_interleave(WIDEST)
    widths = torch.arange(WIDEST, device=device).repeat(rows - WIDEST)
    ends = starts + widths
    inside = torch.arange(WIDEST, device=device) <= widths[:, None]
    near = starts[:, None] + torch.arange(WIDEST, device=device)

    def ours(x, logits):
        return span_representation(x, x, starts, ends, inner=x, logits=logits)

    def eager(x, logits):
        weights = logits[near].float().masked_fill(~inside, -torch.inf).softmax(1).to(x.dtype)
        pooled = (weights[:, None] @ x[near]).squeeze(1)
        return torch.cat([x[starts], x[ends], pooled], 1)

    dy = leaf(len(starts), 3 * hidden, dtype=dtype, device=device).detach()
    return OpCase(
        op="span_representation",
        variant=variant,
        shape={"rows": rows, "spans": len(starts), "hidden_size": hidden},
        dtype=variant,
        leaves=leaves,
        dy=dy,
        providers={OURS: Provider(ours), PYTORCH: Provider(eager), COMPILED: compiled(eager)},
        bytes_moved=(dy.nbytes + leaves[0].nbytes, 3 * dy.nbytes + 2 * leaves[0].nbytes),
    )
