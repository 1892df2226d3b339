"""Which implementation the ops run: their kernels, or the reference."""

import contextlib
import contextvars
import threading
from collections.abc import Iterator

import torch

_BACKENDS = ("kernels", "reference")
_backend = contextvars.ContextVar("spanbert_fast_backend", default="kernels")


class _Thread(threading.local):
    """The choice of a thread's newest block once more, for torch.compile: it guards what it has
    compiled on an attribute, but cannot look at a context variable."""

    def __init__(self):
        self.backend = "kernels"


_thread = _Thread()


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the block with one backend, in this thread or asyncio task alone.

        with spanbert_fast.use_backend("reference"):
            expected = model(**inputs).logits

    What torch.compile has compiled goes by the thread, not by the task.

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
