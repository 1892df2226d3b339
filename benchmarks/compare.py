#!/usr/bin/env python
"""Is an op slower than it was? `make bench-compare BASE=<commit>`.

    python benchmarks/compare.py main~3
    python benchmarks/compare.py v0.1 --threshold 1.05

Builds BASE in a worktree of its own, then times the ops of both by turns, each in a process of its
own: base, head, head, base, ... A round is the median of some calls. An op is slower where the
median of the rounds' ratios is above the threshold and so is all but their lowest quarter: a
neighbour that disturbs a few rounds decides nothing. Exit code 1 where an op is slower.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent


def quartile(values: list[float]) -> float:
    """The value that a quarter of the others lie below."""
    return statistics.quantiles(values, n=4)[0] if len(values) > 1 else values[0]


def verdict(ratios: list[float], threshold: float) -> str:
    """ "slower", "faster" or "same", by head's time over base's in each round."""
    middle = statistics.median(ratios)
    if middle > threshold and quartile(ratios) > threshold:
        return "slower"
    inverse = [1 / ratio for ratio in ratios]
    if statistics.median(inverse) > threshold and quartile(inverse) > threshold:
        return "faster"
    return "same"


@contextlib.contextmanager
def built(commit: str) -> Iterator[Path]:
    """The package of a commit with its extension, in a temporary worktree."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", tree, commit], check=True
        )
        try:
            command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
            print(f"building {commit} ...", flush=True)
            subprocess.run(command, cwd=tree, check=True, capture_output=True)
            yield tree
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)


def one_round(package: Path, threads: int, tiny: bool) -> dict[str, float]:
    """Median seconds of each op of a package, in a new process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONSAFEPATH": "1",
        "SPANBERT_FAST_BENCH_TINY": "1" if tiny else "0",
    }
    command = [sys.executable, str(FOLDER / "op_times.py"), str(package)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=FOLDER)
    if done.returncode:
        raise SystemExit(f"compare.py: {package}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def main() -> int:
    """Compare; 1 where an op of the working tree is slower."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("base", help="a commit")
    add("--rounds", type=int, default=8, help="processes of each (8)")
    add("--threads", type=int, default=1)
    add("--threshold", type=float, default=1.10, help="ratio from which an op is slower (1.10)")
    add("--tiny", action="store_true", help="tiny shapes, to see that it runs")
    options = parser.parse_args()
    with built(options.base) as base:
        packages = {"base": base, "head": ROOT}
        seconds: dict[str, list[dict[str, float]]] = {"base": [], "head": []}
        for number in range(options.rounds):
            order = ("base", "head") if number % 2 == 0 else ("head", "base")
            for name in order:
                seconds[name].append(one_round(packages[name], options.threads, options.tiny))
    slower = 0
    print(f"{'op':<44}{'base ms':>10}{'head ms':>10}{'ratio':>8}")
    for op in seconds["head"][0]:
        if op not in seconds["base"][0]:
            print(f"{op:<44}{'new':>10}")
            continue
        base, head = ([run[op] for run in seconds[name]] for name in ("base", "head"))
        ratios = [b / a for a, b in zip(base, head, strict=True)]
        found = verdict(ratios, options.threshold)
        slower += found == "slower"
        print(
            f"{op:<44}{1e3 * statistics.median(base):>10.2f}{1e3 * statistics.median(head):>10.2f}"
            f"{statistics.median(ratios):>8.2f}  {found}"
        )
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
