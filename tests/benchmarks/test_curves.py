"""Scaling and loss curves: a wrong one gets no ratio."""

import json
import sys

import pytest


def test_a_wrong_curve_gets_no_ratio(tmp_path, benchmarks, monkeypatch):
    scaling, output = benchmarks("scaling"), tmp_path / "scaling.json"
    right = scaling.varlen_attention
    monkeypatch.setattr(scaling, "varlen_attention", lambda q, *a: right(q * 1.2, *a))
    assert scaling.main(["--tiny", "--threads", "1", "--output", str(output)]) == 1
    curves = {c["grows"]: c for c in json.loads(output.read_text())["results"]}
    wrong = curves.pop("sequence length")
    assert not wrong["passed"] and wrong["speedups"] == wrong["exponents"] == {}
    assert all(c["passed"] and c["speedups"] for c in curves.values())


def test_a_wrong_model_gets_no_loss_ratio(tmp_path, benchmarks, monkeypatch):
    curve, output = benchmarks("bench_loss_curve"), tmp_path / "loss.json"
    attention = sys.modules["spanbert_fast.nn.attention"]
    right = attention.varlen_attention
    monkeypatch.setattr(attention, "varlen_attention", lambda q, *a, **k: right(q * 1.5, *a, **k))
    assert curve.main(["--tiny", "--threads", "1", "--output", str(output)]) == 1
    (result,) = json.loads(output.read_text())["results"]
    assert not result["passed"] and not result["speedups"]


def test_the_loss_falls_alike(benchmarks):
    curve = benchmarks("bench_loss_curve")
    case = curve.Case(2, 32, (32,) * 4, hidden_size=64, vocab_size=500)
    result = curve.measure(case, threads=1, steps=27, budget=60)
    ours, theirs = result["providers"].values()
    assert result["passed"] and ours["steps"] == theirs["steps"] == [0, 5, 10, 15, 20, 25, 27]
    for a, b in zip(ours["loss"], theirs["loss"], strict=True):
        assert a == pytest.approx(b, rel=0.01)
    assert ours["loss"][-1] < ours["loss"][0] - 0.3
    assert ours["seconds"] == sorted(ours["seconds"])


def test_exponents(benchmarks):
    exponent = benchmarks("scaling").exponent
    sizes = [64.0, 128.0, 256.0, 1024.0]
    assert exponent(sizes, [3e-6 * n**2 for n in sizes]) == pytest.approx(2)
    assert exponent(sizes, [1e-4 * n for n in sizes]) == pytest.approx(1)
    assert exponent([64.0], [1.0]) is None
