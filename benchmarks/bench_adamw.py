"""A clipped step of AdamW over a model's weights, with what the next forward needs of them in bf16.

Ours is `spanbert_fast.optim.AdamW`, which on a GPU is one pass; PyTorch's clips, takes its fused
step and casts the weights. A clipped step reads each gradient for the norm, then gradients, weights
and two moments, and writes weights, moments and the bf16 copy.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from op_case import OURS, PYTORCH, ExactCase, Tensors, error_share
from torch import nn

from spanbert_fast.optim import AdamW
from spanbert_fast.reference.adamw import adamw as reference

VARIANTS = ("fp32",)
# weights of one layer's linear modules: (layers, width)
SIZES = {"tiny": (1, 32), "cpu": (1, 768), "cuda": (8, 1024)}
MAX_NORM = 1.0
OPTIONS = {"lr": 1e-3, "weight_decay": 0.01}


def weights_of(size: str, device: str) -> list[nn.Parameter]:
    """Weights and biases with gradients, the same at every call."""
    layers, width = SIZES[size]
    shapes = 4 * [(width, width), (width,)]
    shapes += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    draw = torch.Generator(device=device).manual_seed(1)
    made = []
    for shape in layers * shapes:
        made.append(nn.Parameter(torch.randn(shape, generator=draw, device=device)))
        made[-1].grad = torch.randn(shape, generator=draw, device=device)
    return made


def ours(weights: Sequence[nn.Parameter]) -> Callable[[], Tensors]:
    """A step as `CapturedStep` takes it; returns the weights and the copies."""
    optimizer = AdamW(weights, **OPTIONS, keep_rounded=True)
    matrices = [w for w in weights if w.dim() == 2]
    copies = [optimizer._rounded.of(w) for w in matrices]

    def step() -> Tensors:
        optimizer.step(max_grad_norm=MAX_NORM)
        return *weights, *copies

    return step


def pytorch(weights: Sequence[nn.Parameter]) -> Callable[[], Tensors]:
    """Clipping, PyTorch's fused step, and autocast's casts."""
    capturable = weights[0].is_cuda
    optimizer = torch.optim.AdamW(weights, **OPTIONS, fused=True, capturable=capturable)
    matrices = [w for w in weights if w.dim() == 2]

    def step() -> Tensors:
        nn.utils.clip_grad_norm_(weights, MAX_NORM)
        optimizer.step()
        return *weights, *(w.detach().bfloat16() for w in matrices)

    return step


def truth(weights: Sequence[nn.Parameter]) -> Tensors:
    """The results of the first step in fp64."""
    norm = torch.stack([w.grad.double().square().sum() for w in weights]).sum().sqrt()
    factor = (MAX_NORM / (norm + 1e-6)).clamp(max=1.0)
    options = {**OPTIONS, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    made = [
        reference(w.detach().double(), w.grad.double() * factor, 0.0, 0.0, 1, **options)[0]
        for w in weights
    ]
    return *made, *(w for w in made if w.dim() == 2)


@dataclasses.dataclass
class StepCase(ExactCase):
    """Steps that change their weights; `results` are of a first step, the first one the truth."""

    def errors(self, backward: bool) -> dict[str, float | Exception]:
        """Each provider's largest error as a share of the allowed one."""
        exact, *found = (make() for make in self.results.values())
        baseline = found[-1]
        floor = torch.finfo(torch.float32).eps
        shares = [error_share(results, baseline, exact, floor) for results in found]
        return {name: share for name, share in zip(self.results, [0.0, *shares], strict=True)
                if name in self.providers}  # fmt: skip


def case(variant: str, device: str, size: str) -> StepCase:
    """All weights of some layers."""
    numbers = sum(w.numel() for w in weights_of(size, device))
    matrices = sum(w.numel() for w in weights_of(size, device) if w.dim() == 2)
    layers, width = SIZES[size]
    return StepCase(
        "adamw",
        variant,
        {"layers": layers, "hidden_size": width, "numbers": numbers},
        {name: make(weights_of(size, device)) for name, make in ((OURS, ours), (PYTORCH, pytorch))},
        {
            "fp64": lambda: truth(weights_of(size, device)),
            OURS: lambda: tuple(t.detach() for t in ours(weights_of(size, device))()),
            PYTORCH: lambda: tuple(t.detach() for t in pytorch(weights_of(size, device))()),
        },
        (32 * numbers + 2 * matrices, 0),
        dtype="fp32",
    )
