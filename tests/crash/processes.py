"""Commands in forked processes that are killed, signalled, or meet a full disk. They start quickly,
since everything is imported already."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("count_calls.c")
BUILD = Path(__file__).parents[2] / "build" / "crash"


def preload() -> None:
    """Compile the counter and restart this program with it, unless that has been done."""
    if "CRASH_PRELOADED" in os.environ:
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    library = BUILD / "count_calls.so"
    compiler = os.environ.get("CC", "cc")
    build = [compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"]
    subprocess.run(build, check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "CRASH_PRELOADED": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "crash", *sys.argv[1:]], environment)


class Counter:
    """The preloaded library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.crash_arm.argtypes = [ctypes.c_long, ctypes.c_long]
        for name in ("crash_calls", "crash_writes"):
            getattr(self._library, name).restype = ctypes.c_long

    def arm(self, kill_at: int = 0, full_from: int = 0) -> None:
        """Count from 0; kill the process at a call, or let writes fail from one on; 0 for never."""
        self._library.crash_arm(kill_at, full_from)

    def calls(self) -> int:
        return self._library.crash_calls()

    def writes(self) -> int:
        return self._library.crash_writes()


@dataclass(frozen=True)
class Fault:
    """The fault that a process meets; by default none.

    Attributes:
        kill_at: the counted call at which it is killed.
        full_from: the write from which on the disk is full.
        moment, signal: seconds after its start, and the signal that it is then sent.
    """

    kill_at: int = 0
    full_from: int = 0
    moment: float | None = None
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command.

    Attributes:
        code: its exit code, negative for a signal.
        output: standard output and errors, mixed.
        calls, writes: how many it made, if it ended by itself.
        marks: (name, calls until then) of the places that `watch` has marked.
        seconds: how long it ran.
    """

    code: int
    output: str
    calls: int
    writes: int
    marks: dict[str, int]
    seconds: float

    @property
    def last_line(self) -> str:
        return (self.output.strip().splitlines() or [""])[-1]


def run(
    arguments: list[str],
    scratch: Path,
    fault: Fault = Fault(),  # noqa: B008  (frozen)
    watch: Callable[[Callable[[str], None]], None] | None = None,
) -> Outcome:
    """Run a command of spanbert-fast to its end.

    Args:
        scratch: its TMPDIR and its output.
        watch: called in the process with a function that marks a place by name.
    """
    process = start(arguments, scratch, fault, watch)
    if fault.moment is not None:
        # before the command begins, a signal would meet this harness
        while process.is_running() and not process.counts.exists():
            time.sleep(0.001)
        time.sleep(fault.moment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, fault.signal)
    return process.wait()


def start(arguments, scratch: Path, fault: Fault, watch=None) -> "_Process":
    """Start a command without waiting for it."""
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "tmp").mkdir(exist_ok=True)
    paths = scratch / "output", scratch / "counts"
    for path in paths:
        path.unlink(missing_ok=True)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(arguments, scratch, fault, watch)
    return _Process(pid, *paths, began)


@dataclass
class _Process:
    pid: int
    output: Path
    counts: Path
    began: float

    def is_running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self, most: float = 120) -> Outcome:
        """The outcome of a process; one that hangs is killed, with code -9 and no output."""
        while self.is_running() and time.monotonic() - self.began < most:
            time.sleep(0.005)
        seconds = time.monotonic() - self.began
        if seconds >= most:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        text = self.output.read_text(errors="replace") if self.output.exists() else ""
        marks = {}
        if self.counts.exists():
            for line in self.counts.read_text().splitlines():
                name, number = line.rsplit(" ", 1)
                marks[name] = int(number)
        code = os.waitstatus_to_exitcode(status)
        calls, writes = marks.pop("calls", 0), marks.pop("writes", 0)
        return Outcome(code, text, calls, writes, marks, seconds)


def _child(arguments: list[str], scratch: Path, fault: Fault, watch) -> None:
    """Run the command in this process, and end the process with it."""
    code = 70
    try:
        output = os.open(scratch / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
        import tempfile

        from spanbert_fast.cli import main

        # in the background a shell lets its commands ignore it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tempfile.tempdir = os.environ["TMPDIR"] = str(scratch / "tmp")
        counter, counts = Counter(), open(scratch / "counts", "w", buffering=1)  # noqa: SIM115
        if watch is not None:
            watch(lambda name: counts.write(f"{name} {counter.calls()}\n"))
        counter.arm(fault.kill_at, fault.full_from)
        code = main(arguments)
        calls, writes = counter.calls(), counter.writes()
        counter.arm()
        counts.write(f"calls {calls}\nwrites {writes}\n")
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
