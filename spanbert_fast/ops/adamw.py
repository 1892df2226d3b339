"""`adamw`: a step of AdamW for many weights, in place.

On a GPU one launch updates all of them: it reads the gradients, clips them, and writes weights,
moments and, where they are kept, bf16 copies of the weights, each number once. A table on the
device has the tensors' addresses.
"""

import contextlib
import importlib
from typing import NamedTuple

import torch
from torch.optim.adamw import adamw as torch_adamw

from spanbert_fast.ops._address_tables import BLOCK, Tables
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._register import has_triton
from spanbert_fast.reference import adamw as reference


class AdamWTensors(NamedTuple):
    """One tensor of each weight in every list.

    Attributes:
        weights: of any shapes; updated.
        gradients: in their weights' dtypes.
        exp_avgs, exp_avg_sqs: running means of gradients and of their squares; updated.
        steps: fp32 (), the steps that the weight has made; increased by 1.
        rounded: bf16 copies of the weights to write, or None.
    """

    weights: list[torch.Tensor]
    gradients: list[torch.Tensor]
    exp_avgs: list[torch.Tensor]
    exp_avg_sqs: list[torch.Tensor]
    steps: list[torch.Tensor]
    rounded: list[torch.Tensor | None]


class AdamWOptions(NamedTuple):
    """Options that all weights share; lr may be a tensor, on a GPU the weights' own."""

    lr: float | torch.Tensor = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2


def has_kernel(tensors: AdamWTensors) -> bool:
    """Whether the Triton kernel takes the tensors.

        >>> has_kernel(AdamWTensors([], [], [], [], [], []))
        False

    They are plain tensors (no DTensor) on one GPU, in fp32, contiguous, and begin at multiples of
    16 bytes, as PyTorch allocates them.
    """
    device = tensors.weights[0].device if tensors.weights else torch.device("cpu")
    return (
        has_triton
        and device.type == "cuda"
        and all(_fits(t, device) for part in tensors[:4] for t in part)
        and all(t.device == device for t in tensors.steps)
    )


def _fits(tensor: torch.Tensor, device: torch.device) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device == device
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
        and tensor.data_ptr() % 16 == 0
    )


def adamw(
    tensors: AdamWTensors,
    options: AdamWOptions,
    *,
    factor: torch.Tensor | None = None,
    tables: Tables | None = None,
    grad_scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
) -> None:
    """A step of AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).

        >>> weight, (g, m, v), step = torch.ones(2), torch.zeros(3, 2), torch.zeros(())
        >>> tensors = AdamWTensors([weight], [g], [m], [v], [step], [None])
        >>> adamw(tensors, AdamWOptions(lr=0.1, weight_decay=0.5))
        >>> weight
        tensor([0.9500, 0.9500])

    The kernel takes tensors for which `has_kernel` is true. All others are updated by PyTorch's
    own fused step, and so are gradients that a GradScaler has not unscaled.

    Args:
        tensors: of each weight.
        options: of all weights.
        factor: (), by which gradients are multiplied; PyTorch's step needs them multiplied in
            place.
        tables: what earlier calls with these weights have put on the device.
        grad_scale, found_inf: as a GradScaler gives them to an optimiser.

    Raises:
        ValueError: lists of different lengths, or tensors of different shapes.
    """
    _check(tensors)
    if not tensors.weights:
        return
    unscaled = grad_scale is None and found_inf is None
    if runs_reference() and unscaled:
        _run_reference(tensors, options, factor)
    elif unscaled and has_kernel(tensors):
        _run_kernel(tensors, options, factor, tables or Tables())
    else:
        _run_torch(tensors, options, factor, grad_scale, found_inf)


def _run_kernel(
    tensors: AdamWTensors, options: AdamWOptions, factor: torch.Tensor | None, tables: Tables
) -> None:
    kernels = importlib.import_module("spanbert_fast.kernels.adamw")  # imports Triton
    device = tensors.weights[0].device
    on_cuda = device.type == "cuda"
    factor = None if factor is None else factor.to(device)
    # Triton launches on the current device
    with torch.cuda.device(device) if on_cuda else contextlib.nullcontext():
        kernels.adamw(*tables.of(tensors), options, factor, BLOCK)
    torch.autograd.graph.increment_version(tensors.weights)


def _check(tensors: AdamWTensors) -> None:
    count = len(tensors.weights)
    for name, part in tensors._asdict().items():
        if len(part) != count:
            raise ValueError(f"{name} must have {count} tensors as weights has, got {len(part)}")
        if name in ("weights", "steps"):
            continue
        for weight, tensor in zip(tensors.weights, part, strict=True):
            if tensor is not None and tensor.shape != weight.shape:
                raise ValueError(
                    f"{name} must have its weight's shape {tuple(weight.shape)}, "
                    f"got {tuple(tensor.shape)}"
                )


def _write_rounded(tensors: AdamWTensors) -> None:
    for weight, copy in zip(tensors.weights, tensors.rounded, strict=True):
        if copy is not None:
            copy.copy_(weight)


def _run_reference(
    tensors: AdamWTensors, options: AdamWOptions, factor: torch.Tensor | None
) -> None:
    for weight, gradient, exp_avg, exp_avg_sq, step, _ in zip(*tensors, strict=True):
        step += 1
        gradient = gradient if factor is None else gradient * factor.to(gradient.device)
        state = (weight, exp_avg, exp_avg_sq)
        made = reference.adamw(weight, gradient, *state[1:], step, **options._asdict())
        for tensor, new in zip(state, made, strict=True):
            tensor.copy_(new)
    _write_rounded(tensors)


def _run_torch(
    tensors: AdamWTensors,
    options: AdamWOptions,
    factor: torch.Tensor | None,
    grad_scale: torch.Tensor | None,
    found_inf: torch.Tensor | None,
) -> None:
    if factor is not None:
        for gradient in tensors.gradients:
            gradient.mul_(factor.to(gradient.device))
    torch_adamw(
        *tensors[:4],
        [],
        tensors.steps,
        fused=True,
        grad_scale=grad_scale,
        found_inf=found_inf,
        amsgrad=False,
        maximize=False,
        **options._asdict(),
    )
    _write_rounded(tensors)
