"""`make check-sanitize`: the C++ under the address and undefined-behaviour sanitizers.

Builds the extension again under build/. Then, at each instruction set that this CPU has and PyTorch
can be limited to, it runs every op forward and backward at sizes around those of vectors, tiles and
tasks, and hostile calls; with --all also the ops' own tests. A sanitizer's first report ends the
process, which is a failure. Leaks are not reported, since Python leaks on purpose.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from isa_cases import CAPABILITIES
from spanbert_fast._extension import _C

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
BUILD = ROOT / "build/sanitize"
WIDEST = "widest"  # the level of a process whose environment says nothing
OP_TESTS = (
    "bias_gelu dropout_add_layer_norm embedding_layer_norm linear linear_cross_entropy "
    "linear_cross_entropy_tiles padding philox sample_spans sample_spans_compiled "
    "sample_spans_input span_boundary_gather varlen_attention varlen_attention_dropout views"
).split()
# Tests that sanitizers do not concern, or that measure the process's memory.
LEFT_OUT = "not compile and not memory and not without_the_extension and not fullgraph"


class Step(NamedTuple):
    """A command, and the level of the kernels that it runs with."""

    level: str
    what: str
    arguments: list[str]


class Outcome(NamedTuple):
    """The outcome of a step."""

    step: Step
    passed: bool
    output: str
    seconds: float


def build() -> None:
    """Build the sanitized extension in a folder of its own."""
    command = [sys.executable, "setup.py", "--quiet", "build"]
    command += ["--build-base", str(BUILD), "--build-lib", str(BUILD / "lib")]
    sanitizers = {"SPANBERT_FAST_SANITIZE": "address,undefined", "SPANBERT_FAST_LEVELS": "native"}
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **sanitizers})


def environment(level: str) -> dict[str, str]:
    """The environment of a process with the sanitized extension, limited to a level."""
    compiler = os.environ.get("CXX", "c++")

    def library(name: str) -> str:
        found = subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        return found.stdout.strip()

    capabilities = {held_to: capability for capability, held_to in CAPABILITIES.items()}
    held = {"ATEN_CPU_CAPABILITY": capabilities[level]} if level in capabilities else {}
    return {
        **os.environ,
        **held,
        # the sanitizer's library comes first; that of C++ with it, whose exceptions it looks at
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=6144",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": f"{BUILD / 'lib'}{os.pathsep}{TESTS}",
        "OMP_NUM_THREADS": "1",
    }


def run(step: Step) -> Outcome:
    """Run a step; its outcome has seconds of processor time."""
    with tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, *step.arguments]
        # waited for by wait4, which tells its seconds, and not by Popen
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(step.level)
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        seconds = used.ru_utime + used.ru_stime
        return Outcome(step, process.returncode == 0, output.read(), seconds)


def steps(options: argparse.Namespace) -> list[Step]:
    """The steps, level by level; a level that PyTorch cannot be limited to runs as the widest."""
    levels = [level for level in CAPABILITIES.values() if level != _C.isa_levels()[-1]]
    found = []
    for number, level in enumerate([*levels, WIDEST]):
        name = _C.isa_levels()[-1] if level == WIDEST else level
        hostile = ["-m", "hostile", "--expect", name, str(BUILD / "lib")]
        calls = [*hostile, "--calls", str(options.calls), "--seed", str(number)]
        # one in five takes half a minute of the processor; 5 divides no run of like cases
        every = [] if options.all else ["--every", "5"]
        found.append(Step(level, "chosen shapes", [*hostile, "--chosen", *every]))
        found.append(Step(level, f"{options.calls:,} calls", calls))
        if options.all:
            files = [str(TESTS / f"test_{name}.py") for name in OP_TESTS]
            pytest = ["-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider"]
            found.append(Step(level, "op tests", [*pytest, "-k", LEFT_OUT, *files]))
    return found


def main() -> int:
    """Build, run, and print a line for each step."""
    parser = argparse.ArgumentParser(prog="hostile.sanitize", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--calls", type=int, default=100, metavar="N", help="hostile ones a level (default 100)")
    add("--all", action="store_true", help="the ops' own tests, too")
    add("--no-build", action="store_true", help="as it was built before")
    options = parser.parse_args()
    if not options.no_build:
        build()
    failed = []
    print(f"{'level':<10}{'what':<16}{'result':<8}{'CPU seconds':>12}", flush=True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for outcome in pool.map(run, steps(options)):
            step, result = outcome.step, "passed" if outcome.passed else "FAILED"
            print(f"{step.level:<10}{step.what:<16}{result:<8}{outcome.seconds:>12.0f}", flush=True)
            if not outcome.passed:
                failed.append(outcome)
    for outcome in failed:
        print(f"\n{outcome.step.level}, {outcome.step.what}:\n{outcome.output[-6000:]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
