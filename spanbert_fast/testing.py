"""Comparisons for the tests of kernels and models (contract C5)."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

# The error that is allowed beyond twice the peer's, in units of `rounding_noise`. The noise rounds
# every number once. A sum also rounds its partial sums, which are as large as a term times the root
# of the number of terms: here a few hundred terms.
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

        >>> ours, peer, truth = (torch.tensor([x]) for x in (1.2, 1.1, 1.0))
        >>> assert_no_worse_than(ours, peer, truth, floor=0.01)  # 0.2 <= 2 * 0.1 + 0.01

    The root mean square error must satisfy the same rule: the maximum alone would not show that
    many small values are wrong beside a few large ones.

    Args:
        ours: the result to test.
        peer: the same computation by PyTorch, in the dtype of `ours`.
        truth: the same computation in a higher precision (fp64 on CPU, fp32 on a GPU).
        floor: absolute slack, for a peer that happens to be exact. Give its reason at the call.
        name: the tensor's name in the error.
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
    """Multiplies each floating result of PyTorch's operators, forward and backward, by 1 + u, where
    u is uniform in [-eps, eps]. It does not change views and results of in-place operators."""

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
    """How far each result of a model moves if every number on the way to it is rounded once.

    In copies of `truth` each parameter and each result of an operator, forward and backward, is
    multiplied by 1 + u, where u is uniform within the spacing of `dtype` at 1. A sum then moves by
    about a rounding of its terms times the root of their number, even if the terms cancel and the
    sum is 0. Results of different libraries differ on this scale.

    Args:
        truth: the model in fp64, on the CPU.
        run: returns the named results of a model: outputs, gradients.
        dtype: the dtype in which results will be computed.
        draws: number of copies; the largest deviation counts.

    Returns:
        The largest absolute deviation of each floating result, by name.
    """
    rounding = _Rounding(torch.finfo(dtype).eps)
    exact = run(copy.deepcopy(truth))
    noise = {name: 0.0 for name, value in exact.items() if value.is_floating_point()}
    for _ in range(draws):
        model = copy.deepcopy(truth)
        with torch.no_grad():
            for parameter in model.parameters():
                rounding.jitter(parameter)
        # attention in single operators, since a fused one would be rounded only once
        with sdpa_kernel(SDPBackend.MATH), rounding:
            moved = run(model)
        for name in noise:
            difference = (moved[name] - exact[name]).abs()
            noise[name] = max(noise[name], difference.max().item() if difference.numel() else 0.0)
    return noise


def rounding_floor(result: torch.Tensor, rows: int) -> float:
    """The error of a result of a row op that is rounding alone, for inputs around 1.

    Eight roundings at 1 in the dtype of the result. A result with one dimension is a sum over
    `rows` of terms up to 4, added in fp32 or wider: a rounding of the largest term times the root
    of their number is added. A peer may meet such sums exactly by luck.
    """
    floor = 8 * torch.finfo(result.dtype).eps
    if result.dim() == 1:
        wide = torch.promote_types(result.dtype, torch.float32)
        floor += 4 * rows**0.5 * torch.finfo(wide).eps
    return floor


def assert_models_agree(
    ours: Mapping[str, torch.Tensor],
    peer: Mapping[str, torch.Tensor],
    truth: nn.Module,
    run: Callable[[nn.Module], Mapping[str, torch.Tensor]],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Raise unless every result is within C5: twice the peer's error and `ROUNDINGS` of noise.

    Args:
        ours: the named results of the model to test.
        peer: those of PyTorch's model in the same dtype.
        truth: PyTorch's model in fp64.
        run: returns the results of a model; it is called with `truth`.
        dtype: the dtype of `ours` and `peer`.
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
    """The gradients of the parameters, each under the name `gradient of NAME`."""
    named = model.named_parameters()
    return {f"gradient of {name}": p.grad for name, p in named if p.grad is not None}


def assert_bitwise_equal(ours: torch.Tensor, expected: torch.Tensor, name: str = "result") -> None:
    """Raise unless both tensors have the same dtype, shape and bits.

    >>> assert_bitwise_equal(torch.arange(3), torch.tensor([0, 1, 2]))
    """
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
