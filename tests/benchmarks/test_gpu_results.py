"""What gpu_check.py has found on somebody's GPU, taken into the results and drawn."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "gpus": ["NVIDIA X1"],
    "cpu": {"model": "m", "cores": 16, "isa_level": "i"},
    "libraries": {"torch": "2.11.0"},
}
DOCUMENT = {"commit": None, "threads": 1, "device": "cuda", "environment": ENVIRONMENT}


def training(layers: int) -> dict:
    figures = {"passed": True, "median_ms": 10.0, "tokens_per_second": 5.0, "peak_rss_mb": 7.0}
    case = {"layers": layers, "hidden_size": 64, "seqlen": 8, "lengths": [8], "tokens": 8}
    case |= {"dtype": "bf16", "dropout": 0.1, "allocator": "default", "speedups": {}}
    case |= {"providers": {"ours": figures | {"share_of_product": 0.25}}}
    return DOCUMENT | {"benchmark": "training", "results": [case]}


@pytest.fixture
def content() -> dict:
    rates = [{"what": "copy", "value": 4300.0, "unit": "GB/s"}]
    steps = [
        {"name": "build", "part": 1, "outcome": "failed: exit code 1", "seconds": 3.5},
        {"name": "ceilings", "part": 2, "outcome": "passed", "seconds": 4.5},
    ]
    return {
        **DOCUMENT,
        "benchmark": "gpu_check",
        "environment": {},  # its step has failed
        "gpu": "NVIDIA X1",
        "date": "2030-01-02",
        "results": [step | {"printed": ""} for step in steps],
        "documents": {
            "ceilings": DOCUMENT | {"benchmark": "ceilings", "results": rates},
            "training": training(24),
            "training_base": training(12),
            "training_tuned": training(24),
        },
        "tuned": [{"kernel": "pad", "chip": 90, "facts": {}}],
    }


def test_results_are_unpacked_and_drawn(benchmarks, content, tmp_path, monkeypatch):
    check, written = benchmarks("gpu_check"), []
    monkeypatch.setattr(check, "write_rows", lambda *arguments: written.append(arguments))
    path, results = tmp_path / "gpu_check.json", tmp_path / "results"
    path.write_text(json.dumps(content))
    check.unpack(path, results)
    assert written == [(ROOT / "kernels/tuned.json", content["tuned"])]
    assert os.listdir(results) == ["nvidia-x1-2030-01-02"]
    folder = results / "nvidia-x1-2030-01-02"
    names = {"gpu_check", "ceilings", "training", "training_tuned"}
    assert {file.stem for file in folder.iterdir()} == names
    found = json.loads((folder / "training.json").read_text())["results"]
    assert [case["layers"] for case in found] == [24, 12]
    report = benchmarks("report").report(results).read_text()
    assert "4300.0 GB/s" in report and "| build | failed: exit code 1 | 3.5 |" in report
    assert report.count("| 24 x 64, 1 x 8, 100% real") == 2, "as it is, and tuned"
    assert "| ours | 10 | 5 | 25% | 7 |" in report
    pictures = {picture.name for picture in results.glob("*.png")}
    assert {f"{folder.name}-memory.png", f"{folder.name}-memory_tuned.png"} <= pictures


def test_a_check_that_found_nothing_is_refused(benchmarks, content, tmp_path):
    path = tmp_path / "gpu_check.json"
    path.write_text(json.dumps(content | {"documents": {}}))
    with pytest.raises(SystemExit, match="says nothing of its machine"):
        benchmarks("gpu_check").unpack(path, tmp_path / "results")
    assert not (tmp_path / "results").exists()
