"""The compiled CPU kernels run at every level of this machine, and the levels stay apart."""

import os
import re
import shutil
import subprocess

import pytest

from isa_cases import CAPABILITIES, LEVELS, ROOT, run_at_level
from spanbert_fast._extension import _C

pytestmark = pytest.mark.skipif(_C is None, reason="needs the extension")

# leaves out the tests that do not depend on the level
CHOSEN = "not compile and not bad_input and not stand_in and not memory"
# the tests of all ops with code by level, except attention, which has its own files
FILES = sorted(
    path.name
    for kernel in (ROOT / "csrc/cpu/kernels").glob("*.cpp")
    for path in (ROOT / "tests").glob(f"test_{kernel.stem}*.py")
    if kernel.stem != "varlen_attention"
)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_ops_at_every_level(capability):
    """Run the ops' own tests again in a process that is limited to one level."""
    run_at_level(
        CAPABILITIES[capability], FILES, CHOSEN, at_least=240, ATEN_CPU_CAPABILITY=capability
    )


@pytest.mark.skipif(
    "x86_64" not in os.uname().machine or shutil.which("objdump") is None,
    reason="needs x86-64 and binutils",
)
def test_no_instruction_beyond_its_level():
    """Baseline code has no AVX, AVX2 code no AVX-512, AVX-512 code no bfloat16, and only the level
    amx has tile instructions."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", _C.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    level, seen, tiles = "baseline", set(), set()
    names = "|".join(f"{len(name)}{name}" for name in LEVELS)
    for line in listing.splitlines():
        if line.endswith(">:"):
            # the longest level name in the mangled symbol, as in N13spanbert_fast6avx512...
            found = re.search(rf"13spanbert_fast(?:{names})", line)
            level = re.sub(r"^13spanbert_fast\d+", "", found.group()) if found else "baseline"
            if "_range_avx2" in line:  # the span sampler's clones are chosen at run time, too
                level = "avx2"
            symbol = line
            continue
        instruction = line.partition("\t")[2]
        if tile := re.match(r"(tile\w+|tdp\w+|ldtilecfg)", instruction):
            needed = "amx"
            tiles.add(tile.group())
        elif re.match(r"v(dpbf16|cvtne\w*bf16)", instruction):
            needed = "avx512_bf16"
        elif re.search(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])", instruction):
            needed = "avx512"
        elif re.search(r"^v\w+ .*%[xy]mm", instruction):
            needed = "avx2"
        else:
            continue
        seen.add(needed)
        assert LEVELS.index(needed) <= LEVELS.index(level), f"{symbol} {line}"
    # An editable build has this CPU's levels, a wheel has all.
    assert seen >= set(_C.isa_levels()) - {"baseline"}
    amx = {"ldtilecfg", "tilezero", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease"}
    assert tiles == (amx if "amx" in seen else set())
