"""Calls of ops: valid ones, compared with the composite, and ones with faulty arguments."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from hostile import mutations, public
from hostile.inputs import OPS, Make, Sizes, chosen
from op_cases import Case
from spanbert_fast.ops._register import KERNELS

# PyTorch's tensors of these dtypes are what the ops compute in.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Relative to the largest value of a result: far above rounding, which the ops' own tests check.
GROSS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
LEAST_COMPARED_WIDTH = 8  # of a norm: the variance of fewer values may vanish


class Wrong(Exception):
    """A valid call whose result is wrong."""


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        what: its description.
        arguments: its arguments, for debugging.
        make: makes the call and returns "returned".
        is_valid: whether it must not raise.
    """

    what: str
    arguments: tuple
    make: Callable[[], str]
    is_valid: bool

    def told(self) -> str:
        """The call and its arguments as text."""
        return "\n  ".join([self.what, *map(_told, self.arguments)])


def _told(x: object) -> str:
    if isinstance(x, torch.Tensor) and x.layout is torch.strided and not x.is_meta:
        few = f" {x.flatten().tolist()}" if x.numel() <= 8 else ""
        return f"{x.dtype} {tuple(x.shape)} strides {x.stride()}{few}"
    return repr(x)[:200]


def drawn_call(draw: random.Random) -> Call:
    """A random call: one in eight is valid, one in four calls the public function."""
    op, dtype = draw.choice(list(OPS)), draw.choice(DTYPES)
    case = OPS[op](Make(dtype, Sizes.drawn(draw), draw))
    kind = draw.randrange(8)
    if kind == 0:
        return valid_call(_with_views(case, draw), f"{op}, {dtype}", draw.randrange(1 << 30))
    inputs = _mutated(case.inputs, draw)
    if kind < 3:
        return _public_call(op, dtype, inputs, draw)
    if kind < 6 or case.backward is None:
        return _registered_call(case.forward, inputs, f"{op} forward, {dtype}", draw)
    outputs = case.outputs()
    dresult = torch.randn_like(outputs[0])
    arguments = (dresult, *case.inputs, *case.saved(outputs))
    return _registered_call(
        case.backward, _mutated(arguments, draw), f"{op} backward, {dtype}", draw
    )


def chosen_calls() -> Iterator[Call]:
    """Valid calls at the sizes of `inputs.chosen`."""
    for dtype in DTYPES[:3]:
        for number, (what, case) in enumerate(chosen(dtype)):
            yield valid_call(case, f"{what}, {dtype}", number)


def _mutated(arguments: tuple, draw: random.Random) -> tuple:
    changed = list(arguments)
    for place in draw.sample(range(len(changed)), min(len(changed), draw.choice((1, 1, 1, 2, 3)))):
        changed[place] = mutations.argument(changed[place], draw)
    return type(arguments)(*changed) if hasattr(arguments, "_fields") else tuple(changed)


def _with_views(case: Case, draw: random.Random) -> Case:
    views = [
        mutations.view_of(x, draw) if isinstance(x, torch.Tensor) and draw.random() < 0.5 else x
        for x in case.inputs
    ]
    return case._replace(inputs=type(case.inputs)(*views))


def _registered_call(kernel, arguments: tuple, what: str, draw: random.Random) -> Call:
    function = kernel
    # that of the sampler is the reference in Python, which its caller keeps from endless laws
    if draw.random() < 0.2 and kernel is not KERNELS["sample_spans"]:
        function = kernel.composite
    what = f"{what}, composite" if function is not kernel else what

    def make() -> str:
        function(*arguments)
        return "returned"

    return Call(what, tuple(arguments), make, False)


def _public_call(op: str, dtype, inputs: tuple, draw: random.Random) -> Call:
    number = draw.randrange(2)
    if draw.random() < 0.5:
        for x in inputs:
            if isinstance(x, torch.Tensor) and x.is_floating_point() and x.is_leaf:
                x.requires_grad_(not x.is_inference())

    def make() -> str:
        public.call(op, number, inputs)
        return "returned"

    return Call(f"{op} in public, {dtype}", tuple(inputs), make, False)


def valid_call(case: Case, what: str, seed: int) -> Call:
    """Forward and backward, beside the composite in float64."""

    def make() -> str:
        before = [x.clone() if isinstance(x, torch.Tensor) else x for x in case.inputs]
        outputs = case.outputs()
        wide = [_wide(x) for x in case.inputs]
        name = case.forward.op.name().removeprefix("spanbert_fast::")
        if case.op == "sample_spans":
            return _unchanged(case, before)
        if case.op == "embedding_layer_norm":
            wide[-1] = torch.float64
        if case.op == "linear_cross_entropy":
            wide[-1] = 0
        truths = KERNELS[name].composite(*wide)
        truths = truths if isinstance(truths, tuple) else (truths,)
        _compare(case, outputs[0], truths[0], "the result")
        if case.backward is not None:
            draw = torch.Generator().manual_seed(seed)
            dresult = torch.randn(outputs[0].shape, generator=draw).to(outputs[0].dtype)
            gradients = case.backward(dresult, *case.inputs, *case.saved(outputs))
            exact = case.backward.composite(dresult.double(), *wide, *case.saved(truths))
            for place, (gradient, truth) in enumerate(zip(gradients, exact, strict=True)):
                if gradient.numel():
                    _compare(case, gradient, truth, f"gradient {place}")
        return _unchanged(case, before)

    return Call(what, tuple(case.inputs), make, True)


def _wide(x: object) -> object:
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _unchanged(case: Case, before: list) -> str:
    for old, new in zip(before, case.inputs, strict=True):
        if isinstance(old, torch.Tensor) and not torch.equal(old, new):
            raise Wrong("an input has changed")
    return "returned"


def _compare(case: Case, ours: torch.Tensor, truth: torch.Tensor, name: str) -> None:
    if ours.shape != truth.shape:
        raise Wrong(f"{name} has shape {tuple(ours.shape)}, not {tuple(truth.shape)}")
    is_norm = case.op in ("dropout_add_layer_norm", "embedding_layer_norm", "span_boundary_gather")
    if truth.numel() == 0 or (is_norm and case.inputs.weight.shape[0] < LEAST_COMPARED_WIDTH):
        return
    dtypes = [x.dtype for x in case.inputs if isinstance(x, torch.Tensor)]
    allowed = max(GROSS.get(dtype, 0.0) for dtype in dtypes) * max(1.0, truth.abs().max().item())
    error = (ours.double() - truth).abs().max().item()
    if not error <= allowed:
        raise Wrong(f"{name} is off by {error:.3g}, allowed {allowed:.3g}")
