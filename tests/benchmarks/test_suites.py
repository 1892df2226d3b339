"""run.py and its suites, at tiny shapes, and the report of what they find."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from spanbert_fast._extension import _C

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
needs_extension = pytest.mark.skipif(_C is None, reason="the ops' benchmarks compare the extension")


@pytest.fixture
def in_process(benchmarks, monkeypatch):
    """run.py whose scripts run in this process, which has loaded everything."""
    run = benchmarks("run")

    def script(name, output, *options):
        if benchmarks(Path(name).stem).main(["--output", str(output), *options]):
            raise RuntimeError(f"{name} has failed")

    monkeypatch.setattr(run, "script", script)
    return run


@needs_extension
def test_every_suite_runs_and_is_reported(tmp_path, benchmarks, in_process, capsys):
    """All but bench_training.py, which has a test of its own."""
    folder = tmp_path / "machine"
    suites = ["check", "ceilings", "ops", "inference", "loss_curve", "scaling"]
    options = ["--tiny", "--quick", "--threads", "1", "--output-dir", str(folder)]
    options += ["--suites", *suites]
    assert in_process.main(options) == 0, capsys.readouterr().err
    assert {path.stem for path in folder.iterdir()} == set(suites)
    read = benchmarks("results_format").read_document
    found = {name: read(folder / f"{name}.json")["results"] for name in suites}
    kernels = os.listdir(BENCHMARKS.parent / "csrc/cpu/kernels")
    ops = {path.stem.removeprefix("bench_") for path in BENCHMARKS.glob("bench_*.py")}
    assert {r["op"] for r in found["ops"]} >= {op for op in ops if op in kernels} | {"sample_spans"}
    for record in found["ops"]:
        assert all(p["passed"] and p["median_ms"] > 0 for p in record["providers"].values())
        assert set(record["speedups"]) == set(record["providers"]) - {"ours"}
        assert record["achieved"]["share"] > 0
    providers = {(r["op"], name) for r in found["ops"] for name in r["providers"]}
    assert {
        ("bias_gelu", "PyTorch compiled"),
        ("span_loss", "released, padded"),
        ("varlen_attention", "sdpa, no dropout"),
    } <= providers
    assert found["check"][-1]["not_measured"] == "it needs a GPU"
    assert all(curve["passed"] and curve["speedups"] for curve in found["scaling"])
    text = benchmarks("report").report(tmp_path).read_text()
    assert text.count("\nnot measured") >= 3, "training, fine-tuning and GPUs"
    assert "flash-attn-4: not installed" in text or benchmarks("op_case").installed("flash_attn")
    pictures = {path.name.removeprefix("machine-") for path in tmp_path.glob("*.png")}
    assert pictures >= {"ops.png", "roofline.png", "loss.png", "inference.png"}
    for picture in tmp_path.glob("*.png"):
        assert picture.name in text and picture.stat().st_size > 5000


@needs_extension
def test_pytest_benchmark_has_the_same_cases(tmp_path, benchmarks):
    raw = tmp_path / "raw.json"
    options = ["-q", "-p", "no:cacheprovider", "-k", "padding and forward-2", "--benchmark-only"]
    options += [f"--benchmark-json={raw}"]
    # pytest-benchmark measures nothing inside a worker of pytest-xdist
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    environment["SPANBERT_FAST_BENCH_TINY"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", str(BENCHMARKS), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    measured = json.loads(raw.read_text())["benchmarks"]
    assert {b["extra_info"]["op"] for b in measured} == {"padding"}
    assert all(b["extra_info"]["speedups"]["PyTorch"]["median"] > 0 for b in measured)


@needs_extension
def test_the_gpus_cases_are_right(benchmarks):
    """Those that a CPU has not, without their timer and the peers that need a GPU."""
    suite, clock = benchmarks("op_suite"), benchmarks("timing").Clock()
    items = suite.items("cuda", threads=1)
    assert {item.op for item in items} == set(suite.OPS)
    slow = {item.variant for item in items if item.has_slow_ones("cuda") and "512" in item.variant}
    assert slow == {"bf16, 512, p=.1", "bf16, 512, p=0"}
    own = set(items) - set(suite.items("cpu", threads=1))
    assert own
    for item in own:
        case = item.case("cpu", "tiny")
        record = suite.measure(item, case, clock, 0.0, {}, check_only=True)
        assert record["providers"]["ours"]["passed"], item


def test_without_a_gpu_there_is_one_line(benchmarks, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmarks("run").main(["--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("run.py: --device cuda needs an NVIDIA GPU") and error.count("\n") == 1


def test_the_sanitizer_is_asked_where_an_op_is_wrong(tmp_path, benchmarks, monkeypatch):
    run, form = benchmarks("run"), benchmarks("results_format")

    def script(name, output, *options):
        form.write_document(output, form.document("ops", 1, []))
        raise RuntimeError(f"{name} ended with exit code 1")

    monkeypatch.setattr(run, "script", script)
    monkeypatch.setattr(run, "sanitized", lambda *_: {"op": "all", "passed": True})
    output = tmp_path / "check.json"
    options = types.SimpleNamespace(device="cuda", quick=False)
    with pytest.raises(RuntimeError, match="op_suite.py ended with exit code 1"):
        run.check(options, output, 60)
    assert form.read_document(output)["results"] == [{"op": "all", "passed": True}]


@pytest.mark.parametrize(
    ("body", "seconds", "expected"),
    [
        ("exit 0", 30, {"passed": True}),
        ("echo '= Invalid __global__ read'; exit 3", 30, {"raised": "= Invalid __global__ read"}),
        ("exit 1", 30, {"raised": "op_suite.py ended with exit code 1"}),
        ("exec sleep 30", 0.2, {"not_measured": "it was not done in 0 s"}),
        (None, 30, {"not_measured": "compute-sanitizer is not on the PATH"}),
    ],
)
def test_what_the_sanitizer_says(tmp_path, benchmarks, monkeypatch, body, seconds, expected):
    program = tmp_path / "compute-sanitizer"
    if body is not None:
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = benchmarks("run").sanitized("cuda", seconds)
    assert found["op"] == "all" and expected.items() <= found.items()
