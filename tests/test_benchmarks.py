"""The benchmarks run, at tiny shapes; their checks, reports and decisions."""

import dataclasses
import importlib
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from spanbert_fast._extension import _C
from spanbert_fast.ops._common import runs_reference

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
needs_extension = pytest.mark.skipif(_C is None, reason="the ops' benchmarks compare the extension")


@pytest.fixture(scope="module")
def benchmarks():
    """Imports a module of the benchmarks' folder; tiny shapes, this process's threads kept."""
    sys.path.append(str(BENCHMARKS))
    threads, flag = torch.get_num_threads(), importlib.import_module("op_case")
    before, flag.TINY = flag.TINY, True
    # pytest listens to it, and torch.compile then writes down all that it does
    trace = logging.getLogger("torch.__trace")
    level = trace.level
    trace.setLevel(logging.WARNING)
    yield importlib.import_module
    trace.setLevel(level)
    flag.TINY = before
    torch.set_num_threads(threads)
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(autouse=True)
def short_text(monkeypatch, corpus_file):
    """The embedded corpus takes seconds to read."""
    from spanbert_fast.data import embedded

    documents = corpus_file.read_text().split("\n\n")
    monkeypatch.setattr(embedded, "embedded_documents", lambda: documents)


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
    options = ["-q", "-p", "no:cacheprovider", "-k", "pad and forward-2", "--benchmark-only"]
    options += ["--benchmark-enable", f"--benchmark-json={raw}"]
    assert pytest.main([str(BENCHMARKS), *options]) == 0
    measured = json.loads(raw.read_text())["benchmarks"]
    assert {b["extra_info"]["op"] for b in measured} == {"pad"}
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


def test_the_gpus_clock(benchmarks, monkeypatch):
    """The caches are overwritten and the GPU kept busy before a call; its time is the events'."""
    timing, done = benchmarks("timing"), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("event")

        def elapsed_time(self, end):
            return 250.0  # milliseconds

    def scratch(size, dtype, device):
        assert size >= 2 * 50_000_000 and device == "cuda"
        return types.SimpleNamespace(zero_=lambda: done.append("zeros"))

    cuda = types.SimpleNamespace(
        Event=Event,
        get_device_properties=lambda i: types.SimpleNamespace(L2_cache_size=50_000_000),
        _sleep=lambda cycles: done.append("sleep"),
        synchronize=lambda: done.append("wait"),
        memory_allocated=lambda: 3 * 2**20,
        max_memory_allocated=lambda: 8 * 2**20,
        reset_peak_memory_stats=lambda: done.append("reset"),
    )
    fake = types.SimpleNamespace(cuda=cuda, empty=scratch, uint8=torch.uint8)
    monkeypatch.setattr(timing, "torch", fake)
    clock = timing.clock_of("cuda")
    assert clock.seconds(lambda: done.append("call")) == 0.25
    assert done == ["zeros", "sleep", "event", "call", "event", "wait"]
    assert clock.peak_mb(lambda: None) == 5


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
    code, results = run_ops(benchmarks, tmp_path, "--ops", "bias_gelu", "pad")
    assert code == 1
    assert {r["op"]: bool(r["speedups"]) for r in results} == {"bias_gelu": False, "pad": True}
    assert "bias_gelu bf16-forward+backward: ours is wrong" in capsys.readouterr().err
    assert "ours is wrong" in benchmarks("report").report(tmp_path).read_text()


def test_a_peer_that_is_wrong_or_raises_gets_no_ratio(tmp_path, benchmarks, monkeypatch):
    cases, make = benchmarks("op_case"), benchmarks("bench_pad").case

    def refuse(x):
        raise ValueError("only even sizes\nand more")

    def case(*arguments):
        found = make(*arguments)
        right = found.providers["PyTorch"].function
        found.providers["wrong"] = cases.Provider(lambda x: right(x).nan_to_num() * 1.5)
        found.providers["refuses"] = cases.Provider(refuse)
        return dataclasses.replace(found, not_installed=["flash-attn-9"])

    monkeypatch.setattr(benchmarks("bench_pad"), "case", case)
    code, results = run_ops(benchmarks, tmp_path, "--ops", "pad")
    assert code == 0
    for record in results:
        assert "PyTorch" in record["speedups"]
        assert not {"wrong", "refuses"} & set(record["speedups"])
        assert record["providers"]["refuses"]["raised"] == "ValueError: only even sizes"
    text = benchmarks("report").report(tmp_path).read_text()
    for part in ("wrong wrong", "refuses refuses", "flash-attn-9: not installed"):
        assert part in text


def test_an_op_that_raises_does_not_stop_the_others(tmp_path, benchmarks, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks("bench_pad"), "case", None)
    code, results = run_ops(benchmarks, tmp_path, "--ops", "pad", "bias_gelu")
    assert code == 1
    assert all(("raised" in r) == (r["op"] == "pad") for r in results)
    assert "pad bf16, unpad-forward+backward: TypeError" in capsys.readouterr().err


def test_what_there_is_no_time_for_is_named(tmp_path, benchmarks):
    code, results = run_ops(benchmarks, tmp_path, "--ops", "pad", "--budget", "0")
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


class FakeClock:
    """Gives the seconds it was told, for ever."""

    def __init__(self, *seconds: float):
        self.seconds_of = seconds
        self.calls = 0

    def seconds(self, call) -> float:
        self.calls += 1
        return self.seconds_of[self.calls % len(self.seconds_of)]


@pytest.mark.parametrize(
    ("clock", "budget", "rounds"),
    [
        (FakeClock(1.0), 60, 3),  # as steady as can be
        (FakeClock(1.0, 2.0, 3.0), 60, 8),  # never settles
        (FakeClock(1.0, 2.0, 3.0), 0, 3),  # no time
    ],
)
def test_rounds_end_when_they_have_settled(clock, budget, rounds, benchmarks):
    calls = {"ours": lambda: None, "peer": lambda: None}
    found = benchmarks("timing").interleaved(calls, clock, budget, least=3, most=8)
    assert {name: len(times) for name, times in found.items()} == {"ours": rounds, "peer": rounds}


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


def test_without_a_gpu_there_is_one_line(benchmarks, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmarks("run").main(["--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("run.py: --device cuda needs an NVIDIA GPU") and error.count("\n") == 1


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


def test_a_gpu_has_its_own_folder_and_section(tmp_path, benchmarks, monkeypatch):
    form, env = benchmarks("results_format"), importlib.import_module("spanbert_fast.commands.env")
    here = env.environment()
    gpu = {**here, "gpus": ["NVIDIA H100 80GB HBM3, sm_90, 80 GiB"]}
    monkeypatch.setattr(env, "environment", lambda: gpu)
    name = form.machine_name("cuda")
    assert name.startswith("nvidia-h100-80gb-hbm3-20")
    checked = [
        {"op": "pad", "case": "bf16-forward", "providers": {"ours": {"passed": True}}},
        {"op": "bias_gelu", "case": "bf16-forward", "providers": {"ours": {"passed": False}}},
        {"op": "all", "case": "compute-sanitizer memcheck", "not_measured": "no time"},
    ]
    form.write_document(tmp_path / name / "check.json", form.document("check", 1, checked, "cuda"))
    text = benchmarks("report").report(tmp_path).read_text()
    of_gpus = text[text.index("## GPUs") :]
    for part in (
        name,
        "NVIDIA H100",
        "| pad bf16-forward | passed |",
        "| ours is wrong |",
        "no time",
    ):
        assert part in of_gpus


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
        "not_measured": {"reference": "the time was up"},
        "speedups": {"hf-sdpa": {"median": 3.125, "low": 3.0, "high": 3.2}},
    }  # fmt: skip
    tuning = {"case": "wnut17", "metric": "f1", "speed_up": 2.5, "peer": "transformers eager"}
    run = {"spanbert_fast": {"dev": {"f1": 50.25}, "seconds": 10.0}}
    run["transformers"] = {"dev": {"f1": 49.5}, "seconds": 30.0}
    form = benchmarks("results_format")
    for name, results in (("training", [training]), ("finetuning", [{**tuning, "runs": run}])):
        form.write_document(folder / f"{name}.json", form.document(name, 2, results))
    text = benchmarks("report").report(tmp_path).read_text()
    figures = ("3.12", "failed", "300", "50.25", "49.50", "2.50 (transformers eager)")
    for figure in (*figures, "not measured: the time was up"):
        assert figure in text
    pictures = {p.name.removeprefix("machine-") for p in tmp_path.glob("*.png")}
    assert pictures == {"training.png", "memory.png", "finetuning.png"}


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


@pytest.mark.parametrize(
    ("of_file", "expected"), [(10.0, "same"), (5.0, "slower"), (40.0, "faster"), (None, "new")]
)
def test_a_results_file_as_the_base(tmp_path, benchmarks, monkeypatch, capsys, of_file, expected):
    """The suite's process is replaced by figures: median 10.5 ms, half of them 10 to 11."""
    form, compare = benchmarks("results_format"), benchmarks("compare")

    def write(path: Path, median: float, low: float, high: float, width: int) -> None:
        ours = {"median_ms": median, "low_ms": low, "high_ms": high}
        record = {"op": "pad", "case": "c", "threads": 1, "shape": {"width": width}}
        late = {"op": "pad", "case": "d", "threads": 1, "not_measured": "the time was up"}
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
    script += ["from spanbert_fast.kernels import pad", "from spanbert_fast.ops import bias_gelu"]
    script += ["print(pad.__file__, bias_gelu.__file__)"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "SPANBERT_FAST_BENCH_TINY": "1"}
    command = [sys.executable, "-c", "\n".join(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    times, files = done.stdout.splitlines()
    own = ("kernels/pad.py", "spanbert_fast/ops/bias_gelu.py")
    assert files.split() == [str(tmp_path / path) for path in own]
    found = json.loads(times)
    assert len(found) >= 12 and all(0 < seconds < 10 for seconds in found.values())
    ops = {name.partition(",")[0] for name in found}
    assert "varlen_attention" in ops and "span_boundary_gather" not in ops
