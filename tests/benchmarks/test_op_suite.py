"""The op suite: a provider that is wrong gets no ratio, and what has no figure is named."""

import dataclasses
import json
import math
import sys
import types

import torch
from torch.nn import functional as F

from spanbert_fast.ops._backend import runs_reference


def run_ops(benchmarks, tmp_path, *options) -> tuple[int, list[dict]]:
    """op_suite.py's exit code and results."""
    output = tmp_path / "machine" / "ops.json"
    fixed = ["--tiny", "--quick", "--threads", "1", "--output", str(output)]
    code = benchmarks("op_suite").main([*fixed, *options])
    return code, json.loads(output.read_text())["results"]


def test_ours_gets_no_ratio_where_it_is_wrong(tmp_path, benchmarks, monkeypatch, capsys):
    right = benchmarks("bench_bias_gelu").bias_gelu

    def wrong(x, bias):  # but for the truth, which the reference gives
        return right(x if runs_reference() else x * 1.1, bias)

    monkeypatch.setattr(benchmarks("bench_bias_gelu"), "bias_gelu", wrong)
    code, results = run_ops(benchmarks, tmp_path, "--ops", "bias_gelu", "padding")
    assert code == 1
    assert {r["op"]: bool(r["speedups"]) for r in results} == {"bias_gelu": False, "padding": True}
    assert "bias_gelu bf16-forward+backward: ours is wrong" in capsys.readouterr().err
    assert "ours is wrong" in benchmarks("report").report(tmp_path).read_text()


def test_a_peer_that_is_wrong_or_raises_gets_no_ratio(tmp_path, benchmarks, monkeypatch):
    cases, make = benchmarks("op_case"), benchmarks("bench_padding").case

    def refuse(x):
        raise ValueError("only even sizes\nand more")

    def case(*arguments):
        found = make(*arguments)
        right = found.providers["PyTorch"].function
        found.providers["wrong"] = cases.Provider(lambda x: right(x).nan_to_num() * 1.5)
        found.providers["refuses"] = cases.Provider(refuse)
        return dataclasses.replace(found, not_installed=["flash-attn-9"])

    monkeypatch.setattr(benchmarks("bench_padding"), "case", case)
    code, results = run_ops(benchmarks, tmp_path, "--ops", "padding")
    assert code == 0
    for record in results:
        assert "PyTorch" in record["speedups"]
        assert not {"wrong", "refuses"} & set(record["speedups"])
        assert record["providers"]["refuses"]["raised"] == "ValueError: only even sizes"
    text = benchmarks("report").report(tmp_path).read_text()
    for part in ("wrong wrong", "refuses refuses", "flash-attn-9: not installed"):
        assert part in text


def test_an_op_that_raises_does_not_stop_the_others(tmp_path, benchmarks, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks("bench_padding"), "case", None)
    code, results = run_ops(benchmarks, tmp_path, "--ops", "padding", "bias_gelu")
    assert code == 1
    assert all(("raised" in r) == (r["op"] == "padding") for r in results)
    assert "padding bf16, unpad-forward+backward: TypeError" in capsys.readouterr().err


def test_a_lost_gpu_is_not_measured_on(tmp_path, benchmarks, monkeypatch):
    """Once a kernel has gone astray every later call of the process raises, right or wrong."""

    def case(*arguments):
        found = make(*arguments)
        found.providers["ours"] = cases.Provider(astray)
        return found

    def astray(x):
        raise torch.AcceleratorError("an illegal memory access")

    cases, make = benchmarks("op_case"), benchmarks("bench_padding").case
    monkeypatch.setattr(benchmarks("bench_padding"), "case", case)
    code, results = run_ops(benchmarks, tmp_path, "--ops", "padding", "bias_gelu")
    first, *others = sorted(results, key=lambda r: "raised" not in r)
    assert code == 1 and "AcceleratorError" in first["raised"]
    before = [r for r in others if "providers" in r]
    after = [r for r in others if r.get("not_measured") == "an earlier case lost the GPU"]
    assert len(before) + len(after) == len(others) and after


def test_what_there_is_no_time_for_is_named(tmp_path, benchmarks):
    code, results = run_ops(benchmarks, tmp_path, "--ops", "padding", "--budget", "0")
    assert code == 0 and results
    assert all(r["not_measured"] == "the time was up" for r in results)
    assert "not measured: the time was up" in benchmarks("report").report(tmp_path).read_text()
    output = tmp_path / "machine" / "scaling.json"
    assert benchmarks("scaling").main(["--tiny", "--budget", "0", "--output", str(output)]) == 0
    results = json.loads(output.read_text())["results"]
    assert all(c["not_measured"] and not c["sizes"] for c in results)
    output = tmp_path / "machine" / "inference.json"
    options = ["--tiny", "--budget", "0", "--output", str(output)]
    assert benchmarks("bench_inference").main(options) == 0
    text = benchmarks("report").report(tmp_path).read_text()
    assert "| ours | not measured: the time was up |" in text


def test_installed_libraries_are_providers(benchmarks, monkeypatch):
    """Stand-ins under the libraries' names and signatures."""
    losses, targets = benchmarks("bench_linear_cross_entropy"), torch.tensor([1, 0])
    leaves = [torch.randn(2, 8), torch.randn(5, 8), torch.randn(5)]
    _, missing = losses.libraries(targets)
    assert missing == [n for n in ("liger-kernel", "cut-cross-entropy") if n in missing]

    def cut(e, c, targets, bias=None):
        return F.cross_entropy(F.linear(e, c, bias), targets)

    def liger(reduction):
        return lambda weight, x, target, bias: cut(x, weight, target, bias)

    fakes = {
        "cut_cross_entropy": {"linear_cross_entropy": cut},
        "liger_kernel": {},
        "liger_kernel.transformers": {"LigerFusedLinearCrossEntropyLoss": liger},
    }
    for name, values in fakes.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(losses, "installed", lambda module: True)
    providers, missing = losses.libraries(targets)
    assert not missing and {"liger-kernel", "cut-cross-entropy"} <= set(providers)
    for provider in providers.values():
        torch.testing.assert_close(provider.function(*leaves), cut(*leaves[:2], targets, leaves[2]))


def test_error_share(benchmarks):
    share = benchmarks("op_case").error_share
    truth = (torch.tensor([1.0, 4.0], dtype=torch.float64),)
    peer, ours = (torch.tensor([1.0, 4.25]),), (torch.tensor([1.25, 4.0]),)
    assert share(ours, peer, truth, 0.0) == 0.5
    assert share(ours, truth, truth, 0.125) == 0.5
    assert share(truth, truth, truth, 0.0) == 0
    assert share(ours, truth, truth, 0.0) == math.inf
    assert share((torch.tensor([1.0, math.nan]),), peer, truth, 1.0) == math.inf
    assert share((torch.ones(3),), peer, truth, 1.0) == math.inf
