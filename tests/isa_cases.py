"""Shared by the tests at forced instruction sets."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from spanbert_fast._extension import _C

ROOT = Path(__file__).resolve().parent.parent


def levels() -> tuple[str, ...]:
    """The levels of this architecture, in rising order, as csrc/cpu/dispatch.h lists them."""
    lists = (ROOT / "csrc/cpu/dispatch.h").read_text().split("#define SPANBERT_FAST_LEVELS(X, ...)")
    architectures = {"x86_64": 1, "aarch64": 2}
    chosen = lists[architectures.get(platform.machine(), 3)].split("\n#")[0]
    return tuple(re.findall(r"X\((\w+), __VA_ARGS__\)", chosen))


LEVELS = levels()

# The values of ATEN_CPU_CAPABILITY and the levels of our kernels that they select, for levels that
# this CPU has: PyTorch itself crashes at an instruction that the CPU lacks.
CAPABILITIES = {
    capability: level
    for capability, level in {"default": "baseline", "avx2": "avx2", "avx512": "avx512"}.items()
    if _C is not None and level in _C.isa_levels()
}


def run_at_level(
    level: str, files: list[str], chosen: str, *options: str, at_least: int, **environment: str
) -> None:
    """Run the tests that `-k chosen` selects, in a process whose kernels run at `level`.

    Raises:
        AssertionError: another level runs, a test fails, or fewer than `at_least` pass.
    """
    code = (
        "import sys, pytest; from spanbert_fast._extension import _C; "
        f"assert _C.isa_level() == {level!r}, _C.isa_level(); "
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    paths = [str(Path(__file__).with_name(file)) for file in files]
    options = ("-q", "-p", "no:cacheprovider", *options, "-k", chosen)
    done = subprocess.run(
        [sys.executable, "-c", code, *options, *paths],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= at_least
