"""The Triton kernels, compiled for each chip without a GPU, spill no register, fit into the memory,
and use matrix instructions. `make kernel-report` compiles all; this is a sample: bf16, width 1024
and heads of 64 on sm_90, and three kernels on the other chips."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

from spanbert_fast.kernels import tile_config  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


# The installed Triton, and others in folders that the Makefile names.
TRITONS = [None, *(Path(p).resolve() for p in os.environ.get("OTHER_TRITON", "").split())]


def run(*command: str, triton: Path | None = None) -> subprocess.CompletedProcess:
    """Run Python in another process, in which Triton compiles instead of interpreting."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT / "benchmarks")}
    if triton is not None:
        environment["PYTHONPATH"] += f"{os.pathsep}{triton}"
        environment["TRITON_CACHE_DIR"] = str(triton / "cache")
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )


def reported(options: list[str], file: Path, triton: Path | None) -> tuple[list[dict], str]:
    """The kernels that kernel_report.py compiles with these options, and what it prints."""
    report = str(ROOT / "benchmarks/kernel_report.py")
    done = run(report, "--json", str(file), *options, triton=triton)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    written = json.loads(file.read_text())
    if triton is not None:
        assert list(triton.glob(f"triton-{written['triton']}.dist-info"))
    return written["kernels"], done.stdout


@pytest.fixture(scope="module")
def benchmarks():
    """A function that imports a module of the folder benchmarks."""
    sys.path.append(str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "benchmarks"))


PRODUCTS = {
    *("linear_cross_entropy_fwd", "score_gradient", "varlen_attention_fwd"),
    *("attention_one_tile", "attention_one_program", "attention_dk_dv", "attention_dq"),
}
MATRIX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
SM_90 = ["width 1024", "width 3072", "gather", "scatter", "heads of 64, 512 tokens, dropout"]
SM_90 += ["heads of 64, 1024 tokens, dropout", "clipped"]
SM_90 += ["backward, heads of 64, 128 tokens, dropout"]
OTHERS = ["width 1024, dropout, bias", "forward, width 1024, pred"]
OTHERS += ["forward, heads of 64, 128 tokens, dropout"]


@pytest.mark.parametrize("triton", TRITONS, ids=lambda folder: folder.name if folder else "triton")
@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        (
            ["--arch", "90", "--launch", *SM_90],
            {
                *PRODUCTS,
                *(f"{op}_{way}" for way in ("fwd", "bwd") for op in (
                    "bias_gelu", "dropout_add_layer_norm", "embedding_layer_norm",
                    "span_boundary_gather",
                )),
                *("column_sums", "copy_rows", "join_parts", "place_sums", "adamw", "adamw_begin"),
                *("row_terms", "sequence_order"),
            },
        ),
        (
            ["--arch", "80", "100", "--launch", *OTHERS],
            {"linear_cross_entropy_fwd", "dropout_add_layer_norm_bwd", "varlen_attention_fwd"},
        ),
    ],
    ids=["sm_90", "sm_80 and sm_100"],
)  # fmt: skip
def test_kernels_keep_to_the_chips_limits(options, kernels, triton, tmp_path):
    found, printed = reported(["--dtype", "bf16", *options], tmp_path / "kernels.json", triton)
    assert kernels <= {k["kernel"] for k in found}
    for k in found:
        what = f"{k['kernel']} on sm_{k['chip']}, {k['launch']}"
        assert not k["problems"], what
        assert k["spills"] == k["stack"] == 0, what
        assert k["shared"] <= {80: 163, 90: 227, 100: 227}[k["chip"]] << 10, what
        assert k["occupancy"] >= 1 and 0 < k["registers"] <= 255, what
        assert k["products"] == (k["kernel"] in PRODUCTS), what
        assert (k["matrix"] is not None) == k["products"], what
        if k["products"] and (k["chip"] == 90 or "width" in k["launch"]):
            assert k["matrix"] == MATRIX[k["chip"]], what
            assert k["loop"].get("matrix", 0) > 0 or not k["loop"], what
        assert k["kernel"] in printed


@pytest.mark.parametrize("triton", TRITONS, ids=lambda folder: folder.name if folder else "triton")
def test_antecedents_spill_no_register(triton, tmp_path):
    """Their tiles of scores, buckets and gradients fill the registers, in fp32 on sm_90 most."""
    options = ["--op", "antecedent_loss", "antecedent_top_k", "--launch", "width 1000", "k 50"]
    found, _ = reported(
        ["--arch", "90", "--dtype", "bf16", "fp32", *options], tmp_path / "kernels.json", triton
    )
    names = [(k["kernel"], k["dtype"]) for k in found]
    for dtype in ("bf16", "fp32"):
        for kernel, count in (
            ("antecedent_loss_fwd", 1),
            ("antecedent_gradient", 2),  # of queries, and of keys
            ("antecedent_top_k", 1),
        ):
            assert names.count((kernel, dtype)) == count
    for k in found:
        assert k["spills"] == 0 and not k["problems"], k


RECORDED = """
import json
from kernel_cases import cases
from spanbert_fast.kernels import tile_config

kernels, taken = set(), []
for chip in tile_config.CHIPS:
    found, tiles = cases(chip)
    kernels |= {case.function.__name__ for case in found}
    taken += tiles
rows = [(kernel, row.tile) for kernel, rows in tile_config.TABLES.items() for row in rows]
print(json.dumps([sorted(kernels), [row for row in rows if row not in taken]]))
"""


def test_every_kernel_and_every_row_of_the_tables_is_compiled():
    done = run("-c", RECORDED)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels, never_taken = json.loads(done.stdout)
    written = {
        line.removeprefix("def ").partition("(")[0]
        for path in (ROOT / "kernels").glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def _") and "_kernel(" in line
    }
    assert len(written) >= 14
    assert set(kernels) == written
    assert never_taken == []


SIZES = """
import json
import kernel_cases

found = []
for rows, spans in ((4001, 1001), (4096, 1024), (6, 1)):
    kernel_cases.ROWS, kernel_cases.SPANS = rows, spans
    found.append([case.key for case in kernel_cases.cases(90, dtypes=["bf16"])[0]])
print(json.dumps(found))
"""


def test_no_kernel_is_compiled_for_a_number_of_rows():
    """Every batch may have another number of rows; 1 or a multiple of 16 starts no compilation."""
    done = run("-c", SIZES)
    assert done.returncode == 0, done.stderr[-3000:]
    usual, *others = json.loads(done.stdout)
    for keys in others:
        assert len(keys) > 50
        assert not set(keys) - set(usual)


def test_the_interpreter_compiles_nothing(benchmarks, monkeypatch):
    from triton import knobs

    monkeypatch.setattr(knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET must be off"):
        benchmarks("kernel_cases").stand_in(90)


SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;   /* 0x00000a00ff017b82 */
        /*0010*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0020*/                   UIADD3 UR5, UR15, -0x1, URZ ;
        /*0030*/                   IMAD.WIDE.U32 R8, R4, 0x4, R6 ;
        /*0040*/              @!P1 MUFU.EX2 R9, R8 ;
        /*0050*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0060*/               @P0 BRA 0x30 ;
        /*0070*/                   FADD R1, R2, R3 ;
        /*0080*/                   STL [R1], R0 ;
        /*0090*/                   BRA.U UP0, 0x10 ;
        /*00a0*/                   LOP3.LUT R1, R2, R3, RZ, 0xc0, !PT ;
        /*00b0*/               @P0 BRA 0xa0 ;
        /*00c0*/                   BRA 0xc0;
"""


def test_the_innermost_loop_and_its_classes(benchmarks):
    r = benchmarks("kernel_resources")
    code = r.instructions(SASS)
    assert [i.opcode for i in code][:3] == ["LDC", "LDG.E", "UIADD3"] and len(code) == 13
    loop = r.innermost_loop(code)
    assert (loop[0].address, loop[-1].address) == (0x30, 0x60)
    assert r.count_classes(loop) == {"wide product": 1, "mufu": 1, "matrix": 1, "other": 1}
    assert r.count_classes(code)["spill"] == 1 and r.count_classes(code)["uniform"] == 1
    # a program ends with a branch to itself, which is no loop
    assert r.innermost_loop(code[-1:]) == []


@pytest.mark.parametrize(
    ("chip", "registers", "shared", "warps", "expected"),
    [
        (90, 32, 0, 4, 16),  # 64 warps
        (90, 128, 0, 8, 2),  # 16 warps of 4,096 registers
        (90, 168, 0, 4, 3),
        (90, 255, 147456, 8, 1),
        (90, 32, 98304, 4, 2),  # 97 KiB each, of 228
        (80, 32, 98304, 4, 1),  # of 164
        (80, 32, 0, 1, 32),  # blocks
        (90, 255, 0, 16, 0),
    ],
)
def test_occupancy(chip, registers, shared, warps, expected, benchmarks):
    r = benchmarks("kernel_resources")
    assert r.occupancy(r.CHIPS[chip], registers, shared, warps) == expected


def test_a_broken_limit_is_named(benchmarks):
    r, cases = benchmarks("kernel_resources"), benchmarks("kernel_cases")

    class Function:
        __name__ = "_some_kernel"
        arg_names = ("x", "width", "BLOCK")

    def case(block: int, aligned: bool = True) -> object:
        attributes = {(1,): [["tt.divisibility", 16]] if aligned else []}
        options = {"num_warps": 4}
        return cases.Case(
            "op", "launch", "bf16", 90, Function, {}, {(2,): block}, attributes, options
        )

    sound = r.Resources(64, 0, 0, 1024, 8, True, "wgmma.mma_async", 100, {})
    assert r.problems(case(64), sound) == []
    spilled = replace(sound, stack=16, spills=4)
    assert r.problems(case(64), spilled) == ["4 spills, 16 bytes of stack"]
    assert r.problems(case(64, aligned=False), spilled) == r.problems(case(4096), spilled) == []
    assert r.problems(case(64), replace(sound, stack=8)) == []  # which no instruction touches
    assert r.problems(case(8192), replace(sound, stack=264, spills=90))
    assert "of shared memory, of 232448" in r.problems(case(64), replace(sound, shared=1 << 18))[0]
    assert "no block fits" in r.problems(case(64), replace(sound, occupancy=0))[0]
    for slow in ("mma.sync", None):
        assert "products by" in r.problems(case(64), replace(sound, matrix=slow))[0]


def test_tiles_by_chip_and_facts(tmp_path, monkeypatch):
    def tile(*chip, **facts):
        return tile_config.row_of.__wrapped__(*chip, **facts).tile  # __wrapped__ bypasses the cache

    assert [tile("linear_cross_entropy_fwd", chip, itemsize=2).blocks["BLOCK_N"]
            for chip in tile_config.CHIPS] == [128, 256, 128]  # fmt: skip
    assert tile("linear_cross_entropy_fwd", 90, itemsize=4).blocks["BLOCK_N"] == 64
    for chip, warps, one_tile in ((80, 4, 64), (90, 4, 128), (100, 4, 128)):
        # the table has a row for wider heads after this one
        facts = {"itemsize": 2, "head_block": 64, "keys": 512}
        assert tile("varlen_attention_fwd", chip, **facts).blocks["BLOCK_N"] == 128
        assert tile("attention_dq", chip, **facts).num_warps == warps
        assert tile("attention_one_tile", chip, **facts).blocks["BLOCK"] == one_tile
        assert tile("attention_one_tile", chip, **facts | {"keys": 64}).blocks["BLOCK"] == 64
    whole = [tile("dropout_add_layer_norm_bwd", 90, width=w) for w in (1, 768, 4096, 4097)]
    assert [t.num_warps for t in whole] == [1, 4, 16, 8]
    with pytest.raises(ValueError, match="score_gradient has no tile for {'itemsize': 8} on sm_90"):
        tile("score_gradient", 90, itemsize=8)
    entry = {"kernel": "dropout_add_layer_norm_bwd", "chip": 90, "facts": {"width": 1024}}
    entry |= {"blocks": {}, "num_warps": 2, "num_stages": 2, "measured": "a chip, a day"}
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps([entry]))
    monkeypatch.setattr(tile_config, "TUNED", tile_config.read_tuned(path))
    assert tile("dropout_add_layer_norm_bwd", 90, width=768) == (*({}, 2, 2), "a chip, a day")
    for width in (512, 1025):  # widths of other rows in the table
        assert tile("dropout_add_layer_norm_bwd", 90, width=width).measured == "static"
    assert tile("dropout_add_layer_norm_bwd", 100, width=768).measured == "static"
    for text in ("{", '{"a": 1}', "[{}]"):
        path.write_text(text)
        with pytest.raises(ValueError, match="tuned.json: not a list of tuned rows"):
            tile_config.read_tuned(path)


def test_the_committed_rows_are_whole():
    """Each one replaces a row of the tables, and says where it was measured."""
    assert tile_config.TUNED_FILE.exists()
    for kernel, rows in tile_config.TUNED.items():
        for row in rows:
            assert row.chip in tile_config.CHIPS and row.tile.measured != "static"
            assert row.facts in [static.facts for static in tile_config.TABLES[kernel]]
