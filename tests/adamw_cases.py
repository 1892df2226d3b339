"""Weights with gradients and moments for the tests of adamw, and its peers."""

import torch

from spanbert_fast.ops.adamw import AdamWOptions, AdamWTensors
from spanbert_fast.reference.adamw import adamw

# of one block, of several, of part of one, none, a number that 4 does not divide
SHAPES = [(3,), (1024,), (40, 70), (0,), (1,), (2, 3, 171)]
OPTIONS = AdamWOptions(lr=1e-2, beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.1)


def tensors_of(shapes=SHAPES, rounded=(), dtype=torch.float32) -> AdamWTensors:
    """Random ones; the k-th weight has made k steps, and those of `rounded` have a bf16 copy."""
    draw = torch.Generator().manual_seed(3)

    def floats(scale: float) -> list[torch.Tensor]:
        return [(scale * torch.randn(s, generator=draw)).to(dtype) for s in shapes]

    return AdamWTensors(
        floats(1.0),
        floats(3.0),
        floats(1.0),
        [square.abs() for square in floats(1.0)],
        [torch.tensor(float(k)) for k in range(len(shapes))],
        [
            torch.full(s, torch.nan, dtype=torch.bfloat16) if k in rounded else None
            for k, s in enumerate(shapes)
        ],
    )


def copied(tensors: AdamWTensors, dtype=None) -> AdamWTensors:
    """The same numbers in other memory, weights and moments in `dtype`."""

    def copy(t):
        return (
            None if t is None else t.clone() if t.dim() == 0 else t.to(dtype or t.dtype, copy=True)
        )

    return AdamWTensors(*([copy(t) for t in part] for part in tensors))


def truth_of(tensors: AdamWTensors, options: AdamWOptions, factor: float = 1.0):
    """(weights, exp_avgs, exp_avg_sqs) after a step in fp64."""
    made = []
    for weight, gradient, mean, square, step, _ in zip(*copied(tensors, torch.double), strict=True):
        step = step.double() + 1
        made.append(adamw(weight, factor * gradient, mean, square, step, **options._asdict()))
    return [list(part) for part in zip(*made, strict=True)]
