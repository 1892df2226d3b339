"""varlen_attention's kernels at every instruction set, tile instructions included."""

import os
import subprocess
from pathlib import Path

import pytest

from isa_cases import CAPABILITIES, LEVELS, run_at_level
from spanbert_fast._extension import _C

OF_THE_KERNELS = "(no_worse and (ragged or one) and (64 or 96)) or exactly or any_head or level"
FILES = ["test_varlen_attention.py", "test_varlen_attention_dropout.py", Path(__file__).name]


@pytest.mark.skipif(_C is None, reason="needs the extension")
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set(capability):
    """PyTorch and the kernels are limited to a level."""
    chosen = f"({OF_THE_KERNELS} or bits) and not every"
    level = CAPABILITIES[capability]
    run_at_level(level, FILES, chosen, at_least=50, ATEN_CPU_CAPABILITY=capability)


@pytest.mark.skipif(
    _C is None or "avx512_bf16" not in Path("/proc/cpuinfo").read_text(),
    reason="the kernels with tile instructions have AVX-512 and bfloat16 ones, too",
)
def test_matrix_unit(tmp_path):
    """The kernels with tile instructions. On a CPU without these, matrix_unit.cpp catches the fault
    and executes each instruction."""
    library = tmp_path / "matrix_unit.so"
    command = [os.environ.get("CXX", "c++"), "-O3", "-Wall", "-Werror", "-shared", "-fPIC"]
    source = Path(__file__).with_name("matrix_unit.cpp")
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    # the library handles the signal that faulthandler would handle
    options = ("-p", "no:faulthandler")
    environment = {"LD_PRELOAD": str(library), "SPANBERT_FAST_ASSUME_AMX": "1"}
    chosen = f"({OF_THE_KERNELS}) and not every"
    run_at_level("amx", FILES, chosen, *options, at_least=50, **environment)


@pytest.mark.skipif(_C is None, reason="needs the extension")
def test_level_is_what_the_environment_allows():
    capability = os.environ.get("ATEN_CPU_CAPABILITY", "")
    allowed = CAPABILITIES.get(capability, LEVELS[-1])
    assert LEVELS.index(_C.isa_level()) <= LEVELS.index(allowed)
    if os.environ.get("SPANBERT_FAST_ASSUME_AMX") == "1":
        assert _C.isa_level() == "amx"
