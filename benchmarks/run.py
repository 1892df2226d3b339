#!/usr/bin/env python
"""Measures this machine: ceilings, ops, a training step, inference, scaling, a loss curve.

    python benchmarks/run.py                  # on the CPU, under ten minutes on two cores
    python benchmarks/run.py --quick          # about three
    python benchmarks/run.py --device cuda    # on the GPU; eight by its limits, not run yet
    python benchmarks/run.py --tiny           # every benchmark at one tiny shape, as a test

The suites share the time: what one suite leaves goes to the later ones, and its results name the
cases that it had no time for as not measured. On a GPU every op is checked first, also under
compute-sanitizer if that is on the PATH. Nothing is installed or built.

Results go to benchmarks/results/<machine>/*.json (<gpu>-<date> for a GPU), one file per suite, and
a line of the ops' figures to history.jsonl there; `make report` draws them. If a suite fails, the
others are still measured and the exit code is 1; it is 2 if there is no GPU.
"""

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

from results_format import RESULTS, commit, machine_name, read_document, write_document

# suite -> its share of the time
SHARES = {
    "cpu": {
        "ceilings": 0.02, "ops": 0.33, "training": 0.33, "scaling": 0.12, "loss_curve": 0.08,
        "inference": 0.12,  # last: exporting to onnxruntime may take longer than that
    },
    "cuda": {
        "check": 0.14, "ceilings": 0.02, "ops": 0.36, "training": 0.34, "inference": 0.09,
        "loss_curve": 0.05,
    },
}  # fmt: skip
SUITES = ("check", *SHARES["cpu"])
SECONDS = {"cpu": (490, 160), "cuda": (440, 105)}  # in all, and with --quick
_START = 10  # seconds in which a suite's process has loaded everything


def script(name: str, output: Path, *options: str) -> None:
    """Run another benchmark script.

    Raises:
        RuntimeError: it has failed.
    """
    command = [sys.executable, str(FOLDER / name), "--output", str(output), *options]
    done = subprocess.run(command, env={**os.environ, "PYTHONSAFEPATH": "1"}, cwd=FOLDER.parent)
    if done.returncode:
        raise RuntimeError(f"{name} ended with exit code {done.returncode}")


def sanitized(device: str, seconds: float) -> dict[str, object]:
    """The verdict of compute-sanitizer on every op at its tiny shape, as a record.

    PyTorch's caching allocator is off: a read past a tensor would stay within its cached block.
    """
    record: dict[str, object] = {"op": "all", "case": "compute-sanitizer memcheck", "threads": 1}
    program = shutil.which("compute-sanitizer")
    if device == "cpu" or program is None:
        reason = "compute-sanitizer is not on the PATH" if device == "cuda" else "it needs a GPU"
        return record | {"not_measured": reason}
    command = [program, "--error-exitcode", "3", sys.executable, str(FOLDER / "op_suite.py")]
    command += ["--device", device, "--tiny", "--quick", "--check-only", "--output", os.devnull]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=FOLDER.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the program under test, too
        process.communicate()
        return record | {"not_measured": f"it was not done in {seconds:.0f} s"}
    if process.returncode == 3:
        errors = (line for line in printed.splitlines() if "Invalid" in line)
        return record | {"raised": next(errors, "errors were found")}
    if process.returncode:
        return record | {"raised": f"op_suite.py ended with exit code {process.returncode}"}
    return record | {"passed": True}


def check(options: argparse.Namespace, output: Path, seconds: float) -> None:
    """Every op at its tiny shape on the device, then again under compute-sanitizer."""
    start = time.perf_counter()
    device = ["--device", options.device]
    quick = ["--quick"] * options.quick
    fixed = ["--tiny", "--check-only", "--threads", "1", "--budget", f"{seconds / 2:.0f}"]
    wrong = None
    try:
        script("op_suite.py", output, *device, *quick, *fixed)
    except RuntimeError as error:
        wrong = error  # after a failure the sanitizer's verdict matters most
    left = max(1.0, seconds - (time.perf_counter() - start))
    content = read_document(output)
    content["results"].append(record := sanitized(options.device, left))
    write_document(output, content)
    print(f"  compute-sanitizer: {record.get('not_measured') or record.get('raised') or 'passed'}")
    if "raised" in record:
        raise RuntimeError(f"compute-sanitizer: {record['raised']}")
    if wrong:
        raise wrong


def run_suite(name: str, options: argparse.Namespace, output: Path, seconds: float) -> None:
    """Measure one suite into `output`, in about `seconds`."""
    tiny, quick = ["--tiny"] * options.tiny, ["--quick"] * options.quick
    device = ["--device", options.device, "--threads", str(options.threads)]
    budget = ["--budget", f"{max(1.0, seconds - _START):.0f}"]
    gpu = options.device == "cuda"
    if name == "check":
        check(options, output, seconds)
    elif name == "ceilings":
        script("ceilings.py", output, *device, *tiny)
    elif name == "ops":
        script("op_suite.py", output, *device, *budget, *tiny, *quick)
        if not options.tiny:
            remember(output.parent / "history.jsonl", read_document(output)["results"])
    elif name == "scaling":
        script("scaling.py", output, "--threads", str(options.threads), *budget, *tiny, *quick)
    elif name == "inference":
        models = ["--layers", "12", "--compiled"] if gpu and not options.quick else []
        models = models or (["--layers", "4"] if options.quick else [])
        script("bench_inference.py", output, *device, *budget, *tiny, *models)
    elif name == "loss_curve":
        script("bench_loss_curve.py", output, *device, *budget, *tiny)
    else:
        rounds = ["--rounds", "15" if gpu else "3"]
        from training_providers import PEERS

        shorter = ["--quick"] if options.quick or options.tiny else rounds
        limit = ["--time-limit", budget[1], "--allocators", "default" if gpu else "heap-kept"]
        models = ["--layers", "12" if options.quick else "24x1024"] if gpu else []
        peers = ["--providers", *PEERS["cuda"][:3]] if gpu else []  # the others compile for minutes
        script("bench_training.py", output, *device, *tiny, *shorter, *limit, *models, *peers)


def remember(history: Path, records: list[dict]) -> None:
    """Append our medians of a run to the machine's history."""
    found = {}
    for record in records:
        ours = record.get("providers", {}).get("ours", {})
        if "median_ms" in ours:
            name = f"{record['op']}: {record['case']}, {record['threads']} threads"
            found[name] = round(ours["median_ms"], 4)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = {"date": date, "commit": commit(), "median_ms": found}
    with open(history, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Measure the suites; 1 if one failed, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--suites", nargs="+", choices=SUITES, help="default: all that the device has")
    add("--quick", action="store_true", help="fewer cases")
    add("--tiny", action="store_true", help="one tiny shape of each, to see that it runs")
    add("--budget", type=float, help="seconds for all suites")
    add("--threads", type=int, default=min(2, os.cpu_count() or 1))
    add("--output-dir", type=Path, help="default: benchmarks/results/<machine>")
    options = parser.parse_args(argv)
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(
                f"run.py: --device cuda needs an NVIDIA GPU, torch {torch.__version__} sees none",
                file=sys.stderr,
            )
            return 2
    folder = options.output_dir or RESULTS / machine_name(options.device)
    shares = SHARES[options.device]
    suites = options.suites or list(shares)
    weights = [shares.get(name, 0.1) for name in suites]
    end = time.perf_counter() + (options.budget or SECONDS[options.device][options.quick])
    failed = []
    for number, name in enumerate(suites):
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        seconds = max(0.0, end - start) * weights[number] / sum(weights[number:])
        try:
            run_suite(name, options, folder / f"{name}.json", seconds)
        except Exception as error:  # the other suites are measured
            failed.append(name)
            print(f"run.py: {name}: {type(error).__name__}: {error}", file=sys.stderr)
        print(f"   {time.perf_counter() - start:.0f} s of {seconds:.0f}", flush=True)
    print(f"\nresults: {folder}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
