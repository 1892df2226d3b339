"""`make check-cpus`: every op, forward and backward, on CPUs that this machine is not.

Runs `spanbert-fast env --check` under QEMU's user emulation, once for each instruction set that
the emulator offers and the extension has a level for. It installs nothing: a tool that is missing
is named, and its checks count as not run. For Arm, name a Python for aarch64 that has torch and an
extension built for it:

    AARCH64_PYTHON=/arm/usr/bin/python3 QEMU_LD_PREFIX=/arm python tools/check_cpus.py
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple


class Emulated(NamedTuple):
    """A CPU, and the level of our kernels that has to run on it."""

    emulator: str
    cpu: str
    level: str
    python: str | None


class Outcome(NamedTuple):
    """The result for one CPU. An empty `fault` is a pass; `ran` is False if a tool was missing."""

    ran: bool
    fault: str
    seconds: float
    worst: float


ARM = os.environ.get("AARCH64_PYTHON")
CPUS = (
    Emulated("qemu-x86_64", "Nehalem", "baseline", sys.executable),
    Emulated("qemu-x86_64", "Haswell", "avx2", sys.executable),
    Emulated("qemu-aarch64", "neoverse-n1", "baseline", ARM),
    Emulated("qemu-aarch64", "neoverse-v1", "neon_bf16", ARM),
)


def check(emulated: Emulated) -> Outcome:
    """Run the check on one emulated CPU."""
    if shutil.which(emulated.emulator) is None:
        return Outcome(False, f"{emulated.emulator} is not installed", 0, 0)
    if emulated.python is None:
        return Outcome(False, "AARCH64_PYTHON names no Python", 0, 0)
    offered = subprocess.run(
        [emulated.emulator, "-cpu", "help"], capture_output=True, text=True
    ).stdout.split()
    if emulated.cpu not in offered:
        return Outcome(False, f"this {emulated.emulator} does not know that CPU", 0, 0)
    command = [emulated.emulator, "-cpu", emulated.cpu, emulated.python, "-m", "spanbert_fast"]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "env", "--check", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    seconds = time.monotonic() - started
    try:
        found = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return Outcome(True, last[0], seconds, 0)
    level = found["cpu"]["isa_level"]
    worst = max((row["error"] for row in found["checked"]), default=float("inf"))
    if level != emulated.level:
        return Outcome(True, f"runs at level {level}", seconds, worst)
    fault = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    return Outcome(True, fault, seconds, worst)


def main() -> None:
    """Run two checks at a time and print one line for each."""
    print(
        f"{'cpu':<14}{'level':<11}{'result':<10}{'seconds':>8}  largest error, of what is allowed"
    )
    failed = False
    with ThreadPoolExecutor(max_workers=2) as pool:
        for emulated, outcome in zip(CPUS, pool.map(check, CPUS), strict=True):
            result = "not run" if not outcome.ran else "WRONG" if outcome.fault else "passed"
            detail = outcome.fault or f"{outcome.worst:.2f}"
            seconds = f"{outcome.seconds:.0f}" if outcome.ran else ""
            print(f"{emulated.cpu:<14}{emulated.level:<11}{result:<10}{seconds:>8}  {detail}")
            failed |= outcome.ran and bool(outcome.fault)
    if failed:
        sys.exit("an op is wrong on a CPU above")


if __name__ == "__main__":
    main()
