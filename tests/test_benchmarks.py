"""The benchmarks run, at tiny shapes; their reports and decisions, on made-up figures."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spanbert_fast._extension import _C

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks():
    """Imports a module of the benchmarks' folder."""
    sys.path.append(str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.skipif(_C is None, reason="the ops' benchmarks compare the extension")
def test_every_suite_runs_and_is_reported(tmp_path, benchmarks):
    """bench_training.py has a test of its own."""
    folder = tmp_path / "machine"
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--tiny", "--threads", "1"]
    command += ["--suites", "ceilings", "ops", "scaling", "inference", "--output-dir", str(folder)]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {path.name for path in folder.iterdir()} == {
        "ceilings.json", "ops.json", "scaling.json", "inference.json",
    }  # fmt: skip
    ops = json.loads((folder / "ops.json").read_text())["results"]
    assert {r["op"] for r in ops} >= {
        path.stem.removeprefix("bench_")
        for path in BENCHMARKS.glob("bench_*.py")
        if path.stem.removeprefix("bench_") in os.listdir(BENCHMARKS.parent / "csrc/cpu/kernels")
    }
    text = benchmarks("report").report(tmp_path).read_text()
    assert text.count("not measured") >= 3, "training, fine-tuning and GPUs"
    for picture in tmp_path.glob("*.png"):
        assert picture.name in text and picture.stat().st_size > 5000
    for op in ("bias_gelu", "varlen_attention", "linear_cross_entropy"):
        assert op in text


def test_the_report_has_training_and_finetuning(tmp_path, benchmarks):
    folder = tmp_path / "machine"
    folder.mkdir()
    training = {
        "layers": 4, "hidden_size": 768, "seqlen": 512, "lengths": [512], "tokens": 512,
        "dtype": "bf16", "dropout": 0.1, "allocator": "default",
        "providers": {
            "ours": {"median_ms": 10.0, "tokens_per_second": 5e4, "peak_rss_mb": 100.0},
            "hf-sdpa": {"median_ms": 31.0, "tokens_per_second": 2e4, "peak_rss_mb": 300.0},
            "hf-eager-compiled": {"passed": False, "raised": "RuntimeError: no compiler"},
        },
        "speedups": {"hf-sdpa": {"median": 3.125, "low": 3.0, "high": 3.2}},
    }  # fmt: skip
    tuning = {"case": "wnut17", "metric": "f1", "speed_up": 2.5, "peer": "transformers eager"}
    run = {"spanbert_fast": {"dev": {"f1": 50.25}, "seconds": 10.0}}
    run["transformers"] = {"dev": {"f1": 49.5}, "seconds": 30.0}
    form = benchmarks("results_format")
    for name, results in (("training", [training]), ("finetuning", [{**tuning, "runs": run}])):
        form.write_document(folder / f"{name}.json", form.document(name, 2, results))
    text = benchmarks("report").report(tmp_path).read_text()
    for figure in ("3.12", "failed", "300", "50.25", "49.50", "2.50 (transformers eager)"):
        assert figure in text
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "machine-training.png",
        "machine-finetuning.png",
    }


def test_a_broken_result_file_is_named(tmp_path, benchmarks):
    read = benchmarks("results_format").read_document
    path = tmp_path / "x.json"
    for content, message in (("{", "x.json: not JSON"), ('{"a": 1}', "it has no 'benchmark'")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read(path)


def test_exponents(benchmarks):
    exponent = benchmarks("scaling").exponent
    sizes = [64.0, 128.0, 256.0, 1024.0]
    assert exponent(sizes, [3e-6 * n**2 for n in sizes]) == pytest.approx(2)
    assert exponent(sizes, [1e-4 * n for n in sizes]) == pytest.approx(1)
    assert exponent([64.0], [1.0]) is None


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.0, 1.02, 0.98, 1.01, 0.99, 1.0, 1.03, 0.97], "same"),
        ([1.2, 1.25, 1.18, 1.22, 1.3, 1.19, 1.21, 1.2], "slower"),
        ([0.8, 0.82, 0.79, 0.81, 0.8, 0.83, 0.78, 0.8], "faster"),
        # a neighbour in half of the rounds: the median is above, the lower quarter is not
        ([1.0, 1.01, 0.99, 1.0, 1.3, 1.5, 1.4, 1.6], "same"),
        # noise that is wide to both sides
        ([0.7, 1.4, 0.8, 1.3, 0.9, 1.2, 1.0, 1.1], "same"),
        ([1.5], "slower"),
    ],
)
def test_when_an_op_is_slower(ratios, expected, benchmarks):
    assert benchmarks("compare").verdict(ratios, 1.10) == expected


def op_times(package: Path) -> dict[str, float]:
    """What compare.py reads of a package."""
    command = [sys.executable, str(BENCHMARKS / "op_times.py"), str(package)]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    environment["SPANBERT_FAST_BENCH_TINY"] = "1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_op_times_gives_every_op():
    found = op_times(BENCHMARKS.parent)
    assert len(found) >= 14 and all(0 < seconds < 10 for seconds in found.values())


def test_op_times_leaves_out_what_a_package_has_not(tmp_path):
    shutil.copytree(BENCHMARKS.parent / "spanbert_fast", tmp_path / "spanbert_fast")
    (tmp_path / "spanbert_fast/ops/span_boundary_gather.py").unlink()
    found = {name.partition(",")[0] for name in op_times(tmp_path)}
    assert "bias_gelu" in found and "span_boundary_gather" not in found
