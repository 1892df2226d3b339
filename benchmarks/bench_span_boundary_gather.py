"""span_boundary_gather of spans of 1 to 7 targets beside the same in PyTorch's operators.

The forward reads the spans' rows and writes y; the backward reads dy and the spans and writes the
spans' gradient. Places and parameters are small.
"""

import torch
from op_case import COMPILED, DTYPES, OURS, PYTORCH, OpCase, Provider, compiled, leaf
from torch.nn import functional as F

from spanbert_fast.ops.span_boundary_gather import span_boundary_gather

VARIANTS = ("bf16", "fp32")
SIZES = {"tiny": (5, 20, 96), "cpu": (300, 20, 768), "cuda": (1200, 20, 1024)}


def span_lengths(spans: int, device: str) -> tuple[torch.Tensor, int]:
    """(prefix sums of lengths that are 4 on average, as spans' are; their sum)."""
    lengths = torch.arange(spans, device=device) % 7 + 1
    return F.pad(lengths.cumsum(0), (1, 0)).int(), int(lengths.sum())


def case(variant: str, device: str, size: str) -> OpCase:
    """The rows per span and per place, and the norm's parameters."""
    spans, places, hidden = SIZES[size]
    dtype = DTYPES[variant]
    shapes = ((spans, hidden), (places, hidden), (hidden,), (hidden,))
    leaves = [leaf(*shape, dtype=dtype, device=device) for shape in shapes]
    cu_span_lengths, targets = span_lengths(spans, device)
    span = torch.repeat_interleave(cu_span_lengths.diff().long())
    place = torch.arange(targets, device=device) - cu_span_lengths[span]
    dy = leaf(targets, hidden, dtype=dtype, device=device).detach()

    def ours(spans, places, weight, bias):
        return span_boundary_gather(spans, places, cu_span_lengths, targets, weight, bias)

    def eager(spans, places, weight, bias):
        z = F.embedding(span, spans) + F.embedding(place, places)
        return F.layer_norm(F.gelu(z), (hidden,), weight, bias, 1e-12)

    rows = dy.nbytes + leaves[0].nbytes
    return OpCase(
        op="span_boundary_gather",
        variant=variant,
        shape={"spans": spans, "targets": targets, "hidden_size": hidden},
        dtype=variant,
        leaves=leaves,
        dy=dy,
        providers={
            OURS: Provider(ours),
            PYTORCH: Provider(eager),
            COMPILED: compiled(eager),
        },
        bytes_moved=(rows, 2 * rows + leaves[0].nbytes),
    )
