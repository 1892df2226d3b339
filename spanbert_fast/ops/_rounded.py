"""bf16 copies of fp32 weights, which `linear` takes where autocast would cast the weights."""

import contextlib
import threading
from collections.abc import Iterable, Iterator

import torch


class RoundedWeights:
    """The copies that were asked for, each with the version of its weight that it holds.

    Whoever updates a weight may write its copy, too. A copy whose weight has changed since is made
    again when it is next asked for.
    """

    def __init__(self):
        self._copies: dict[int, torch.Tensor] = {}
        self._versions: dict[int, int] = {}
        self._owned: dict[int, torch.Tensor] = {}

    def own(self, weights: Iterable[torch.Tensor]) -> None:
        """Copies of these weights, and of no others, may be asked for."""
        self._owned |= {id(weight): weight for weight in weights}

    def of(self, weight: torch.Tensor) -> torch.Tensor | None:
        """The copy of a weight, now up to date; None for one that is not owned or not fp32."""
        key = id(weight)
        if key not in self._owned or weight.dtype != torch.float32:
            return None
        if key not in self._copies:
            self._copies[key] = weight.detach().bfloat16()
            self.written([weight])
        self._refresh(weight)
        return self._copies[key]

    def kept(self, weights: Iterable[torch.Tensor]) -> list[torch.Tensor | None]:
        """The copies of these weights as they are, None where none was asked for."""
        return [self._copies.get(id(weight)) for weight in weights]

    def written(self, weights: Iterable[torch.Tensor]) -> None:
        """The copies of these weights hold what the weights hold now."""
        self._versions |= {id(w): w._version for w in weights if id(w) in self._copies}

    def refresh(self) -> None:
        """Make the copies of all weights that have changed again."""
        for key in self._copies:
            self._refresh(self._owned[key])

    def _refresh(self, weight: torch.Tensor) -> None:
        if self._versions[id(weight)] != weight._version:
            self._copies[id(weight)].copy_(weight.detach())
            self.written([weight])

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """`linear` takes these copies inside the block, in this thread."""
        before, _thread.rounded = _thread.rounded, self
        try:
            yield
        finally:
            _thread.rounded = before


class _Thread(threading.local):
    rounded: RoundedWeights | None = None


_thread = _Thread()


def cast_weight(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight in `dtype`, without gradient: a copy that is kept, or a cast."""
    if (
        dtype == torch.bfloat16
        and not torch.compiler.is_compiling()
        and _thread.rounded is not None
    ):
        copy = _thread.rounded.of(weight)
        if copy is not None:
            return copy
    return weight.to(dtype)
