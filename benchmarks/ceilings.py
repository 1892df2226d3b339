"""What bounds everything else on a machine: matrix products and copies, measured first."""

import time
from collections.abc import Callable

import torch

_ROUNDS = 9


def _fastest(function: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls, after one that warms up."""
    function()
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def ceilings(threads: int, *, tiny: bool = False) -> list[dict]:
    """Rates of large matrix products (GFLOP/s) and of a copy beyond the caches (GB/s, read and
    written bytes counted).

    Args:
        threads: of each measurement.
        tiny: small sizes, to see that it runs.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = []
        size = 64 if tiny else 2048
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
            rate = 2 * size**3 / _fastest(lambda a=a, b=b: a @ b) / 1e9
            found.append({"what": f"matrix product, {name}", "value": rate, "unit": "GFLOP/s"})
        source = torch.ones(1 << (10 if tiny else 25))  # 128 MB
        target = torch.empty_like(source)
        rate = 2 * source.nbytes / _fastest(lambda: target.copy_(source)) / 1e9
        found.append({"what": "copy", "value": rate, "unit": "GB/s"})
        return found
    finally:
        torch.set_num_threads(before)
