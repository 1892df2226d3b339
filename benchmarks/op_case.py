"""The measurement of an op: its providers, the check of each, and what bounds them.

Every bench_<op>.py has VARIANTS and `case(variant, device, size)`, which makes an `OpCase`. The
suite (op_suite.py) and pytest-benchmark (bench_ops.py) measure these. A provider gets a ratio only
if its results, and ours, were right in the same run: at most twice as far from the truth in fp64 as
PyTorch's usual operators in the same dtype (contract C5).
"""

import contextlib
import dataclasses
import importlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from spanbert_fast.ops._backend import use_backend

OURS, PYTORCH, COMPILED = "ours", "PyTorch", "PyTorch compiled"
# One small shape and few rounds, to test that every benchmark runs, not how fast.
TINY = os.environ.get("SPANBERT_FAST_BENCH_TINY") == "1"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., torch.Tensor]


@dataclasses.dataclass
class Provider:
    """One way to compute an op.

    Attributes:
        function: the function of the leaves that is timed.
        plain: the same without dropout, for the check; None if `function` has no dropout.
        leaves, dy: in the provider's own layout; None for the case's.
        to_ours: results (y, or y and the gradients) in the layout of ours.
        slow: it takes seconds to compile or to run, so the suite measures it in some cases only.
    """

    function: Function
    plain: Function | None = None
    leaves: Sequence[torch.Tensor] | None = None
    dy: torch.Tensor | None = None
    to_ours: Callable[[Tensors], Tensors] = lambda results: results
    slow: bool = False


@dataclasses.dataclass
class OpCase:
    """An op at one shape.

    Attributes:
        op, variant: names.
        shape: in words.
        dtype: "bf16", "fp16" or "fp32".
        leaves: tensors that get gradients.
        dy: the output's gradient.
        providers: by name, `OURS` first.
        bytes_moved: the least bytes read and written, in forward and in forward + backward.
        flops: of matrix products, likewise; 0 if memory bounds the op.
        not_installed: libraries that would be providers.
        autocast: run under bf16 autocast.
        head: (number of first rows that are compared, ours on these rows alone); None for all.
        floor: error that is always allowed, as a share of the largest exact value; None for one
            unit in the last place, for a baseline that is right by luck.
        baseline: the provider whose errors others may have twice.
    """

    op: str
    variant: str
    shape: dict[str, int]
    dtype: str
    leaves: Sequence[torch.Tensor]
    dy: torch.Tensor
    providers: dict[str, Provider]
    bytes_moved: tuple[int, int]
    flops: tuple[int, int] = (0, 0)
    not_installed: Sequence[str] = ()
    autocast: bool = False
    head: tuple[int, Provider] | None = None
    floor: float | None = None
    baseline: str = PYTORCH

    def run(self, provider: Provider, function: Function, backward: bool) -> Tensors:
        """(y,) without a graph, or (y, the gradients of all leaves)."""
        leaves = self.leaves if provider.leaves is None else provider.leaves
        dy = self.dy if provider.dy is None else provider.dy
        device = leaves[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            if not backward:
                with torch.no_grad():
                    return (function(*leaves),)
            y = function(*leaves)
        return y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))

    def call(self, name: str, backward: bool) -> Callable[[], Tensors]:
        """One call of a provider, as it is timed."""
        provider = self.providers[name]
        return lambda: self.run(provider, provider.function, backward)

    def _exact(self, dropped: bool, backward: bool, wide: bool) -> Tensors:
        """Ours on the reference backend, with or without dropout, in fp64 or in its own dtype."""
        rows, ours = self.head or (None, self.providers[OURS])
        function = ours.function if dropped or ours.plain is None else ours.plain
        leaves, dy = [t.detach()[:rows] for t in self.leaves], self.dy[:rows] if rows else self.dy
        if wide:
            leaves, dy = [t.double() for t in leaves], dy.double()
        provider = Provider(function, leaves=[t.requires_grad_() for t in leaves], dy=dy)
        case = dataclasses.replace(self, autocast=self.autocast and not wide)
        with use_backend("reference"):
            return case.run(provider, function, backward)

    def errors(self, backward: bool) -> dict[str, float | Exception]:
        """Each provider's largest error as a share of the allowed error, at most 1 if it is right;
        or what it raised. Ours is also checked with its dropout."""
        exact = self._exact(False, backward, wide=True)
        found: dict[str, Tensors | Exception] = {}
        for name, provider in self.providers.items():
            try:
                function = provider.function if provider.plain is None else provider.plain
                found[name] = self._seen(provider, function, backward)
            except torch.AcceleratorError:  # the GPU is lost to this process, and to all others
                raise
            except Exception as error:  # whatever a peer raises, the others are measured
                found[name] = error
        pytorch = found[self.baseline]
        if isinstance(pytorch, Exception):
            raise pytorch
        shares: dict[str, float | Exception] = {
            name: r if isinstance(r, Exception) else self._share(r, pytorch, exact)
            for name, r in found.items()
        }
        ours = self.providers[OURS]
        if ours.plain is not None and not isinstance(shares[OURS], Exception):
            dropped = self._seen(ours, ours.function, backward)
            peer, exact = (self._exact(True, backward, wide) for wide in (False, True))
            shares[OURS] = max(shares[OURS], self._share(dropped, peer, exact))
        return shares

    def _seen(self, provider: Provider, function: Function, backward: bool) -> Tensors:
        rows = self.head[0] if self.head else None
        results = provider.to_ours(self.run(provider, function, backward))
        return tuple(t[:rows] if rows else t for t in results)

    def _share(self, results: Tensors, pytorch: Tensors, exact: Tensors) -> float:
        floor = torch.finfo(DTYPES[self.dtype]).eps if self.floor is None else self.floor
        return error_share(results, pytorch, exact, floor)


def error_share(results: Tensors, baseline: Tensors, exact: Tensors, floor: float) -> float:
    """The largest error divided by the allowed 2 max|baseline - exact| + floor max|exact|.

    Infinite if a tensor has another shape, or elements that are not finite.
    """
    worst = 0.0
    for ours, peer, truth in zip(results, baseline, exact, strict=True):
        if ours.shape != truth.shape or not torch.isfinite(ours).all():
            return math.inf
        error, of_peer = ((t.double() - truth).abs().max().item() for t in (ours, peer))
        allowed = 2 * of_peer + floor * truth.abs().max().item()
        worst = max(worst, error / allowed if allowed else math.inf if error else 0.0)
    return worst


def compiled(function: Function, plain: Function | None = None, **layout: Any) -> Provider:
    """The compiled form; tiny shapes are only traced, since the C++ compiler takes seconds.

    Args:
        function, plain, layout: as in `Provider`.
    """
    options = {"backend": "aot_eager" if TINY else "inductor", "dynamic": False, "fullgraph": True}
    forms = [None if form is None else torch.compile(form, **options) for form in (function, plain)]
    return Provider(*forms, **layout, slow=True)


def installed(module: str) -> bool:
    """Whether a library can be imported: it may be missing, or built for another torch."""
    with contextlib.suppress(Exception):
        importlib.import_module(module)
        return True
    return False


def leaf(*shape: int, dtype: torch.dtype, device: str, scale: float = 1.0) -> torch.Tensor:
    """A random tensor that requires a gradient."""
    return (scale * torch.randn(shape, device=device)).to(dtype).requires_grad_()


@dataclasses.dataclass
class ExactCase:
    """An op without gradients, whose providers must give the same bits; otherwise as `OpCase`.

    Attributes:
        providers: the functions that are timed, by name.
        results: the functions that are compared, by name; the first is the truth.
    """

    op: str
    variant: str
    shape: dict[str, int]
    providers: dict[str, Callable[[], Any]]
    results: dict[str, Callable[[], Sequence[torch.Tensor]]]
    bytes_moved: tuple[int, int]
    dtype: str = "int64"
    flops: tuple[int, int] = (0, 0)
    not_installed: Sequence[str] = ()

    def call(self, name: str, backward: bool) -> Callable[[], Any]:
        """One call of a provider."""
        return self.providers[name]

    def errors(self, backward: bool) -> dict[str, float | Exception]:
        """0 if all bits are those of the first result, else infinite."""
        found = {name: [t.cpu() for t in make()] for name, make in self.results.items()}
        first = next(iter(found.values()))
        same = {
            name: all(torch.equal(a, b) for a, b in zip(r, first, strict=True))
            for name, r in found.items()
        }
        return {name: 0.0 if same[name] else math.inf for name in self.providers}
