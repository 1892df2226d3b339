"""Pre-training on batches of fixed sizes: the same run, one compilation, and a captured step."""

import itertools
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import spanbert_fast as sb
from spanbert_fast.cli import main
from spanbert_fast.data.static_shapes import StaticShapes
from spanbert_fast.errors import UsageError
from spanbert_fast.training.captured_step import check_alike
from spanbert_fast.training.pretraining import pretrain as pretraining
from spanbert_fast.training.pretraining import trainer
from spanbert_fast.training.pretraining.arguments import check_device

EXACT = ("step", "masked_tokens", "spans", "learning_rate", "tokens_per_second")
ROUNDED = ("mlm_loss", "sbo_loss", "grad_norm")


@pytest.fixture
def train(tmp_path, corpus_file, small_run):
    """A function that trains a small model into tmp_path / name, and returns its metrics."""

    def start(name, *options, data=corpus_file):
        given = ["--data", data, *small_run, "--learning-rate", "5e-3", *options]
        assert main(["pretrain", "--output-dir", str(tmp_path / name), *map(str, given)]) == 0
        return metrics(tmp_path / name)

    return start


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that advances a second whenever the trainer reads it: speeds are token counts."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(trainer, "time", clock)


@pytest.fixture
def seen(monkeypatch):
    """The shapes of each training batch."""
    forward, batches = sb.SpanBertForPreTraining.forward, []

    def spy(self, **batch):
        if self.training:
            shapes = {k: tuple(v.shape) if torch.is_tensor(v) else v for k, v in batch.items()}
            batches.append(shapes)
        return forward(self, **batch)

    monkeypatch.setattr(sb.SpanBertForPreTraining, "forward", spy)
    return batches


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_same_run(train, seen, monkeypatch):
    """With dropout, losses are equal up to rounding; counts and speed count real tokens only."""
    options = ["--max-steps", 6, "--save-steps", 6, "--gradient-accumulation-steps", 2]
    plain, shapes = train("plain", *options), seen[:]
    seen.clear()
    filled_here = []
    monkeypatch.setattr(StaticShapes, "fill", note_of_calls(filled_here))
    static = train("static", *options, "--static-shapes", "--num-workers", 1)
    assert not filled_here, "batches are filled in the loader's process"
    assert len(seen) == len(shapes) == 12
    assert all(batch == seen[0] for batch in seen)
    assert seen[0]["input_ids"] == (256,) and seen[0]["max_seqlen"] == 48
    assert len({batch["input_ids"] for batch in shapes}) > 1
    tokens = [sum(b["input_ids"][0] for b in shapes[2 * k : 2 * k + 2]) for k in range(6)]
    assert [line["tokens_per_second"] for line in static[1:]] == tokens[1:]
    for ours, theirs in zip(static, plain, strict=True):
        assert [ours[name] for name in EXACT] == [theirs[name] for name in EXACT]
        for name in ROUNDED:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), (ours["step"], name)


def note_of_calls(calls):
    fill = StaticShapes.fill

    def noted(self, *args):
        calls.append(self)
        return fill(self, *args)

    return noted


def test_a_run_resumes_with_its_shapes_bit_for_bit(train, seen, tmp_path):
    run = tmp_path / "run"
    lines = train("run", "--static-shapes", "--max-steps", 4, "--save-steps", 2)
    weights = load_file(run / "model" / "model.safetensors")
    assert json.loads((run / "options.json").read_text())["static_shapes"] is True
    shutil.rmtree(run / "checkpoint-4")
    assert main(["pretrain", "--output-dir", str(run), "--resume"]) == 0
    for ours, whole in zip(metrics(run), lines, strict=True):
        assert {**ours, "tokens_per_second": None} == {**whole, "tokens_per_second": None}
    assert len(seen) == 6 and all(batch == seen[0] for batch in seen)
    for name, tensor in load_file(run / "model" / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name


def test_batches_of_short_texts_have_few_sequences(train, seen, tmp_path):
    """A batch has no more sequences than its shape has room for, even if the token budget allows
    more."""
    words = "river mountain teacher garden letter winter island engine captain market".split()
    text = tmp_path / "short.txt"
    text.write_text("\n\n".join(f"{a} {b}" for a in words for b in words for _ in range(3)))
    train("plain", "--max-steps", 2, "--vocab-size", 100, data=text)
    most = StaticShapes.of(256, 48).max_sequences
    assert max(batch["cu_seqlens"][0] - 1 for batch in seen) > most
    seen.clear()
    train("static", "--max-steps", 2, "--vocab-size", 100, "--static-shapes", data=text)
    assert [batch["cu_seqlens"] for batch in seen] == [(most + 6 + 1,)] * 2


def test_one_compilation(train):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = ["--set", "torch_compile=true", "--set", "torch_compile_backend=aot_eager"]
    lines = train("run", "--static-shapes", "--max-steps", 3, *compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()
    plain = train("plain", "--max-steps", 3)
    for ours, theirs in zip(lines, plain, strict=True):
        assert ours["mlm_loss"] == pytest.approx(theirs["mlm_loss"], rel=1e-5)


# The captured step


CANNOT = [
    ([], "--cuda-graph needs --static-shapes, got it alone"),
    (["--static-shapes", "--set", "use_cpu=true"], "--cuda-graph needs a CUDA device, got cpu"),
    (
        ["--static-shapes", "--precision", "fp16"],
        "--precision must be auto, fp32 or bf16 with --cuda-graph, got fp16",
    ),
    (
        ["--static-shapes", "--gradient-accumulation-steps", "2"],
        "--gradient-accumulation-steps must be 1 with --cuda-graph, got 2",
    ),
    (
        ["--static-shapes", "--set", "fsdp=true"],
        "--set fsdp cannot be given with --cuda-graph, got True",
    ),
    (
        ["--static-shapes", "--set", "gradient_checkpointing=true"],
        "--set gradient_checkpointing cannot be given with --cuda-graph, got True",
    ),
]


@pytest.mark.parametrize(("options", "message"), CANNOT, ids=[" ".join(o) for o, _ in CANNOT])
def test_what_cannot_be_a_cuda_graph(options, message, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["pretrain", "--output-dir", str(run), "--cuda-graph", *options]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(message)
    assert not run.exists()


def test_several_processes_cannot_be_one_graph():
    arguments = SimpleNamespace(world_size=2, device=torch.device("cuda"))
    with pytest.raises(UsageError, match="--cuda-graph needs a single process, got 2"):
        check_device(arguments)


def test_a_resumed_run_keeps_its_shapes(trained_model, capsys):
    resume = ["pretrain", "--output-dir", str(trained_model.parent), "--resume"]
    assert main([*resume, "--static-shapes"]) == 2
    assert "--static-shapes True differs from the run's False" in capsys.readouterr().err


class Uncaptured:
    """A stand-in for CapturedStep that runs a replay's work op by op."""

    made = 0

    def __init__(self, model, optimizer, batch):
        assert model.training and optimizer is None
        self.model, self.first = model, batch
        Uncaptured.made += 1

    def __call__(self, batch):
        check_alike(batch, self.first)
        assert all(parameter.grad is None for parameter in self.model.parameters())
        outputs = self.model(**batch)
        outputs.loss.backward()
        return {name: x.detach() for name, x in outputs.items() if torch.is_tensor(x)}


def test_a_run_by_captured_steps_is_the_same(train, monkeypatch, tmp_path):
    options = ["--static-shapes", "--max-steps", 4, "--eval-steps", 2, "--set", "use_cpu=true"]
    expected = train("plain", *options)
    monkeypatch.setattr(pretraining, "CapturedStep", Uncaptured)
    monkeypatch.setattr(pretraining, "check_device", lambda arguments: None)
    monkeypatch.setattr(Uncaptured, "made", 0)
    assert train("captured", *options, "--cuda-graph") == expected
    assert Uncaptured.made == 1
    ours, theirs = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("captured", "plain")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
