"""Comparisons for tests of kernels and models (contract C5)."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

# What a correct computation is allowed beyond twice its peer's error, in units of
# `rounding_noise`. The noise rounds every number once; a sum also rounds its partial sums, which
# are as large as the root of the number of terms times a term: here of some hundred terms.
ROUNDINGS = 8


def assert_no_worse_than(
    ours: torch.Tensor,
    peer: torch.Tensor,
    truth: torch.Tensor,
    *,
    floor: float,
    factor: float = 2.0,
    name: str = "result",
) -> None:
    """Raise unless max|ours - truth| <= factor * max|peer - truth| + floor.

    The root of the mean square is held to the same rule: a largest error bounds the others only by
    itself, and hides it where many small values are wrong beside a few large ones.

    Args:
        ours: what is tested.
        peer: the same computation by PyTorch in the same dtype as `ours`.
        truth: the same computation in a higher precision (fp64 on CPU, fp32 on a GPU).
        floor: absolute slack, for a peer that happens to be exact; say at the call why it is
            what it is.
        name: what to call the tensor in the error.
    """
    if ours.shape != truth.shape or peer.shape != truth.shape:
        raise AssertionError(
            f"{name}: shapes differ: ours {tuple(ours.shape)}, peer {tuple(peer.shape)}, "
            f"truth {tuple(truth.shape)}"
        )
    if not torch.isfinite(ours).all():
        raise AssertionError(f"{name}: not finite at {(~torch.isfinite(ours)).sum()} elements")
    if truth.numel() == 0:
        return
    error, peer_error = ((x.to(truth.dtype) - truth).abs() for x in (ours, peer))
    for figure, of in (("largest", torch.Tensor.max), ("root mean square", _root_mean_square)):
        found, allowed = of(error).item(), factor * of(peer_error).item() + floor
        if not found <= allowed:
            place = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
            raise AssertionError(
                f"{name}: the {figure} error {found:.3e} is above the allowed {allowed:.3e}; "
                f"the largest is at {place}"
            )


def _root_mean_square(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt()


class _Rounding(TorchDispatchMode):
    """Multiplies each floating result of PyTorch's operators, forward and backward, by 1 + u with
    u uniform in [-eps, eps]; views and results written in place are left as they are."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps
        self.generator = torch.Generator().manual_seed(0)

    def jitter(self, x):
        if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
            return x
        u = torch.rand(x.shape, generator=self.generator, dtype=torch.float64).mul_(2).sub_(1)
        return x.mul_((1 + self.eps * u).to(x))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if any(result.alias_info is not None for result in func._schema.returns):
            return output
        return tree_map(self.jitter, output)


def rounding_noise(
    truth: nn.Module,
    run: Callable[[nn.Module], Mapping[str, torch.Tensor]],
    dtype: torch.dtype = torch.float32,
    draws: int = 3,
) -> dict[str, float]:
    """How far each result of a model moves when every number behind it is off by one rounding.

    In copies of `truth` each parameter and each result of an operator, forward and backward, is
    multiplied by 1 + u, where u is uniform within the spacing of `dtype` beside 1. A sum then moves
    by about a rounding of its terms times the root of their number, also where the terms cancel
    and the sum is 0: this is the scale of what any library may make of it.

    Args:
        truth: the model in fp64, on the CPU.
        run: gives the named results of a model: outputs, gradients.
        dtype: what the results are to be computed in.
        draws: copies whose largest deviation is taken.

    Returns:
        For each name of a floating result the largest absolute deviation.
    """
    rounding = _Rounding(torch.finfo(dtype).eps)
    exact = run(copy.deepcopy(truth))
    noise = {name: 0.0 for name, value in exact.items() if value.is_floating_point()}
    for _ in range(draws):
        model = copy.deepcopy(truth)
        with torch.no_grad():
            for parameter in model.parameters():
                rounding.jitter(parameter)
        # attention out of single operators: a fused one would be rounded as a whole
        with sdpa_kernel(SDPBackend.MATH), rounding:
            moved = run(model)
        for name in noise:
            difference = (moved[name] - exact[name]).abs()
            noise[name] = max(noise[name], difference.max().item() if difference.numel() else 0.0)
    return noise


def assert_models_agree(
    ours: Mapping[str, torch.Tensor],
    peer: Mapping[str, torch.Tensor],
    truth: nn.Module,
    run: Callable[[nn.Module], Mapping[str, torch.Tensor]],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Raise unless every result is within C5: twice the peer's error and `ROUNDINGS` of noise.

    Args:
        ours: the named results of the model that is tested.
        peer: those of PyTorch's model in the same dtype.
        truth: PyTorch's model in fp64.
        run: gives the results of a model; here of `truth`.
        dtype: what `ours` and `peer` were computed in.
    """
    exact, noise = run(copy.deepcopy(truth)), rounding_noise(truth, run, dtype)
    for name in ("ours", "peer"):
        names = (ours if name == "ours" else peer).keys()
        if names != exact.keys():
            differ = sorted(names ^ exact.keys())
            raise AssertionError(f"{name}: names differ from the truth's: {', '.join(differ)}")
    for name, value in exact.items():
        floor = ROUNDINGS * noise.get(name, 0.0)
        assert_no_worse_than(ours[name], peer[name], value, floor=floor, name=name)


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients that the parameters hold, as `gradient of NAME`."""
    named = model.named_parameters()
    return {f"gradient of {name}": p.grad for name, p in named if p.grad is not None}


def assert_bitwise_equal(ours: torch.Tensor, expected: torch.Tensor, name: str = "result") -> None:
    """Raise unless both tensors have one dtype, one shape and the same bits."""
    if ours.dtype != expected.dtype or ours.shape != expected.shape:
        raise AssertionError(
            f"{name}: expected {expected.dtype} {tuple(expected.shape)}, "
            f"got {ours.dtype} {tuple(ours.shape)}"
        )
    same = torch.equal(
        ours.contiguous().reshape(-1).view(torch.uint8),
        expected.contiguous().reshape(-1).view(torch.uint8),
    )
    if not same:
        differ = (ours != expected).nonzero()
        where = tuple(differ[0].tolist()) if len(differ) else "bits of equal values"
        raise AssertionError(f"{name}: {len(differ)} of {ours.numel()} differ, first at {where}")
