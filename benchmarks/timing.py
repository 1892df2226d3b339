"""Timing of several providers in alternating rounds.

Machines are shared and clocks drift, so providers that are compared run in turn in one process, and
a ratio is the median over the rounds, never a quotient of two separate runs. Rounds end when their
spread is small, or when their time is up.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

LEAST, MOST = 3, 15
_SETTLED = 0.03  # half of a provider's rounds lie within this share of their median


def last_level_cache() -> int:
    """Bytes of the CPU's largest cache, as Linux reports them; 32 MB if it does not."""
    levels = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [int(level.read_text().strip().removesuffix("K")) for level in levels]  # in KB
    return max(sizes, default=1 << 15) << 10


class Clock:
    """Wall-clock seconds of a call on the CPU.

    Before each call the caches are overwritten: in training, a step's activations and weights are
    much larger, and an op reads its inputs from memory.
    """

    device = "cpu"

    def __init__(self):
        self._scratch = torch.empty(2 * self._cache(), dtype=torch.uint8, device=self.device)

    def _cache(self) -> int:
        return last_level_cache()

    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        self._scratch.zero_()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def peak_mb(self, call: Callable[[], object]) -> float | None:
        """MB that a call allocates beyond what was allocated before; None if it is not known."""
        return None


class CudaClock(Clock):
    """Seconds that the GPU takes for a call, between two events.

    The L2 cache is overwritten, too, and the GPU is kept busy while the host launches the call's
    kernels, so that the time is that of the kernels, as in a CUDA graph, without Python. If the GPU
    was idle before the host had launched all, the call is timed again after more work, unless the
    call itself waits for the GPU.
    """

    device = "cuda"
    _busy_cycles = 2_000_000  # about a millisecond
    _MOST_CYCLES = 32_000_000

    def _cache(self) -> int:
        return max(torch.cuda.get_device_properties(0).L2_cache_size, 1 << 25)

    def seconds(self, call: Callable[[], object]) -> float:
        """GPU seconds of one call."""
        while True:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._scratch.zero_()
            torch.cuda._sleep(self._busy_cycles)
            start.record()
            call()
            overtaken = start.query()
            end.record()
            torch.cuda.synchronize()
            if not overtaken or self._busy_cycles >= self._MOST_CYCLES:
                return start.elapsed_time(end) / 1e3
            self._busy_cycles *= 4

    def peak_mb(self, call: Callable[[], object]) -> float | None:
        """The peak of MB allocated during a call, beyond those before it."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def clock_of(device: str) -> Clock:
    """The clock for a device, "cpu" or "cuda"."""
    return CudaClock() if device == "cuda" else Clock()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile)."""
    if len(values) == 1:
        return (values[0],) * 3
    low, _, high = statistics.quantiles(values, n=4)
    return max(low, min(values)), statistics.median(values), min(high, max(values))


def settled(values: Sequence[float]) -> bool:
    """Whether the middle half of the values is narrow."""
    low, middle, high = quartiles(values)
    return high - low <= _SETTLED * middle


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    clock: Clock,
    budget: float,
    least: int = LEAST,
    most: int = MOST,
) -> dict[str, list[float]]:
    """Seconds of each call in rounds of all calls, after a warm-up round.

    A call that takes longer than a round's share of the budget, and longer than five of the first
    call, runs in the first round only.

    Args:
        calls: the calls by provider.
        clock: times them.
        budget: seconds after which `least` rounds are enough.
        least, most: numbers of rounds; `least` are enough if their spread is small.
    """
    for call in calls.values():
        call()
    found = {name: [clock.seconds(call)] for name, call in calls.items()}
    longest = max(budget / least, 5 * next(iter(found.values()))[0])
    often = {name: call for name, call in calls.items() if found[name][0] <= longest}
    start = time.perf_counter()
    for number in range(2, most + 1):
        for name, call in often.items():
            found[name].append(clock.seconds(call))
        spent = time.perf_counter() - start
        if number >= least and (spent > budget or all(map(settled, found.values()))):
            break
    return found


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """The figures of one provider's rounds."""
    low, middle, high = quartiles(seconds)
    rounds = len(seconds)
    return {"median_ms": 1e3 * middle, "low_ms": 1e3 * low, "high_ms": 1e3 * high, "rounds": rounds}


def ratio(peer: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """The speed-up of ours over the pairs of rounds; a slow peer has fewer."""
    ratios = [a / b for a, b in zip(peer, ours, strict=False)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
