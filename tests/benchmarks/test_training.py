"""benchmarks/bench_training.py: its providers compute one thing, and a wrong one gets no ratio."""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import logging
import math
import os
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# in this order: each imports those before it
providers = load("training_providers")
check = load("training_check")
training_worker = load("training_worker")
load("timing")
load("ceilings")
work = load("training_work")
training_options = load("training_options")
bench = load("bench_training")

CASE = providers.Case(
    layers=1, seqlen=24, lengths=(24, 9, 17), dtype="bf16", hidden_size=64, vocab_size=150
)
CASE_FULL = dataclasses.replace(CASE, lengths=(24, 24))


@pytest.fixture(scope="module", autouse=True)
def no_trace():
    """pytest listens to it, and torch.compile then writes down all that it does."""
    trace = logging.getLogger("torch.__trace")
    level = trace.level
    trace.setLevel(logging.WARNING)
    yield
    trace.setLevel(level)


@pytest.fixture(scope="module")
def truth_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("truth") / "truth.pt"
    check.write_truth(CASE, path)
    return path


@pytest.fixture(scope="module")
def allowed(truth_file):
    return {
        dtype: check.allowed_errors(dataclasses.replace(CASE, dtype=dtype), truth_file)
        for dtype in ("bf16", "fp32")
    }


# tuning every product of a step takes minutes on a CPU, and the library's attention needs a GPU
HERE = [name for name in providers.PROVIDERS if name.split("-")[-1] not in ("autotune", "engine")]


@pytest.mark.parametrize("name", HERE)
def test_every_provider_is_right(name, truth_file, allowed, monkeypatch):
    # compiled ones are only traced: a C++ compiler takes minutes, and a benchmark checks its own
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m, mode: compiled(m, backend="aot_eager"))
    session = training_worker.Session(name, CASE, threads=torch.get_num_threads())
    found = session.check(truth_file)
    expected = {"mlm", "mlm + sbo"} if name in bench.WITH_SPANS else {"mlm"}
    assert set(found) == expected
    share, where = check.verdict(found, allowed["bf16"])
    assert share <= 1, where


# the compiled ones take the same step, and compiling them for it would take half a minute
@pytest.mark.parametrize("name", [name for name in HERE if "compiled" not in name])
def test_a_step_trains_every_parameter(name):
    session = training_worker.Session(name, CASE, threads=torch.get_num_threads())
    assert session.provider.model.training
    before = {n: p.detach().clone() for n, p in session.provider.model.named_parameters()}
    assert session.step() > 0
    for n, parameter in session.provider.model.named_parameters():
        assert torch.isfinite(parameter).all() and not torch.equal(before[n], parameter), n
        assert parameter.grad is None
    assert session.peak_memory() > 50


def test_what_a_gpu_captures_is_the_same_step():
    """But for its shapes, which depend on no data; the capture itself needs a GPU."""
    case = dataclasses.replace(CASE, dtype="fp32", dropout=0.0)
    session = training_worker.Session("ours", case, threads=torch.get_num_threads())
    filled, model = session.static_batch(), session.provider.model
    assert len(filled["cu_seqlens"]) > 4 and int(filled["num_tokens"]) == 50
    own, ours = model(**session.batch.packed).loss, model(**filled).loss
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["ours", "hf-sdpa-masked-rows", "reference"])
def test_fp32(name, truth_file, allowed):
    case = dataclasses.replace(CASE, dtype="fp32")
    session = training_worker.Session(name, case, threads=torch.get_num_threads())
    session.step()
    share, where = check.verdict(session.check(truth_file), allowed["fp32"])
    assert share <= 1, where


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("part", ["scale", "position", "boundary"])
def test_faults_are_found(monkeypatch, truth_file, allowed, dtype, part):
    provider = providers.PROVIDERS["ours"](dataclasses.replace(CASE, dropout=0.0))
    if part == "scale":
        attention = sys.modules["spanbert_fast.nn.attention"]
        right = attention.varlen_attention
        monkeypatch.setattr(
            attention, "varlen_attention", lambda q, *a, **k: right(q * 1.1, *a, **k)
        )
    elif part == "position":
        packing = sys.modules["spanbert_fast.nn.packing"].Packing
        right = packing.position_ids
        monkeypatch.setattr(packing, "position_ids", lambda self: right(self).roll(1))
    else:
        heads = sys.modules["spanbert_fast.nn.heads"]
        right = heads.span_boundary_gather
        monkeypatch.setattr(
            heads, "span_boundary_gather", lambda x, p, *a, **k: right(x, p.roll(1, 0), *a, **k)
        )
    case = dataclasses.replace(CASE, dtype=dtype)
    share, where = check.verdict(check.check_errors(provider, case, truth_file), allowed[dtype])
    assert share > 1, (share, where)


def test_missing_and_infinite_gradients_are_errors():
    truth = {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    found = check.errors({"a": torch.tensor([1.0, math.nan])}, truth)
    assert found == {"a": (math.inf, math.inf), "b": (math.inf, math.inf)}


def test_batch_is_the_same_text_padded_and_packed():
    batch = providers.Batch.of(CASE)
    padded, packed = batch.padded, batch.packed
    kept = padded["attention_mask"].bool()
    assert kept.sum(1).tolist() == list(CASE.lengths)
    assert torch.equal(padded["input_ids"][kept], packed["input_ids"])
    labels = padded["labels"][kept]
    assert torch.equal((labels != -100).nonzero().squeeze(1), packed["mlm_positions"])
    assert torch.equal(labels[packed["mlm_positions"]], packed["mlm_targets"])
    assert (padded["labels"][~kept] == -100).all()
    assert batch.tokens() == sum(CASE.lengths)
    full = providers.Batch.of(dataclasses.replace(CASE, lengths=(24, 24)))
    assert "attention_mask" not in full.padded and full.padded["input_ids"].shape == (2, 24)


def test_checked_case_is_a_part_of_it():
    case = dataclasses.replace(CASE, seqlen=512, lengths=tuple(range(300, 308)))
    assert check.case_to_check(case).lengths == (300, 304)
    assert check.case_to_check(case).dropout == 0
    assert check.case_to_check(CASE).lengths == CASE.lengths


def test_lengths_follow_the_documents():
    documents = ["one two", "one, two", "word " * 30, "word " * 500]
    # 4, 5, 32 and 502 tokens; at an eighth, three eighths, ... of the way
    assert providers.lengths_of(documents, 4, 64) == (4, 8, 28, 64)
    assert providers.lengths_of(["one"], 2, 64) == (3, 3)


class FakeWorker:
    """Stands for a process: known times, known errors."""

    seconds = {"ours": 0.5, "hf-eager": 2.0, "hf-sdpa": 1.5}
    wrong: set[str] = set()

    @classmethod
    @contextlib.contextmanager
    def open(cls, name, case, allocator, threads):
        def ask(method, *arguments):
            size = 9.0 if name in cls.wrong else 0.5
            answers = {
                "step": cls.seconds[name],
                "peak_memory": 100.0,
                "check": {"mlm": {"loss": (0.0, 0.0), "weight": (size, size)}},
            }
            if answers[method] is None:
                raise RuntimeError("no such instruction")
            return answers[method]

        yield ask


@pytest.fixture
def fake_run(monkeypatch, tmp_path, capsys):
    @contextlib.contextmanager
    def here(allocator, threads):
        def run(function, *arguments):
            if not arguments:  # of the ceilings
                rates = {"matrix product, bf16": 200.0, "matrix product, fp32": 100.0}
                return [{"what": name, "value": value} for name, value in rates.items()]
            return {"mlm": {"loss": (1.0, 1.0), "weight": (1.0, 1.0)}}

        yield run

    monkeypatch.setattr(bench, "worker", FakeWorker.open)
    monkeypatch.setattr(bench, "fresh_process", here)

    def run(*arguments: str) -> tuple[int, dict, str]:
        output = tmp_path / "out" / "training.json"
        options = ["--tiny", "--providers", "hf-eager", "hf-sdpa", "--output", str(output)]
        code = bench.main([*options, *arguments])
        return code, json.loads(output.read_text()), capsys.readouterr().out

    return run


def test_speedups_are_medians_of_pairs(fake_run):
    code, document, printed = fake_run("--rounds", "3", "--allocators", "default", "heap-kept")
    assert code == 0
    assert [r["allocator"] for r in document["results"]] == ["default", "heap-kept"]
    result = document["results"][0]
    assert result["speedups"]["hf-eager"] == {"median": 4.0, "low": 4.0, "high": 4.0}
    assert result["providers"]["ours"]["steps"] == 6
    batch = providers.Batch.of(bench.cases_of(options_of("--tiny"))[0])
    flops = work.product_flops(bench.cases_of(options_of("--tiny"))[0], batch, providers.BOTH)
    share = result["providers"]["ours"]["share_of_product"]
    assert share == pytest.approx(flops / 0.5 / 200e9)
    assert result["providers"]["hf-sdpa"]["tokens_per_second"] == 3 * 48 / 1.5
    assert "4.00 x" in printed and "3.00 x" in printed
    assert document["environment"]["cpu"]["model"]


@pytest.mark.parametrize("wrong, kept", [("hf-eager", ["hf-sdpa"]), ("ours", [])])
def test_a_wrong_provider_gets_no_ratio(fake_run, monkeypatch, wrong, kept):
    monkeypatch.setattr(FakeWorker, "wrong", {wrong})
    code, document, printed = fake_run()
    assert code == 1
    assert all(list(result["speedups"]) == kept for result in document["results"])
    assert "WRONG: mlm: weight" in printed


def test_a_provider_that_raises_does_not_stop_the_others(fake_run, monkeypatch):
    monkeypatch.setattr(FakeWorker, "seconds", {**FakeWorker.seconds, "hf-eager": None})
    code, document, printed = fake_run()
    assert code == 1
    assert list(document["results"][0]["speedups"]) == ["hf-sdpa"]
    assert "RuntimeError: no such instruction" in printed


def test_peers_that_there_is_no_time_for_are_named(fake_run, monkeypatch):
    """Every call of the clock is a second later: the first peer's end is past the limit."""
    clock = itertools.count()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    code, document, printed = fake_run("--allocators", "default", "--time-limit", "3")
    result = document["results"][0]
    assert code == 0 and list(result["speedups"]) == ["hf-eager"]
    assert result["not_measured"] == {"hf-sdpa": "the time was up"}
    assert "not measured: the time was up" in printed


def options_of(*arguments: str):
    return training_options.with_defaults(training_options.parser("").parse_args(arguments))


def test_a_gpus_defaults_fill_its_memory(monkeypatch):
    memory = types.SimpleNamespace(total_memory=139 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    options = options_of("--device", "cuda")
    found = {(c.layers, c.hidden_size, len(c.lengths), c.seqlen) for c in bench.cases_of(options)}
    assert found == {
        (n, w, b, s) for n, w in ((12, 768), (24, 1024)) for b, s in ((64, 512), (256, 128))
    }
    assert all(case.device == "cuda" for case in bench.cases_of(options))
    assert options.allocators == ["default"]
    assert options.providers[:3] == ["hf-sdpa-flash", "hf-sdpa-cudnn", "ours-eager"]
    assert work.gpu_shapes(79 << 30) == [(52, 512), (208, 128)]
    assert work.gpu_shapes(15 << 30) == [(8, 512), (32, 128)]
    assert options_of("--device", "cuda", "--quick").providers == options.providers[:3]


def test_the_work_of_a_step():
    """Counted by torch on Hugging Face's encoder: what is there beside it is the heads' own."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    case = dataclasses.replace(CASE, lengths=(24, 24), layers=2)
    batch = providers.Batch.of(case)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 256}
    config = BertConfig(**sizes, num_attention_heads=1, attn_implementation="eager")
    encoder = BertModel(config, add_pooling_layer=False)
    ids = batch.padded["input_ids"]
    with FlopCounterMode(display=False) as counter:
        encoder(ids)
    rows, targets = len(batch.packed["mlm_targets"]), len(batch.packed["sbo_targets"])
    spans = len(batch.packed["span_boundaries"])
    masked_lm = rows * 2 * 64 * (64 + 150)
    expected = 3 * (counter.get_total_flops() + masked_lm)
    assert work.product_flops(case, batch, providers.MLM) == expected
    more = 3 * (targets * 2 * 64 * (64 + 150) + spans * 4 * 64**2)
    assert work.product_flops(case, batch, providers.BOTH) == expected + more


def test_transformer_engines_attention_is_put_in(monkeypatch, truth_file, allowed):
    """With a stand-in for the library: layouts, and which modules train."""
    seen = []

    class DotProductAttention(torch.nn.Module):
        def __init__(self, heads, width, attention_dropout, qkv_format, attn_mask_type):
            super().__init__()
            assert (qkv_format, attn_mask_type) == ("bshd", "no_mask")
            self.dropout = attention_dropout

        def forward(self, q, k, v):
            seen.append(self.training)
            heads_first = (t.transpose(1, 2) for t in (q, k, v))
            p = self.dropout * self.training
            out = torch.nn.functional.scaled_dot_product_attention(*heads_first, dropout_p=p)
            return out.transpose(1, 2).flatten(2)

    name = "hf-transformer-engine"
    assert not providers.installed(name) and providers.installed("hf-sdpa")
    module = types.ModuleType("transformer_engine.pytorch")
    module.DotProductAttention = DotProductAttention
    monkeypatch.setitem(sys.modules, "transformer_engine", types.ModuleType("transformer_engine"))
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", module)
    assert providers.installed(name)
    session = training_worker.Session(name, CASE_FULL, threads=torch.get_num_threads())
    session.step()
    assert seen == [True]
    path = truth_file.with_name("full.pt")
    check.write_truth(CASE_FULL, path)
    found = session.check(path)
    share, where = check.verdict(found, check.allowed_errors(CASE_FULL, path))
    assert share <= 1, where
    assert seen == [True, False]
    with pytest.raises(ValueError, match="lengths must be equal"):
        session.loss(providers.Batch.of(CASE))


def test_layers_have_a_width():
    options = options_of("--layers", "12", "24x1024")
    assert [(c.layers, c.hidden_size) for c in bench.cases_of(options)] == [(12, 768), (24, 1024)]


def test_a_batch_of_given_words():
    words = torch.arange(50) + 60
    batch = providers.Batch.of(CASE, seed=3, words=words)
    ids = words.clone()
    ids[[0, 24, 33]], ids[[23, 32, 49]] = providers.CLS, providers.SEP
    masked = batch.packed["mlm_positions"]
    assert torch.equal(batch.packed["mlm_targets"], ids[masked])
    untouched = torch.ones(50, dtype=torch.bool)
    untouched[masked] = False
    assert torch.equal(batch.packed["input_ids"][untouched], ids[untouched])
    assert words[0] == 60, "the words are the caller's"


@pytest.mark.parametrize(
    "option, message",
    [
        (["--layers", "12x100"], "must be like 12 or 24x1024, got '12x100'"),
        (["--layers", "x"], "must be like 12 or 24x1024, got 'x'"),
        (["--shapes", "8by512"], "must be like 8x512, got '8by512'"),
        (["--shapes", "0x512"], "must be like 8x512, got '0x512'"),
        (["--rounds", "0"], "must be a whole number from 1 on, got '0'"),
    ],
)
def test_bad_options_are_refused(capsys, option, message):
    with pytest.raises(SystemExit) as stopped:
        options_of(*option)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("allocator", ["default", "heap-kept"])
def test_workers_get_their_allocator_and_leave_no_trace(allocator, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    before = dict(os.environ)
    with training_worker.fresh_process(allocator, threads=1) as run:
        expected = "0" if allocator == "heap-kept" else None
        assert run(os.getenv, "MALLOC_MMAP_MAX_") == expected
        assert run(os.getenv, "OMP_NUM_THREADS") == "1"
        assert run(os.getpid) != os.getpid()
    assert dict(os.environ) == before
