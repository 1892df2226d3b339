"""bench_finetuning.py runs, on made-up data and a small model, and does not time what is wrong."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spanbert_fast.data.tokenizer import train_wordpiece
from spanbert_fast.models import SpanBertConfig, SpanBertForPreTraining

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SENTENCES = ["Ann/B-PER met/O Bob/B-PER", "rain/O in/O New/B-LOC York/I-LOC", "they/O ran/O home/O"]


@pytest.fixture
def data(tmp_path) -> Path:
    """The files of wnut17 and of sentence_polarity, and a model."""
    rows = ["\n".join(word.replace("/", "\t") for word in s.split()) for s in SENTENCES * 8]
    for name in ("wnut17/train.conll", "wnut17/dev.conll"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n\n".join(rows) + "\n")
    (tmp_path / "sentence_polarity").mkdir()
    for label, text in (("pos", "a fine film"), ("neg", "a dull and long film")):
        lines = [f"{text} {i}" for i in range(30)]
        (tmp_path / f"sentence_polarity/rt-polarity.{label}").write_text("\n".join(lines) + "\n")
    words = " ".join(SENTENCES).replace("/", " ") + " a fine film dull and long 0123456789"
    tokenizer = train_wordpiece([words] * 2, 120)
    config = SpanBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    SpanBertForPreTraining(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def test_measures_and_writes(data):
    output = data / "results.json"
    command = [sys.executable, str(BENCHMARKS / "bench_finetuning.py"), "--data", str(data)]
    command += ["--model", str(data / "model"), "--cases", "wnut17", "sentence_polarity"]
    command += ["--pairs", "1", "--threads", "1", "--full", "--epochs", "1"]
    command += ["--max-train", "8", "--max-dev", "8"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output", str(output)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    records = json.loads(output.read_text())["results"]
    assert [r["case"] for r in records] == ["wnut17", "sentence_polarity"]
    for record in records:
        assert record["largest_loss_difference"] < 0.02 and record["speed_up"] > 0
        assert set(record["runs"]) == {"spanbert_fast", "transformers"}
        assert f"{record['speed_up']:.2f} x" in done.stdout


def test_losses_that_differ_are_not_timed(data, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = importlib.import_module("bench_finetuning")
    from spanbert_fast.data.tokenizer import load_tokenizer
    from spanbert_fast.training.finetuning.options import FinetuneOptions

    train = str(data / "wnut17/train.conll")
    options = FinetuneOptions("ner", str(data / "model"), train, train, str(data / "run"))
    task = options.make_task()
    examples = bench.read_all(task, options)["train"]
    tokenizer = load_tokenizer(options.model)
    dataset = bench.WindowDataset(task, examples, tokenizer)
    assert bench.check_losses(options, task, tokenizer, dataset) < 0.02
    step = bench.Side.step

    def wrong(self, windows):
        loss, seconds = step(self, windows)
        return (1.5 * loss if self.ours else loss), seconds

    monkeypatch.setattr(bench.Side, "step", wrong)
    with pytest.raises(ValueError, match="losses differ by"):
        bench.check_losses(options, task, tokenizer, dataset)
