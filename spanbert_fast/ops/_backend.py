"""Which implementation the ops run: their kernels, or the reference."""

import contextlib
import contextvars
import threading
from collections.abc import Iterator

import torch

_BACKENDS = ("kernels", "reference")
_backend = contextvars.ContextVar("spanbert_fast_backend", default="kernels")


class _Thread(threading.local):
    """The choice of a thread's innermost block, copied for torch.compile: it can guard its code on
    an attribute, but cannot read a context variable."""

    def __init__(self):
        self.backend = "kernels"


_thread = _Thread()


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the block with one backend, in this thread or asyncio task alone.

        >>> from spanbert_fast.ops.bias_gelu import bias_gelu
        >>> with use_backend("reference"):
        ...     bias_gelu(torch.zeros(1, 1), torch.ones(1))
        tensor([[0.8413]])

    Code that torch.compile has compiled follows the choice of the thread, not that of the task.

    Args:
        name: "kernels" (the default) lets PyTorch dispatch by device to the registered
            implementation; "reference" runs the readable PyTorch of `spanbert_fast.reference`,
            with plain autograd.

    Raises:
        ValueError: another name.
    """
    if name not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {name!r}")
    token = _backend.set(name)
    _thread.backend = name
    try:
        yield
    finally:
        _backend.reset(token)
        _thread.backend = _backend.get()


def runs_reference() -> bool:
    """Whether the caller asked for the reference."""
    backend = _thread.backend if torch.compiler.is_compiling() else _backend.get()
    return backend == "reference"
