"""When an op counts as slower, and than what."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


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


@pytest.mark.parametrize(
    ("of_file", "expected"), [(10.0, "same"), (5.0, "slower"), (40.0, "faster"), (None, "new")]
)
def test_a_results_file_as_the_base(tmp_path, benchmarks, monkeypatch, capsys, of_file, expected):
    """The suite's process is replaced by figures: median 10.5 ms, half of them 10 to 11."""
    form, compare = benchmarks("results_format"), benchmarks("compare")

    def write(path: Path, median: float, low: float, high: float, width: int) -> None:
        ours = {"median_ms": median, "low_ms": low, "high_ms": high}
        record = {"op": "padding", "case": "c", "threads": 1, "shape": {"width": width}}
        late = {"op": "padding", "case": "d", "threads": 1, "not_measured": "the time was up"}
        results = [record | {"providers": {"ours": ours}}, late]
        form.write_document(path, form.document("ops", 1, results))

    def run(command, **options):
        write(Path(command[command.index("--output") + 1]), 10.5, 10.0, 11.0, 8)
        return subprocess.CompletedProcess(command, 0)

    base = tmp_path / "base.json"
    write(base, of_file or 10.5, 9.0, 11.0, 8 if of_file else 16)
    monkeypatch.setattr(compare, "subprocess", types.SimpleNamespace(run=run, DEVNULL=None))
    assert compare.main([str(base)]) == (expected == "slower")
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].split()[-1] == expected and "not interleaved" in printed


def test_a_file_that_is_no_op_suite_is_refused(tmp_path, benchmarks):
    form, path = benchmarks("results_format"), tmp_path / "x.json"
    form.write_document(path, form.document("training", 1, []))
    with pytest.raises(SystemExit, match="x.json: must be a file of the op suite"):
        benchmarks("compare").main([str(path)])


def test_op_times_measures_another_copy_of_the_package(tmp_path):
    """Its ops, those that it has, and its kernels: the installed copy's would be found otherwise,
    and compare.py would measure one code as base and as head."""
    for name in ("spanbert_fast", "kernels"):
        shutil.copytree(BENCHMARKS.parent / name, tmp_path / name)
    (tmp_path / "spanbert_fast/ops/span_boundary_gather.py").unlink()
    script = [f"import sys; sys.argv[1:] = [{str(tmp_path)!r}]"]
    script += [f"sys.path.append({str(BENCHMARKS)!r})", "import op_times; op_times.main()"]
    script += [
        "from spanbert_fast.kernels import padding",
        "from spanbert_fast.ops import bias_gelu",
    ]
    script += ["print(padding.__file__, bias_gelu.__file__)"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "SPANBERT_FAST_BENCH_TINY": "1"}
    command = [sys.executable, "-c", "\n".join(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    times, files = done.stdout.splitlines()
    own = ("kernels/padding.py", "spanbert_fast/ops/bias_gelu.py")
    assert files.split() == [str(tmp_path / path) for path in own]
    found = json.loads(times)
    assert len(found) >= 12 and all(0 < seconds < 10 for seconds in found.values())
    ops = {name.partition(",")[0] for name in found}
    assert "varlen_attention" in ops and "span_boundary_gather" not in ops
