#!/usr/bin/env python
"""Is an op slower than it was? `make bench-compare BASE=<commit or file>`.

    python benchmarks/compare.py main~3
    python benchmarks/compare.py v0.1 --threshold 1.05 --device cuda
    python benchmarks/compare.py benchmarks/results/amd-epyc-2-cores-avx512-bf16/ops.json --quick

A commit is built in a worktree of its own, then the ops of both are timed in turn, each in a
process of its own: base, head, head, base, ... Each is timed by the op_times.py of its own commit,
since arguments may have got other names; its cases keep theirs as long as they are the same. A
round is the median of some calls. An op is slower
if the median of the rounds' ratios is above the threshold and so is their lower quartile: a
neighbour that disturbs a few rounds decides nothing. The exit code is 1 if an op is slower.

With a file of the op suite as the base, the suite is run again on the same device, and each case is
compared with the file's median by the same rule. The two are not interleaved, so a machine that is
busier, or runs at another clock, looks like slower code.
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
from typing import Any

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

from results_format import read_document

ROOT, OURS = FOLDER.parent, "ours"


def quartile(values: list[float]) -> float:
    """The lower quartile."""
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


def one_round(package: Path, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each op of a package, in a new process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "OMP_NUM_THREADS": str(options.threads),
        "PYTHONSAFEPATH": "1",
        "SPANBERT_FAST_BENCH_TINY": "1" if options.tiny else "0",
    }
    times = package / "benchmarks" / "op_times.py"
    if not times.exists():
        raise SystemExit(f"compare.py: {options.base}: has no benchmarks/op_times.py")
    command = [sys.executable, str(times), str(package), options.device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=FOLDER)
    if done.returncode:
        raise SystemExit(f"compare.py: {package}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def print_header() -> None:
    """Print the header of the ops' lines."""
    print(f"{'op':<60}{'base ms':>10}{'head ms':>10}{'ratio':>8}")


def print_row(op: str, base: float, head: float, ratios: list[float], found: str) -> None:
    """Print an op's line; times are in seconds."""
    middle = statistics.median(ratios)
    print(f"{op:<60}{1e3 * base:>10.3f}{1e3 * head:>10.3f}{middle:>8.2f}  {found}")


def with_commit(options: argparse.Namespace) -> list[str]:
    """The ops that are slower than at a commit."""
    seconds: dict[str, list[dict[str, float]]] = {"base": [], "head": []}
    with built(options.base) as base:
        packages = {"base": base, "head": ROOT}
        for number in range(options.rounds):
            order = ("base", "head") if number % 2 == 0 else ("head", "base")
            for name in order:
                seconds[name].append(one_round(packages[name], options))
    slower = []
    print_header()
    for op in seconds["head"][0]:
        if op not in seconds["base"][0]:
            print(f"{op:<60}{'new':>10}")
            continue
        base, head = ([run[op] for run in seconds[name]] for name in ("base", "head"))
        ratios = [b / a for a, b in zip(base, head, strict=True)]
        found = verdict(ratios, options.threshold)
        slower += [op] * (found == "slower")
        print_row(op, statistics.median(base), statistics.median(head), ratios, found)
    return slower


def medians(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Our figures and the shape, of each record of the op suite that has figures."""
    found = {}
    for record in content["results"]:
        ours = record.get("providers", {}).get(OURS, {})
        if "median_ms" in ours:
            name = f"{record['op']} {record['case']}, threads: {record['threads']}"
            found[name] = ours | {"shape": record["shape"]}
    return found


def with_file(options: argparse.Namespace) -> list[str]:
    """The ops that are slower than in a file of the op suite."""
    content = read_document(Path(options.base))
    base = medians(content)
    if content["benchmark"] != "ops" or not base:
        raise SystemExit(f"compare.py: {options.base}: must be a file of the op suite")
    device, threads = content.get("device", "cpu"), content["threads"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "ops.json"
        command = [sys.executable, str(FOLDER / "op_suite.py"), "--output", str(output)]
        command += ["--device", device, "--threads", str(threads)]
        command += ["--quick"] * options.quick + ["--tiny"] * options.tiny
        done = subprocess.run(
            command, env={**os.environ, "PYTHONSAFEPATH": "1"}, stdout=subprocess.DEVNULL
        )
        if done.returncode:
            raise SystemExit(f"compare.py: op_suite.py ended with exit code {done.returncode}")
        head = medians(read_document(output))
    print(f"{options.base} is of commit {content['commit']}; the two runs are not interleaved")
    slower = []
    print_header()
    for op, found in head.items():
        if op not in base or base[op]["shape"] != found["shape"]:
            print(f"{op:<60}{'new':>10}")
            continue
        of_base = base[op]["median_ms"]
        ratios = [found[name] / of_base for name in ("low_ms", "median_ms", "high_ms")]
        result = verdict(ratios, options.threshold)
        slower += [op] * (result == "slower")
        print_row(op, of_base / 1e3, found["median_ms"] / 1e3, ratios, result)
    return slower


def main(argv: list[str] | None = None) -> int:
    """Compare; 1 if an op of the working tree is slower."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("base", help="a commit, or a results file of the op suite")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="with a commit (cpu)")
    add("--rounds", type=int, default=8, help="processes of each, with a commit (8)")
    add("--threads", type=int, default=1, help="with a commit (1)")
    add("--threshold", type=float, default=1.10, help="ratio from which an op is slower (1.10)")
    add("--quick", action="store_true", help="with a file: bf16, forward and backward alone")
    add("--tiny", action="store_true", help="tiny shapes, to see that it runs")
    options = parser.parse_args(argv)
    compared = with_file if Path(options.base).is_file() else with_commit
    return 1 if compared(options) else 0


if __name__ == "__main__":
    sys.exit(main())
