"""tune.py takes the fastest tile; a clock with made-up times replaces the GPU."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from spanbert_fast.kernels import tile_config  # noqa: E402
from spanbert_fast.kernels.bias_gelu import bias_gelu_bwd, bias_gelu_fwd  # noqa: E402
from spanbert_fast.kernels.tile_config import Tile, forced_tile, tile_for  # noqa: E402
from spanbert_fast.ops.bias_gelu import BiasGeluInputs  # noqa: E402
from spanbert_fast.testing import assert_bitwise_equal  # noqa: E402

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def tune():
    sys.path.append(str(BENCHMARKS))
    yield importlib.import_module("tune")
    sys.path.remove(str(BENCHMARKS))


class MadeUp:
    """A clock that gives the calls of every round these seconds."""

    def __init__(self, *seconds: float):
        self.given, self.calls = seconds, 0

    def seconds(self, call) -> float:
        call()
        self.calls += 1
        return self.given[(self.calls - 1) % len(self.given)]


def test_every_table_has_candidates(tune):
    assert set(tune.TARGETS) == set(tile_config.TABLES)
    for kernel, target in tune.TARGETS.items():
        bench = importlib.import_module(f"bench_{target.op}")
        assert set(target.variants) <= {*bench.VARIANTS, *getattr(bench, "CUDA_VARIANTS", ())}
        for chip in tile_config.CHIPS:
            for row in tile_config.rows_of(kernel, chip):
                found = tune.candidates(target, row.tile, 2, chip)
                assert found[0][:3] == row.tile[:3] and 3 <= len(found) <= 80
                assert len({str(tile) for tile in found}) == len(found)
                assert {frozenset(t.blocks) for t in found} == {frozenset(row.tile.blocks)}
                assert all(t.num_warps in (1, 2, 4, 8, 16, 32) for t in found)


def test_the_fastest_right_tile_is_written(tune, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tune, "facts_of", lambda kernel, call: {"width": 96})
    kernel, seen = "dropout_add_layer_norm_fwd", []
    right = tune.is_right

    def is_right(*case) -> bool:
        seen.append(tile_for(kernel, torch.device("cpu")))
        return right(*case) and seen[-1].num_warps != 4

    monkeypatch.setattr(tune, "is_right", is_right)
    clock = MadeUp(3e-3, 1e-3, 2e-3)  # with 1, 2 and 8 warps; 4 gives wrong results
    entry, gain = tune.tuned_row(
        kernel, "bf16, p=.1", clock, 90, device="cpu", sizes=("tiny", "tiny"), limit=4
    )
    assert [tile.num_warps for tile in seen] == [1, 2, 4, 8]
    assert "WRONG" in capsys.readouterr().out
    assert clock.calls == 9, "three rounds, as figures do not vary"
    assert gain == pytest.approx(3)
    assert entry["measured"].startswith("cpu, 20")
    assert {**entry, "measured": ""} == {
        "kernel": kernel, "chip": 90, "facts": {"width": 256}, "blocks": {}, "num_warps": 2,
        "num_stages": 2, "measured": "",
    }  # fmt: skip
    path = tmp_path / "tuned.json"
    other = {**entry, "chip": 100}
    tune.write_rows(path, [{**entry, "num_warps": 16}, other])
    tune.write_rows(path, [entry])
    assert json.loads(path.read_text()) == [entry, other]
    monkeypatch.setattr(tile_config, "TUNED", tile_config.read_tuned(path))
    assert tile_config.row_of.__wrapped__(kernel, 90, width=200).tile.num_warps == 2
    assert tile_config.row_of.__wrapped__(kernel, 90, width=300).tile.measured == "static"


def test_what_does_not_fit_the_chip_is_left_out(tune, monkeypatch, capsys):
    from triton.runtime.errors import OutOfResources

    def is_right(*case) -> bool:
        raise OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(tune, "is_right", is_right)
    monkeypatch.setattr(tune, "facts_of", lambda kernel, call: {})
    options = {"device": "cpu", "sizes": ("tiny", "tiny"), "limit": 2}
    with pytest.raises(RuntimeError, match="bias_gelu_bwd: no tile gives right results"):
        tune.tuned_row("bias_gelu_bwd", "bf16", MadeUp(1.0), 90, **options)
    assert capsys.readouterr().out.count("is left out: out of resource: shared memory") == 2


def test_facts_come_from_the_launcher(tune, monkeypatch):
    monkeypatch.setattr(tile_config, "chip_of", lambda device: 90)

    def launch():
        tile_for("score_gradient", torch.device("meta"), itemsize=4)
        tile_for("attention_dq", torch.device("meta"), itemsize=2, head_block=64, keys=512)

    assert tune.facts_of("attention_dq", launch) == {"itemsize": 2, "head_block": 64, "keys": 512}
    assert tune.facts_of("score_gradient", launch) == {"itemsize": 4}
    assert tune.facts_of("attention_one_tile", launch) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's tiles")
def test_a_forced_tile_is_the_one_that_runs():
    inputs = BiasGeluInputs(torch.randn(9, 50), torch.randn(50))
    y, gradients = bias_gelu_fwd(inputs), bias_gelu_bwd(inputs.x, inputs)
    with forced_tile("bias_gelu_fwd", Tile({"ROWS": 2, "COLUMNS": 16}, 4)):
        assert_bitwise_equal(bias_gelu_fwd(inputs), y)
    with forced_tile("bias_gelu_bwd", Tile({"ROWS": 2, "COLUMNS": 16}, 4)):
        torch.testing.assert_close(bias_gelu_bwd(inputs.x, inputs), gradients)
    with (
        forced_tile("bias_gelu_fwd", Tile({"ROWS": 2}, 4)),
        pytest.raises(KeyError, match="COLUMNS"),
    ):
        bias_gelu_fwd(inputs)
    assert_bitwise_equal(bias_gelu_fwd(inputs), y)


def test_bad_options_and_no_gpu(tune, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    assert capsys.readouterr().err == "tune.py: times need an NVIDIA GPU, and there is none\n"
    for options in (["--candidates", "0"], ["--kernel", "none"]):
        with pytest.raises(SystemExit) as stop:
            tune.main(options)
        assert stop.value.code == 2
    assert "--candidates must be positive, got 0" in capsys.readouterr().err
