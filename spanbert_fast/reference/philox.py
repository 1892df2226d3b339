"""Philox4x32, the counter-based generator behind span sampling (C3) and dropout (C4).

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3.
"""

from typing import Any, TypeVar, overload

import torch

Word = TypeVar("Word", int, torch.Tensor)

MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)


@overload
def philox4x32(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    key: tuple[int, int] | tuple[torch.Tensor, torch.Tensor],
    rounds: int = 10,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]: ...


@overload
def philox4x32(
    counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int = 10
) -> tuple[int, int, int, int]: ...


def philox4x32(counter: Any, key: Any, rounds: int = 10) -> Any:
    """Four uniform 32-bit words from a 128-bit counter and a 64-bit key.

    Args:
        counter, key: Python ints, or int64 tensors that broadcast, each in [0, 2**32).
        rounds: 10 for sampling (C3), 7 for dropout (C4).

    Returns:
        Four words in [0, 2**32), of the type of the counter.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # An int64 product wraps modulo 2**64: after the mask both halves are still exact.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, low0 = (p0 >> 32) & MASK32, p0 & MASK32
        high1, low1 = (p1 >> 32) & MASK32, p1 & MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & MASK32, (k1 + _KEY_INCREMENTS[1]) & MASK32
    return c0, c1, c2, c3


def split_key(seed: Word) -> tuple[Word, Word]:
    """The two key words (low, high) of a 64-bit seed; a negative seed is read modulo 2**64."""
    return seed & MASK32, (seed >> 32) & MASK32
