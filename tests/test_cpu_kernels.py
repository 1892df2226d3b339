"""The compiled CPU kernels at every instruction set of this machine, and apart from each other."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spanbert_fast._extension import _C

pytestmark = pytest.mark.skipif(_C is None, reason="needs the extension")

LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
# what ATEN_CPU_CAPABILITY may say, and the widest level of ours that it allows
ALLOWED = {"default": "baseline", "avx2": "avx2", "avx512": "avx512"}
CHOSEN = "not compile and not bad_input and not stand_in and not memory"  # independent of the level
OPS = (
    "bias_gelu",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "linear_cross_entropy",
    "span_boundary_gather",
)


def widest_level() -> str:
    code = "from spanbert_fast._extension import _C; print(_C.isa_level())"
    environment = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()[-1]


@pytest.mark.parametrize("capability", ALLOWED)
def test_the_ops_at_every_level(capability):
    """The ops' own tests again, in a process that is held to one level."""
    expected = min(ALLOWED[capability], widest_level(), key=LEVELS.index)
    code = (
        "import sys, pytest; from spanbert_fast._extension import _C; "
        f"assert _C.isa_level() == {expected!r}, _C.isa_level(); "
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    files = [str(Path(__file__).with_name(f"test_{op}.py")) for op in OPS]
    done = subprocess.run(
        [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", "-k", CHOSEN, *files],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 100


@pytest.mark.skipif(
    "x86_64" not in os.uname().machine or shutil.which("objdump") is None,
    reason="needs x86-64 and binutils",
)
def test_no_instruction_beyond_its_level():
    """Code that any CPU runs holds no AVX; AVX2 code no AVX-512; AVX-512 code no bfloat16; and no
    code but the level amx's holds a tile instruction."""
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
            # the longest name that the mangled symbol carries, as in N13spanbert_fast6avx512...
            found = re.search(rf"13spanbert_fast(?:{names})", line)
            level = re.sub(r"^13spanbert_fast\d+", "", found.group()) if found else "baseline"
            if "_range_avx2" in line:  # the span sampler's clones, chosen at run time as well
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
    assert seen == set(LEVELS) - {"baseline"}
    assert tiles == {
        "ldtilecfg", "tilezero", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease",
    }  # fmt: skip
