#!/usr/bin/env python
"""Measures what this machine can: ceilings, ops, scaling, inference, a training step.

    python benchmarks/run.py                # on the CPU, about ten minutes on two cores
    python benchmarks/run.py --quick        # about three
    python benchmarks/run.py --tiny         # every benchmark at one tiny shape: that none rots

Results go to benchmarks/results/<machine>/*.json, one file per suite, and a line of the ops'
figures to history.jsonl there; `make report` draws them. A suite that fails does not keep the
others from being measured; the exit code is then 1.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

from ceilings import ceilings
from results_format import RESULTS, document, machine_name, write_document

SUITES = ("ceilings", "ops", "scaling", "inference", "training")


def ops(arguments: argparse.Namespace, output: Path) -> list[dict]:
    """Every bench_<op>.py by pytest-benchmark, as records.

    Raises:
        RuntimeError: a check or a benchmark has failed.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if arguments.tiny:
        environment["SPANBERT_FAST_BENCH_TINY"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        command = [sys.executable, "-m", "pytest", str(FOLDER), "-q", "--benchmark-enable"]
        command += ["--benchmark-only", f"--benchmark-json={raw}", "-p", "no:cacheprovider"]
        if arguments.quick:
            command += ["-k", "bf16 and threads or sample_spans"]
        done = subprocess.run(command, env=environment, cwd=FOLDER.parent)
        if not raw.is_file():
            raise RuntimeError(f"pytest wrote no results (exit code {done.returncode})")
        measured = json.loads(raw.read_text())["benchmarks"]
    write_document(output, document("ops", arguments.threads, records := [*map(_record, measured)]))
    if done.returncode:
        raise RuntimeError(f"a check has failed (exit code {done.returncode})")
    return records


def _record(measured: dict) -> dict:
    """One pytest-benchmark result in our format."""
    stats = measured["stats"]
    return {
        "op": Path(measured["fullname"].split("::")[0]).stem.removeprefix("bench_"),
        "case": measured["name"],
        "median_ms": 1e3 * stats["median"],
        "low_ms": 1e3 * stats["q1"],
        "high_ms": 1e3 * stats["q3"],
        "rounds": stats["rounds"],
        **measured["extra_info"],
    }


def script(name: str, output: Path, *options: str) -> None:
    """Run another benchmark script.

    Raises:
        RuntimeError: it has failed.
    """
    command = [sys.executable, str(FOLDER / name), "--output", str(output), *options]
    done = subprocess.run(command, env={**os.environ, "PYTHONSAFEPATH": "1"}, cwd=FOLDER.parent)
    if done.returncode:
        raise RuntimeError(f"{name} ended with exit code {done.returncode}")


def run_suite(name: str, arguments: argparse.Namespace, output: Path) -> None:
    """Measure one suite into `output`."""
    tiny, quick = ["--tiny"] * arguments.tiny, arguments.quick
    threads = ["--threads", str(arguments.threads)]
    if name == "ceilings":
        found = ceilings(arguments.threads, tiny=arguments.tiny)
        for record in found:
            print("  {what:<32}{value:>10.1f} {unit}".format(**record))
        write_document(output, document(name, arguments.threads, found))
    elif name == "ops":
        records = ops(arguments, output)
        if not arguments.tiny:
            remember(output.parent / "history.jsonl", records)
    elif name == "scaling":
        script("scaling.py", output, *threads, *tiny, *["--quick"] * quick)
    elif name == "inference":
        script("bench_inference.py", output, *threads, *tiny, *["--rounds", "3"] * quick)
    else:
        allocators = ["--allocators", "heap-kept"] if quick or arguments.tiny else []
        shorter = ["--quick"] if quick or arguments.tiny else ["--rounds", "3"]
        script("bench_training.py", output, *threads, *tiny, *allocators, *shorter)


def remember(history: Path, records: list[dict]) -> None:
    """Append the medians of a run to the machine's history."""
    from results_format import commit

    line = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "median_ms": {f"{r['op']}: {r['case']}": round(r["median_ms"], 4) for r in records},
    }
    with open(history, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def main() -> int:
    """Measure the suites; 1 where one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu",), default="cpu", help="no suite for a GPU is there yet")
    add("--suites", nargs="+", choices=SUITES, default=SUITES)
    add("--quick", action="store_true")
    add("--tiny", action="store_true")
    add("--threads", type=int, default=min(2, os.cpu_count() or 1))
    add("--output-dir", type=Path, help="default: benchmarks/results/<machine>")
    arguments = parser.parse_args()
    folder = arguments.output_dir or RESULTS / machine_name()
    failed = []
    for name in arguments.suites:
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        try:
            run_suite(name, arguments, folder / f"{name}.json")
        except RuntimeError as error:
            failed.append(name)
            print(f"run.py: {name}: {error}", file=sys.stderr)
        print(f"   {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\nresults: {folder}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
