"""`make check-threads`: the parallel loops of the C++ under the thread sanitizer.

Builds the extension once more under build/, at its baseline level, and calls every op forward and
backward on 4 threads, from one Python thread and from 4 at once.

The sanitizer sees every access of our own code, in loops that threads.cpp runs on threads which it
follows; the store of large memory; and what Python threads share. It does not see accesses by
PyTorch's own code (the matrix products of linear_cross_entropy), which is built without it, or
PyTorch's own loops, which run on one thread here. Reports are suppressed if the access was made by
PyTorch or OpenMP through a function that the sanitizer replaces (memcpy, free), or by the loader,
which frees the thread-local memory of an ended thread when a new one takes over its stack.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
BUILD = ROOT / "build/races"
LIBRARIES = ("libtorch_cpu", "libtorch_python", "libc10", "libgomp", "libpython", "ld-linux")
SUPPRESSED = "".join(f"called_from_lib:{library}\n" for library in LIBRARIES)


def build() -> Path:
    """Build the extension and the library of threads; returns the library's path."""
    command = [sys.executable, "setup.py", "--quiet", "build"]
    command += ["--build-base", str(BUILD), "--build-lib", str(BUILD / "lib")]
    chosen = {"SPANBERT_FAST_SANITIZE": "thread", "SPANBERT_FAST_LEVELS": "baseline"}
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **chosen})
    threads = BUILD / "threads.so"
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-g", "-fsanitize=thread"]
    command += ["-shared", "-fPIC", str(Path(__file__).with_name("threads.cpp"))]
    subprocess.run([*command, "-o", str(threads)], check=True)
    return threads


def main() -> int:
    """Build, run, and print what was found."""
    threads = build()
    (BUILD / "suppressed.txt").write_text(SUPPRESSED)
    compiler = os.environ.get("CXX", "c++")
    sanitizer = subprocess.run(
        [compiler, "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{sanitizer} {threads}",
        "TSAN_OPTIONS": f"suppressions={BUILD / 'suppressed.txt'}:exitcode=66:history_size=4",
        "ATEN_CPU_CAPABILITY": "default",
        "PYTHONPATH": f"{BUILD / 'lib'}{os.pathsep}{TESTS}",
        "OMP_NUM_THREADS": "1",
    }
    failed = False
    for workers in (1, 4):
        began = time.monotonic()
        expected = ["--expect", "baseline", str(BUILD / "lib")]
        command = [sys.executable, "-m", "hostile", "--chosen", "--workers", str(workers)]
        command += ["--every", "5"]
        done = subprocess.run(
            [*command, *expected], capture_output=True, text=True, env=environment
        )
        output = done.stdout + done.stderr
        races = output.count("WARNING: ThreadSanitizer")
        seconds = time.monotonic() - began
        print(f"{workers} Python threads: {races} reports in {seconds:.0f} s", flush=True)
        print(done.stdout.splitlines()[0] if done.stdout else "", flush=True)
        if done.returncode or races:
            failed = True
            print(output[:20000])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
