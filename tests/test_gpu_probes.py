"""benchmarks/gpu_probes.py and host_cost.py find, on a CPU, the faults that they look for."""

import importlib
import json
import shutil
from pathlib import Path

import pytest

from spanbert_fast import _extension

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def test_races_are_found(load, monkeypatch):
    probes = load("gpu_probes")
    assert probes.races("cpu", probes.TINY_RACES, 2) == []
    ops = importlib.import_module("spanbert_fast.ops.varlen_attention")
    right, calls = ops.varlen_attention, []

    def moving(q, k, v, *rest, **options):
        calls.append(0)
        return right(q, k, v * (1 + 0.01 * (len(calls) == 2)), *rest, **options)

    monkeypatch.setattr(ops, "varlen_attention", moving)
    (found,) = probes.races("cpu", probes.TINY_RACES, 2)
    assert "dropout 0.0: " in found and " 0 results moved" not in found


def test_a_step_is_repeated(load, monkeypatch):
    probes = load("gpu_probes")
    assert probes.steps("cpu", tiny=True) == []
    right, seeds = probes.losses_of, iter((0, 100))

    def losses_of(train):  # the second run has other seeds
        first = next(seeds)
        return right(lambda seed: train(first + seed))

    monkeypatch.setattr(probes, "losses_of", losses_of)
    (found,) = probes.steps("cpu", tiny=True)
    assert found.startswith("losses are ")


@pytest.mark.skipif(_extension._C is None, reason="there is no extension to keep")
def test_the_build_takes_what_was_built_before(load, tmp_path, capfd):
    """A copy of this environment's extension stands for the build, which takes minutes."""
    probes, site = load("gpu_probes"), tmp_path / "site"
    load("gpu_check").put_together(site, None)
    shutil.copy(_extension._C.__file__, tmp_path / f"extension-{probes.extension_key()}.so")
    options = ["--site", str(site), "--out", str(tmp_path), "--chip", "90"]
    output = tmp_path / "environment.json"
    assert probes.main(["build", *options, "--output", str(output)]) == 0
    assert json.loads(output.read_text())["extension"], capfd.readouterr().out
    assert list((site / "spanbert_fast").glob("_C*.so"))


def test_the_hosts_cost_of_a_layer(load, tmp_path, capsys):
    output = tmp_path / "host_cost.json"
    assert load("host_cost").main(["--tiny", "--output", str(output)]) == 0
    records, printed = json.loads(output.read_text())["results"], capsys.readouterr().out
    assert [r["unit"] for r in records] == ["us", "us", "x"]
    assert all(r["what"] in printed for r in records)
