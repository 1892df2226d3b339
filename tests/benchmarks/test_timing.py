"""The clocks, and when there have been enough rounds."""

import itertools
import types

import pytest
import torch


def test_the_cpus_clock(benchmarks, small_cache, monkeypatch):
    """The caches are overwritten before a call, and not within its time."""
    timing = benchmarks("timing")
    clock, seen = timing.Clock(), []
    assert clock._scratch.nbytes == 2 * timing.last_level_cache() == 2 << 20
    assert small_cache() >= 1 << 18
    clock._scratch.fill_(1)
    clock.seconds(lambda: seen.append(clock._scratch.any().item()))
    assert seen == [False]
    done, ticks = [], iter([10.0, 10.25])
    fake = types.SimpleNamespace(perf_counter=lambda: (done.append("time"), next(ticks))[1])
    monkeypatch.setattr(timing, "time", fake)
    clock._scratch = types.SimpleNamespace(zero_=lambda: done.append("zeros"))
    assert clock.seconds(lambda: done.append("call")) == 0.25
    assert done == ["zeros", "time", "call", "time"]


@pytest.mark.parametrize("overtaken, sleeps", [(0, [2]), (1, [2, 8]), (9, [2, 8, 32])])
def test_the_gpus_clock(benchmarks, monkeypatch, overtaken, sleeps):
    """The caches are overwritten and the GPU kept busy before a call; its time is the events'.
    Where the GPU was done first, it is kept busy for longer."""
    timing, done = benchmarks("timing"), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("event")

        def query(self):
            return done.count("call") <= overtaken

        def elapsed_time(self, end):
            return 250.0  # milliseconds

    def scratch(size, dtype, device):
        assert size >= 2 * 50_000_000 and device == "cuda"
        return types.SimpleNamespace(zero_=lambda: done.append("zeros"))

    cuda = types.SimpleNamespace(
        Event=Event,
        get_device_properties=lambda i: types.SimpleNamespace(L2_cache_size=50_000_000),
        _sleep=lambda cycles: done.append(cycles // 1_000_000),
        synchronize=lambda: done.append("wait"),
        memory_allocated=lambda: 3 * 2**20,
        max_memory_allocated=lambda: 8 * 2**20,
        reset_peak_memory_stats=lambda: done.append("reset"),
    )
    fake = types.SimpleNamespace(cuda=cuda, empty=scratch, uint8=torch.uint8)
    monkeypatch.setattr(timing, "torch", fake)
    clock = timing.clock_of("cuda")
    assert clock.seconds(lambda: done.append("call")) == 0.25
    expected = (["zeros", cycles, "event", "call", "event", "wait"] for cycles in sleeps)
    assert done == list(itertools.chain(*expected))
    assert clock.peak_mb(lambda: None) == 5


class FakeClock:
    """Gives the seconds it was told, for ever."""

    def __init__(self, *seconds: float):
        self.seconds_of = seconds
        self.calls = 0

    def seconds(self, call) -> float:
        self.calls += 1
        return self.seconds_of[self.calls % len(self.seconds_of)]


@pytest.mark.parametrize(
    ("clock", "budget", "rounds"),
    [
        (FakeClock(1.0), 60, 3),  # as steady as can be
        (FakeClock(1.0, 2.0, 3.0), 60, 8),  # never settles
        (FakeClock(1.0, 2.0, 3.0), 0, 3),  # no time
    ],
)
def test_rounds_end_when_they_have_settled(clock, budget, rounds, benchmarks):
    calls = {"ours": lambda: None, "peer": lambda: None}
    found = benchmarks("timing").interleaved(calls, clock, budget, least=3, most=8)
    assert {name: len(times) for name, times in found.items()} == {"ours": rounds, "peer": rounds}
