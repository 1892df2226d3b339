"""Shared by the tests of span_boundary_gather: targets of each span, and random inputs."""

import torch
from torch.nn import functional as F

LENGTHS = {
    "one target": [1],
    "ragged": [3, 1, 20, 7, 2],
    "with empty": [0, 4, 0, 0, 2, 0],
    "only empty": [0, 0],
    "no span": [],
}


def cumulative(lengths, device="cpu"):
    """cu_span_lengths."""
    sums = F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0), (1, 0))
    return sums.to(device, torch.int32)


def make(lengths, hidden, dtype, places=20):
    """Random [spans, places, weight, bias]."""
    shapes = ((len(lengths), hidden), (places, hidden), (hidden,), (hidden,))
    return [(2 * torch.randn(shape)).to(dtype) for shape in shapes]
