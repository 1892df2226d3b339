#!/usr/bin/env python
"""The ceilings of a machine, measured first: the rates of matrix products and of copies."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import torch
from results_format import RESULTS, document, write_document
from timing import clock_of

_ROUNDS = 9
SIZES = {"cpu": (2048, 1 << 25), "cuda": (8192, 1 << 30)}  # matrices' width, fp32 values copied


def ceilings(threads: int, *, tiny: bool = False, device: str = "cpu") -> list[dict]:
    """Rates of large matrix products (GFLOP/s) and of a copy beyond the caches (GB/s, read and
    written bytes counted).

    Args:
        threads: threads of each measurement on the CPU.
        tiny: small sizes, to test that it runs.
        device: "cpu" or "cuda".
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    clock = clock_of(device)

    def fastest(function) -> float:
        function()
        return min(clock.seconds(function) for _ in range(_ROUNDS))

    try:
        found = []
        size, copied = (64, 1 << 10) if tiny else SIZES[device]
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            rate = 2 * size**3 / fastest(lambda a=a, b=b: a @ b) / 1e9
            found.append({"what": f"matrix product, {name}", "value": rate, "unit": "GFLOP/s"})
        source = torch.ones(copied, device=device)
        target = torch.empty_like(source)
        rate = 2 * source.nbytes / fastest(lambda: target.copy_(source)) / 1e9
        found.append({"what": "copy", "value": rate, "unit": "GB/s"})
        return found
    finally:
        torch.set_num_threads(before)
        if device == "cuda":
            torch.cuda.empty_cache()  # gigabytes that other processes need


def show(records: Sequence[dict]) -> str:
    """Records for reading."""
    return "\n".join("  {what:<32}{value:>10.1f} {unit}".format(**record) for record in records)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="on the CPU (2)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "ceilings.json")
    options = parser.parse_args(argv)
    found = ceilings(options.threads, tiny=options.tiny, device=options.device)
    print(show(found))
    content = document("ceilings", options.threads, found, options.device)
    write_document(options.output, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
