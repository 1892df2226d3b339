"""Registers functions of tensors with PyTorch, which then dispatches them by device.

An op is a forward function and, if it has gradients, a backward function. Each is registered under
its name with a composite (in PyTorch's own operators, for any device and for float64), a fake
implementation, the extension's CPU kernel and the Triton launcher of that name. `_autograd.py`
connects the two.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from types import GenericAlias
from typing import Any, NamedTuple

import torch

from spanbert_fast._extension import _C

_library = torch.library.Library("spanbert_fast", "FRAGMENT")
has_triton = importlib.util.find_spec("triton") is not None

# The registered functions by name; tests and benchmarks iterate over them.
KERNELS: dict[str, "Kernel"] = {}
_OPS: dict[str, str] = {}  # the op of each registered function


class Signature:
    """The parameters of a composite, each NamedTuple replaced by its fields.

    Attributes:
        schema: PyTorch's, from the annotations.
    """

    def __init__(self, composite: Callable):
        signature, parameters, self._groups = inspect.signature(composite), [], []
        for name, parameter in signature.parameters.items():
            kind = parameter.annotation
            fields = _annotations(kind) or {name: kind}
            self._groups.append((kind if _annotations(kind) else None, len(fields)))
            parameters += [
                inspect.Parameter(field, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=hint)
                for field, hint in fields.items()
            ]
        result = signature.return_annotation
        if fields := _annotations(result):
            result = GenericAlias(tuple, tuple(fields.values()))
        flattened = self.flat(composite)
        vars(flattened)["__signature__"] = inspect.Signature(parameters, return_annotation=result)
        self.schema = torch.library.infer_schema(flattened, mutates_args=())

    def flat(self, function: Callable) -> Callable:
        """`function`, which has the composite's parameters, as a function of flat arguments."""

        def flattened(*arguments):
            grouped, first = [], 0
            for group, size in self._groups:
                part = arguments[first : first + size]
                grouped.append(part[0] if group is None else group(*part))
                first += size
            return function(*grouped)

        return flattened


def _annotations(kind: Any) -> dict[str, Any]:
    """The annotated fields of a NamedTuple class; of any other class none."""
    is_named_tuple = isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")
    return inspect.get_annotations(kind) if is_named_tuple else {}


class Kernel(NamedTuple):
    """A registered function; call it with its flat arguments.

    Attributes:
        op: what PyTorch dispatches by device.
        composite: the same function made of PyTorch's operators. It serves float64, which is used
            to check gradients.
    """

    op: torch._ops.OpOverload
    composite: torch._ops.OpOverload

    def __call__(self, *arguments):
        for argument in arguments:
            if isinstance(argument, torch.Tensor) and argument.dtype == torch.float64:
                return self.composite(*arguments)
        try:
            return self.op(*arguments)
        except RuntimeError as error:
            _raise_value_error(error)
            raise


def _raise_value_error(error: RuntimeError) -> None:
    """Raise a ValueError if the extension raised one: from 2.15 on PyTorch changes its type."""
    message = _C.last_value_error() if _C is not None else ""
    if message and str(error).startswith(message):
        raise ValueError(message) from None


def register(
    name: str,
    composite: Callable,
    fake: Callable,
    *,
    op: str | None = None,
    with_composite: bool = True,
) -> Kernel:
    """Register `spanbert_fast::name`.

    Args:
        composite: the implementation in PyTorch's own operators. Its annotations give the
            schema; a NamedTuple stands for its fields.
        fake: has the same parameters and returns empty tensors of the results' shapes and dtypes.
        op: the op that it belongs to, and the module of its Triton launcher; by default the name
            without _fwd or _bwd.
        with_composite: let a device without a kernel run the composite.
    """
    _OPS[name] = op or name.removesuffix("_fwd").removesuffix("_bwd")
    signature = Signature(composite)
    composite, fake = signature.flat(composite), signature.flat(fake)

    def without_autocast(*arguments):  # autocast would round the operands of products
        device = next(a.device.type for a in arguments if isinstance(a, torch.Tensor))
        with torch.autocast(device, enabled=False):
            return composite(*arguments)

    for full_name in (name, f"{name}_composite"):
        _library.define(full_name + signature.schema)
        if with_composite or full_name != name:
            _library.impl(full_name, without_autocast, "CompositeExplicitAutograd")
        torch.library.register_fake(f"spanbert_fast::{full_name}", fake, lib=_library)
    if has_triton and has_triton_kernel(name):
        _library.impl(name, _triton_launcher(name, signature), "CUDA")
    packet = torch.ops.spanbert_fast
    kernel = Kernel(getattr(packet, name).default, getattr(packet, f"{name}_composite").default)
    KERNELS[name] = kernel
    return kernel


def op_of(name: str) -> str:
    """The op that a registered function belongs to."""
    return _OPS[name]


def has_cpu_kernel(name: str) -> bool:
    """Whether the extension implements the function."""
    return _C is not None and torch._C._dispatch_has_kernel_for_dispatch_key(
        f"spanbert_fast::{name}", "CPU"
    )


def has_triton_kernel(name: str) -> bool:
    """Whether the function has a Triton launcher."""
    return importlib.util.find_spec(f"spanbert_fast.kernels.{op_of(name)}") is not None


def _triton_launcher(name: str, signature: Signature) -> Callable:
    launcher = None

    def launch(*arguments):
        nonlocal launcher
        if launcher is None:  # Triton is imported at the first call
            module = importlib.import_module(f"spanbert_fast.kernels.{op_of(name)}")
            launcher = signature.flat(getattr(module, name))
        # Triton launches on the current device, which may not be that of the tensors
        device = next(a.device for a in arguments if isinstance(a, torch.Tensor) and a.is_cuda)
        with torch.cuda.device(device):
            return launcher(*arguments)

    return launch
