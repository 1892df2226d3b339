"""Runs the fuzzers, with a new process whenever a case has ended the old one.

A reader may return, or refuse in one line (UsageError, DataError). Anything else is a failure: any
other exception, a message of several lines or without the file, more time or memory than a case
may take, the end of the process.
"""

import argparse
import collections
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

SECONDS_OF_A_CASE = 10
MEMORY_OF_A_CASE = 2 << 30  # bytes beyond those of the process at its start

EXAMPLES = """examples:
  PYTHONPATH=tests python -m fuzz --seconds 600
  PYTHONPATH=tests python -m fuzz --target config.json --case 17     what a failure prints
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="fuzz",
        description="Read spoilt files of every kind, and look for what is not refused in a line.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seconds", type=float, default=60, metavar="N", help="how long (default 60)")
    add("--cases", type=int, metavar="N", help="stop after N cases of each target")
    add("--first", type=int, default=0, metavar="N", help="number of the first case (default 0)")
    add("--target", action="append", metavar="NAME", help="only this kind of file")
    add("--case", type=int, metavar="N", help="only this case, with its traceback")
    add("--child", metavar="FILE", help=argparse.SUPPRESS)
    return parser


class Spoilt(Exception):
    """A case that is neither read nor properly refused."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Limits the time and the memory of a case."""

    def too_late(signum, frame):
        raise Spoilt(f"takes more than {SECONDS_OF_A_CASE} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_OF_A_CASE
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_OF_A_CASE)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_case(target, name: str, case: int) -> str:
    """ "read" or "refused"; raises for a failure."""
    from spanbert_fast.errors import DataError, UsageError

    draw = random.Random(f"{name}:{case}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "case"
        shutil.copytree(target.folder, folder)
        path = folder / target.name
        path.write_bytes(target.mutation(path.read_bytes(), draw))
        try:
            with limits():
                target.read(folder)
        except (UsageError, DataError) as error:
            message = str(error)
            if "\n" in message:
                raise Spoilt(f"a message of several lines: {message!r}") from error
            if scratch not in message and "--" not in message:
                raise Spoilt(f"a message without the file: {message!r}") from error
            return "refused"
    return "read"


def child(options: argparse.Namespace) -> int:
    """Run cases until the time is over; a file tells the parent which one is running."""
    import datasets
    import transformers

    from fuzz.targets import targets

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as root, open(options.child, "a+") as log:
        chosen = targets(Path(root))
        chosen = {n: t for n, t in chosen.items() if options.target in (None, [])
                  or n in options.target}  # fmt: skip
        if options.case is not None:
            for name, target in chosen.items():
                print(name, run_case(target, name, options.case))
            return 0
        case = options.first
        while time.monotonic() < end and case - options.first < (options.cases or 1 << 62):
            for name, target in chosen.items():
                log.write(f"begun {name} {case}\n")
                log.flush()
                try:
                    outcome = run_case(target, name, case)
                except Exception as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    text = " ".join(f"{type(error).__name__}: {error}".split())
                    place = f"{Path(where.filename).name}:{where.lineno}"
                    outcome = f"failed {text[:300]} ({place})"
                log.write(f"{outcome}\n")
            case += 1
    return 0


def main() -> int:
    """Run children until the time is over; print what was found."""
    options = parser().parse_args()
    if options.child or options.case is not None:
        options.child = options.child or os.devnull
        return child(options)
    end = time.monotonic() + options.seconds
    outcomes: collections.Counter[str] = collections.Counter()
    failures: dict[str, list[str]] = {}
    first = options.first
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        while time.monotonic() < end:
            log.write_text("")
            left = max(end - time.monotonic(), 1)
            command = [sys.executable, "-m", "fuzz", "--child", str(log), "--seconds", str(left)]
            for name in options.target or ():
                command += ["--target", name]
            if options.cases:
                left_over = options.cases - (first - options.first)
                if left_over <= 0:
                    break
                command += ["--cases", str(left_over)]
            status = subprocess.run([*command, "--first", str(first)], check=False).returncode
            lines = log.read_text().splitlines()
            name, case = "the start", first
            for line in [*lines, *(["crashed"] if status else [])]:
                word, _, rest = line.partition(" ")
                if word == "begun":
                    name, case = rest.split()
                    continue
                outcomes[word] += 1
                if word in ("failed", "crashed"):
                    text = rest or f"the process ended with {status}"
                    reproducer = f"--target {name} --case {case}"
                    failures.setdefault(f"{name}: {text}", []).append(reproducer)
            if not status:
                break
            first = int(case) + 1
    total = sum(outcomes.values())
    print(f"tried {total:,}: " + ", ".join(f"{n:,} {word}" for word, n in outcomes.items()))
    for text, cases in failures.items():
        print(f"\n{text}\n  {len(cases)} cases; PYTHONPATH=tests python -m fuzz {cases[0]}")
    return 1 if failures or not total else 0


if __name__ == "__main__":
    sys.exit(main())
