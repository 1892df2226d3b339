"""Timing of two providers in alternating rounds, beside the rate at which memory is copied.

Machines are shared and clocks drift: what is compared runs turn and turn about in one process, and
a ratio is the median over the pairs, never a quotient of two separate runs.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch

# One small shape and few rounds: to see that every benchmark runs, not how fast.
TINY = os.environ.get("SPANBERT_FAST_BENCH_TINY") == "1"
ROUNDS = 2 if TINY else 15
_COPIED_BYTES = 1 << 16 if TINY else 1 << 26  # beyond the caches


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the pairs' quotients."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def step(
    function: Callable[..., torch.Tensor],
    leaves: Sequence[torch.Tensor],
    dy: torch.Tensor,
    backward: bool,
) -> tuple[torch.Tensor, ...]:
    """(y,) without a graph, or (y, the gradients of all leaves)."""
    if not backward:
        with torch.no_grad():
            return (function(*leaves),)
    y = function(*leaves)
    return y, *torch.autograd.grad(y, leaves, dy)


def compare(
    benchmark,
    capsys,
    title: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    bytes_moved: int,
) -> None:
    """Time `ours` and `peer` in alternating rounds and print both, their ratio, and the floor.

    The floor is the time in which this machine copies as many bytes as `ours` has to read and
    write at least (inputs once, outputs once), measured between the rounds with as many threads.
    """
    source = torch.ones(_COPIED_BYTES // 4)
    target = torch.empty_like(source)
    peers, copies = [], []

    def others():
        peers.append(seconds(peer))
        copies.append(seconds(lambda: target.copy_(source)))

    for _ in range(2):  # warms up: first calls allocate, and load code
        ours(), others()
    peers.clear(), copies.clear()
    benchmark.pedantic(ours, setup=others, rounds=ROUNDS)
    if benchmark.disabled:
        return
    times = benchmark.stats.stats.data
    floor = bytes_moved / (2 * _COPIED_BYTES) * statistics.median(copies)
    figures = {
        "ms": 1e3 * statistics.median(times),
        "peer_ms": 1e3 * statistics.median(peers),
        "speed_up": median_ratio(peers, times),
        "best_speed_up": min(peers) / min(times),
        "floor_ms": 1e3 * floor,
        "best_over_floor": min(times) / floor,
    }
    benchmark.extra_info.update(figures)
    with capsys.disabled():
        print(
            f"\n{title}: ours {figures['ms']:.2f} ms, PyTorch {figures['peer_ms']:.2f} ms, "
            f"{figures['speed_up']:.1f}x (best rounds {figures['best_speed_up']:.1f}x)\n"
            f"    memory alone {figures['floor_ms']:.2f} ms, "
            f"best round {figures['best_over_floor']:.1f} times that"
        )
