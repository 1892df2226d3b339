#!/usr/bin/env python3
"""Proves, measures and tunes the GPU engine, in runs of at most ten minutes.

    python benchmarks/gpu_check.py            # repeat until no step is left: three times
    python benchmarks/gpu_check.py --part 1   # only the steps that prove that it is right
    python benchmarks/gpu_check.py --tiny     # on a CPU, at tiny shapes, to test the script

A step is a process with a time limit; a step that fails does not stop the others. After each step
OUT/gpu_check.json is written, with the figures and the end of the output; OUT/log.txt has the whole
output. So whatever ends a run, only the step in progress is lost. The next run continues after it,
on the same machine or, with --earlier, on another one with the same GPU.

Nothing is installed: the package and its extension are built under build/gpu_check. docs/gpu.md
says what to do with the file.

exit code: 0 all steps passed, 1 a step has failed, 2 there is no GPU, 3 steps are left, 130
it was interrupted or terminated.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

from gpu_plan import Place, Step, plan
from results_format import RESULTS, commit, file_name
from tuned_rows import write_rows

RESULT = "gpu_check.json"
_LOG_END = 6000  # characters of each step's output that the result has
_SAVING = 5  # seconds at the end of a run that no step may take
Content = dict[str, Any]


def facts(python: str, tiny: bool) -> dict[str, Any] | None:
    """The GPU's name, chip and bytes of memory, on which the plan depends; None without a GPU."""
    if tiny:
        return {"name": "cpu", "chip": 0, "memory": 0}
    look = (
        "import json, torch; p = torch.cuda.get_device_properties(0); "
        "print(json.dumps({'name': p.name, 'chip': 10 * p.major + p.minor, "
        "'memory': p.total_memory}))"
    )
    safe = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run([python, "-c", look], capture_output=True, text=True, env=safe)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def read(folders: Sequence[Path], gpu: str) -> Content:
    """The results so far, of the first folder that has any.

    Raises:
        SystemExit: they were measured on another GPU.
    """
    for folder in folders:
        if (folder / RESULT).exists():
            content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
            if content["gpu"] != gpu:
                sys.exit(f"gpu_check.py: {folder / RESULT} is of {content['gpu']}, this is {gpu}")
            return content
    return {
        "benchmark": "gpu_check",
        "environment": {},
        "commit": commit(),
        "device": "cpu" if gpu == "cpu" else "cuda",
        "threads": os.cpu_count() or 1,
        "gpu": gpu,
        "results": [],
        "documents": {},
        "tuned": [],
    }


def save(out: Path, content: Content) -> None:
    """Write the results, whole or not at all."""
    part = out / f"{RESULT}.part"
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, out / RESULT)


def put_together(site: Path, tuned: list[dict] | None) -> None:
    """The package of this checkout as it would be installed, without its extension.

    `tuned` is the tuned.json that it gets; None keeps the checkout's.
    """
    package = site / "spanbert_fast"
    unwanted = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "spanbert_fast", package, ignore=unwanted, dirs_exist_ok=True)
    shutil.copytree(ROOT / "kernels", package / "kernels", ignore=unwanted, dirs_exist_ok=True)
    if tuned is not None:
        (package / "kernels/tuned.json").write_text(json.dumps(tuned), encoding="utf-8")


def variables(place: Place) -> dict[str, str]:
    """The environment of every step."""
    return {
        **os.environ,
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(place.site),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(step: Step, place: Place, limit: float) -> tuple[str, float, str]:
    """Run a step: (how it ended, its seconds, its output)."""
    start = time.monotonic()
    where = place.work / f"{step.name}.txt"
    with open(where, "wb") as output:
        child = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=variables(place) | dict(step.variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(limit)
            how = "passed" if code == 0 else f"failed: exit code {code}"
        except subprocess.TimeoutExpired:
            how = f"cut after {limit:.0f} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # what it has started, too
                child.wait()
    return how, time.monotonic() - start, where.read_text(encoding="utf-8", errors="replace")


def collect(step: Step, place: Place, content: Content) -> None:
    """Add what a step has written to the results, however it ended."""
    path = place.work / f"{step.writes}.json"
    if step.writes is None or not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # cut while it wrote
        return
    if step.writes in ("environment", "tuned"):
        content[step.writes] = found
    else:
        content["documents"][step.writes] = found


def outcomes(content: Content) -> dict[str, str]:
    """How each step that was run ended."""
    return {record["name"]: record["outcome"] for record in content["results"]}


def why_not_now(step: Step, content: Content, left: float) -> str | None:
    """Why a step is not started; None if it is."""
    ended = outcomes(content)
    if missing := [name for name in step.needs if name not in ended]:
        return f"waits for {', '.join(missing)}"
    return f"needs {step.seconds} s" if step.seconds > left else None


def run_steps(todo: Sequence[Step], place: Place, content: Content, seconds: float) -> list[str]:
    """Run the steps that there is time for; returns the names of those that are left."""
    end, waiting = time.monotonic() + seconds, []
    for step in todo:
        if reason := why_not_now(step, content, end - time.monotonic() - _SAVING):
            waiting.append(step.name)
            print(f"{step.name:<18}left: {reason}", flush=True)
            continue
        if step.program and not shutil.which(step.program):
            how, took, printed = f"not here: {step.program} is not on the PATH", 0.0, ""
        else:
            put_together(place.site, content["tuned"] if "tune" in step.needs else None)
            (place.work / f"{step.writes}.json").unlink(missing_ok=True)  # of an earlier run
            how, took, printed = run(step, place, step.seconds)
            collect(step, place, content)
        record = {"name": step.name, "part": step.part, "outcome": how, "seconds": round(took, 1)}
        content["results"] = [r for r in content["results"] if r["name"] != step.name]
        content["results"].append(record | {"printed": printed[-_LOG_END:]})
        save(place.out, content)
        with open(place.out / "log.txt", "a", encoding="utf-8") as log:
            log.write(f"\n===== {step.name}: {how}, {took:.0f} s\n{printed}")
        print(f"{step.name:<18}{how}, {took:.0f} s", flush=True)
        if how != "passed":
            print("".join(f"    {line}\n" for line in printed.splitlines()[-12:]), end="")
    return waiting


def wanted(steps: Sequence[Step], content: Content, options: argparse.Namespace) -> list[Step]:
    """The steps of this run: the named ones, or else those that have not ended yet."""
    if options.steps:
        return [step for step in steps if step.name in options.steps or step.always]
    ended = outcomes(content)
    todo = [step for step in steps if step.part <= options.part and step.name not in ended]
    return [step for step in steps if step.always or step in todo] if todo else []


def unpack(path: Path, results: Path = RESULTS) -> None:
    """Write the results to where `make report` looks, and the tiles to kernels/tuned.json."""
    content = json.loads(path.read_text(encoding="utf-8"))
    documents: dict[str, Any] = {**content["documents"], "gpu_check": content}
    # one suite of the report, whose parts are steps for the sake of their limits
    for part in ("training_base", "training_compiled"):
        if (document := documents.pop(part, None)) is not None:
            whole = documents.setdefault("training", {**document, "results": []})
            whole["results"] = [*whole["results"], *document["results"]]
    # the build's step writes the check's own; where it has failed, every document has one
    environments = [document["environment"] for document in documents.values()]
    content["environment"] = next(filter(None, environments[::-1]), None)
    if content["environment"] is None:
        sys.exit(f"gpu_check.py: {path} says nothing of its machine: no step has come so far")
    folder = results / f"{file_name(content['gpu'])}-{content['date']}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        kept = {key: value for key, value in document.items() if key not in ("documents", "tuned")}
        (folder / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if content["tuned"]:
        write_rows(ROOT / "kernels/tuned.json", content["tuned"])
    print(f"written to {folder}; `make report` draws it")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="gpu_check.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    build = ROOT / "build/gpu_check"
    add("--out", type=Path, default=build, help="folder of the results (build/gpu_check)")
    add("--earlier", type=Path, help="folder with the results of a run on another machine")
    add("--part", type=int, choices=(1, 2, 3), default=3, help="1 proves, 2 measures, 3 tunes too")
    add("--steps", nargs="+", metavar="NAME", help="these alone, whether they have ended or not")
    add("--seconds", type=float, help="of this run, at most (590; with --tiny as many as it takes)")
    add("--tiny", action="store_true", help="on the CPU, at tiny shapes")
    add("--list", action="store_true", help="print the steps")
    add("--unpack", type=Path, metavar="FILE", help="write a result where the report looks")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps that are left; the module's docstring has the exit codes."""
    options = arguments(argv)
    if options.unpack:
        unpack(options.unpack)
        return 0
    found = facts(sys.executable, options.tiny or options.list)
    if found is None:
        print("gpu_check.py: torch sees no GPU; --tiny runs the script on a CPU", file=sys.stderr)
        return 2
    out = options.out.resolve()
    place = Place(out, ROOT / "build/gpu_check/site", ROOT / "build/gpu_check/work")
    steps = plan(place, found, options.tiny)
    if unknown := {*(options.steps or ())} - {step.name for step in steps}:
        sys.exit(f"gpu_check.py: no such step: {', '.join(sorted(unknown))}")
    if options.list:
        print(*(f"part {s.part}  {s.seconds:>4} s  {s.name}" for s in steps), sep="\n")
        return 0
    for folder in (out, place.work):
        folder.mkdir(parents=True, exist_ok=True)
    content = read([out, *filter(None, [options.earlier])], found["name"])
    content.setdefault("date", time.strftime("%Y-%m-%d"))
    if options.earlier:
        for path in options.earlier.glob("extension-*.so"):
            shutil.copy(path, out)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no child outlives this
    todo = wanted(steps, content, options)
    seconds = options.seconds or (math.inf if options.tiny else 590.0)
    try:
        waiting = run_steps(todo, place, content, seconds)
    except KeyboardInterrupt:
        print(f"\ngpu_check.py: ended; what is done is in {out / RESULT}", file=sys.stderr)
        return 130
    print(f"\n{out / RESULT}" + (f"; left: {', '.join(waiting)}" if waiting else ""))
    bad = [name for name, how in outcomes(content).items() if how.startswith(("failed", "cut"))]
    if bad:
        print(f"not passed: {', '.join(bad)}")
        return 1
    return 3 if waiting else 0


if __name__ == "__main__":
    sys.exit(main())
