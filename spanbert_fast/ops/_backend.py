"""Which implementation the ops run: their kernels, or the reference."""

import contextlib
import contextvars
import threading
from collections.abc import Iterator

import torch

_BACKENDS = ("kernels", "reference")
_backend = contextvars.ContextVar("spanbert_fast_backend", default="kernels")
# The blocks of `use_backend` that are open in any thread. torch.compile guards on this number, and
# looks at the context itself only where there is such a block.
_open_blocks = 0
_lock = threading.Lock()


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the block with one backend, in this thread or asyncio task alone.

        with spanbert_fast.use_backend("reference"):
            expected = model(**inputs).logits

    Args:
        name: "kernels" (the default) lets PyTorch dispatch by device to the registered
            implementation; "reference" runs the readable PyTorch of `spanbert_fast.reference`,
            with plain autograd.

    Raises:
        ValueError: another name.
    """
    global _open_blocks
    if name not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {name!r}")
    token = _backend.set(name)
    with _lock:
        _open_blocks += 1
    try:
        yield
    finally:
        with _lock:
            _open_blocks -= 1
        _backend.reset(token)


@torch.compiler.assume_constant_result
def _is_reference() -> bool:
    return _backend.get() == "reference"


def runs_reference() -> bool:
    """Whether the caller asked for the reference."""
    return _open_blocks != 0 and _is_reference()
