"""Calls every op with random and with hostile arguments, in a process of its own.

A call may return, or raise a Python exception. Anything else is a failure: the end of the process
(a signal, a sanitizer's report) or too much time; for valid arguments also any exception, a result
that is far from the composite's, or an input that has changed.
"""

import argparse
import collections
import contextlib
import faulthandler
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EXAMPLES = """examples:
  PYTHONPATH=tests python -m hostile --calls 20000
  PYTHONPATH=tests python -m hostile --call 17           what a failure prints, in this process
  PYTHONPATH=tests python -m hostile --chosen            every op about each block's ends
"""
SECONDS_OF_A_CALL = 60  # of processor time; sanitized code is slow
SECONDS_OF_A_WAIT = 900  # of wall time, on a busy machine
MEMORY = 6 << 30  # bytes beyond those of the process at its start
DEATHS = 50  # enough to look at


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="hostile",
        description="Call every op with random and with hostile arguments; each call has to return "
        "or to raise a Python exception.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--calls", type=int, default=2000, metavar="N", help="how many (default 2000)")
    add("--seed", type=int, default=0, metavar="N", help="of all draws (default 0)")
    add("--first", type=int, default=0, metavar="N", help="number of the first call (default 0)")
    add("--call", type=int, metavar="N", help="only this one, with its arguments printed")
    add("--chosen", action="store_true", help="valid calls of chosen shapes in their place")
    add("--every", type=int, default=1, metavar="N", help="with --chosen: each N-th of them alone")
    add("--threads", type=int, default=1, metavar="N", help="PyTorch's (default 1)")
    add("--workers", type=int, default=1, metavar="N", help="Python threads (default 1)")
    add(
        "--expect", nargs=2, metavar=("LEVEL", "FOLDER"),
        help="fail unless the kernels run at that level, and were built in that folder",
    )  # fmt: skip
    add("--child", metavar="FILE", help=argparse.SUPPRESS)
    return parser


def child(options: argparse.Namespace) -> int:
    """Make the calls; a file tells the parent which one is running."""
    import torch

    from hostile.calls import chosen_calls, drawn_call
    from spanbert_fast._extension import _C

    if options.expect:
        found = _C.isa_level(), str(Path(_C.__file__).parent.parent)
        assert list(found) == options.expect, found
    torch.set_num_threads(options.threads)
    if "LD_PRELOAD" not in os.environ:  # sanitizers map terabytes
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    faulthandler.register(signal.SIGXCPU, chain=True)
    only = options.call
    if options.chosen:
        calls = itertools.islice(chosen_calls(), 0, None, options.every)
    else:
        last = options.first + options.calls
        numbers = range(options.first, last) if only is None else (only,)
        calls = (drawn_call(random.Random(f"{options.seed}:{n}")) for n in numbers)
    numbered, lock = enumerate(calls, options.first), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number, call = next(numbered, (0, None))
            if call is None:
                return
            if only is not None:
                print(call.told(), flush=True)
            log.write(f"begun {number} {call.what}\n")
            log.flush()
            with limits():
                outcome = outcome_of(call, raises=only is not None)
            log.write(f"{outcome}\n")

    with open(options.child, "a") as log:
        with ThreadPoolExecutor(options.workers) as pool:
            for done in [pool.submit(work) for _ in range(options.workers)]:
                done.result()
    return 0


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Limits the time of a call; one that takes longer ends the process."""
    faulthandler.dump_traceback_later(SECONDS_OF_A_WAIT, exit=True)
    most = int(time.process_time()) + SECONDS_OF_A_CALL
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
    yield
    faulthandler.cancel_dump_traceback_later()


def outcome_of(call, raises: bool) -> str:
    """The outcome of a call: a word, with details after it for a failure."""
    from hostile.calls import Wrong

    try:
        return call.make()
    except Wrong as error:
        return f"wrong {' '.join(str(error).split())[:400]}"
    except Exception as error:
        if raises:
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return f"wrong {text[:400]}" if call.is_valid else "raised"


def main() -> int:
    """Run children until all calls are made; print what was found."""
    options = parser().parse_args()
    if options.child or options.call is not None:
        options.child = options.child or os.devnull
        return child(options)
    began, first, last = time.monotonic(), options.first, options.first + options.calls
    outcomes: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        while first < last or options.chosen:
            log.write_text("")
            command = [sys.executable, "-m", "hostile", "--child", str(log)]
            for name in ("seed", "threads", "workers", "every"):
                command += [f"--{name}", str(getattr(options, name))]
            command += ["--first", str(first), "--calls", str(last - first)]
            command += ["--chosen"] * options.chosen
            command += ["--expect", *options.expect] if options.expect else []
            status = subprocess.run(command, check=False).returncode
            number, what = first, "the start"
            for line in [*log.read_text().splitlines(), *(["died"] if status else [])]:
                word, _, rest = line.partition(" ")
                if word == "begun":
                    number, _, what = rest.partition(" ")
                    continue
                outcomes[word] += 1
                if word in ("wrong", "died"):
                    text = rest or f"the process ended with {status}"
                    failures.append(f"{what}: {text}\n  --seed {options.seed} --call {number}")
            first = int(number) + 1
            if not status or options.chosen or outcomes["died"] >= DEATHS:
                break
    counts = ", ".join(f"{n:,} {word}" for word, n in sorted(outcomes.items()))
    print(f"{sum(outcomes.values()):,} calls in {time.monotonic() - began:.0f} s: {counts}")
    for text in failures[:DEATHS]:
        print(f"\n{text}")
    return 1 if failures or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
