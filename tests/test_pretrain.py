"""`spanbert-fast pretrain` end to end: files, exact resume, several processes, failures."""

import json
import logging
import resource
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer, BertForMaskedLM, TrainingArguments

import spanbert_fast as sb
from spanbert_fast.cli import main
from spanbert_fast.data.tokenizer import train_wordpiece
from spanbert_fast.training.checkpoints import checkpoints
from spanbert_fast.training.pretraining.options import PretrainOptions
from spanbert_fast.training.pretraining.pretrain import training_arguments
from spanbert_fast.training.pretraining.trainer import SpanPretrainingTrainer

FIELDS = {
    "step",
    "mlm_loss",
    "sbo_loss",
    "learning_rate",
    "tokens_per_second",
    "masked_tokens",
    "spans",
}
TRAJECTORY = tuple(sorted(FIELDS - {"tokens_per_second"} | {"grad_norm"}))


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def trajectory(run):
    return [[line[name] for name in TRAJECTORY] for line in metrics(run)]


def finish(process, code=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return out, err


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus_file, small_run, command):
    """An uninterrupted run of 60 steps, with checkpoints after 20, 40 and 60."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    process = command(
        "pretrain", "--data", corpus_file, "--output-dir", run, *small_run,
        "--max-steps", 60, "--save-steps", 20, "--save-total-limit", 3, "--learning-rate", 5e-3,
    )  # fmt: skip
    out, err = finish(process)
    return run, out, err


def test_a_run_leaves_what_it_should(finished):
    run, out, err = finished
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert all(set(line) >= FIELDS for line in lines)
    assert [path.name for path in checkpoints(run)] == [f"checkpoint-{n}" for n in (20, 40, 60)]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    written = EventAccumulator(str(run / "tensorboard")).Reload()
    assert len(written.Scalars("train/mlm_loss")) == 60
    known = {"loss.png", "metrics.jsonl", "model", "options.json", "shards", "summary.json"}
    others = {path.name for path in run.iterdir()} - known
    assert others == {"tensorboard", *(path.name for path in checkpoints(run))}
    summary = json.loads((run / "summary.json").read_text())
    before, after = summary["held_out_before"], summary["held_out_after"]
    assert before["mlm_count"] == after["mlm_count"] > 50
    assert after["mlm_loss"] < summary["unigram_cross_entropy"] < before["mlm_loss"]
    assert after["sbo_loss"] < 0.8 * before["sbo_loss"]
    assert "[MASK] [MASK]" in summary["example"]["masked"]
    assert "[MASK]" not in summary["example"]["filled"]
    card = (run / "model" / "README.md").read_text()
    tokens = sum(line["tokens"] for line in lines)
    assert f"It saw {tokens:,}\nword pieces in 60 steps" in card and "| seed | 3 |" in card
    assert (run / "model" / "span_boundary.safetensors").is_file()
    for text in ("masked-LM loss", "unigram model", "tokens/s", "filled:", str(run / "model")):
        assert text in out
    assert "Traceback" not in err


def test_the_checkpoint_loads_in_stock_transformers(finished):
    run = finished[0]
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    stock = BertForMaskedLM.from_pretrained(run / "model").eval()
    ours = sb.SpanBertForMaskedLM.from_pretrained(run / "model").eval()
    batch = tokenizer("The river [MASK] the garden.", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            ours(**batch).logits, stock(**batch).logits, rtol=1e-4, atol=1e-4
        )


def test_killed_and_resumed_equals_uninterrupted(
    finished, tmp_path, corpus_file, small_run, command, one_thread
):
    whole, run = finished[0], tmp_path / "killed"
    options = [
        "--data", corpus_file, "--output-dir", run, *small_run,
        "--max-steps", 60, "--save-steps", 20, "--save-total-limit", 3, "--learning-rate", 5e-3,
    ]  # fmt: skip
    process = command("pretrain", *options)
    deadline = time.monotonic() + 120
    while len(checkpoints(run)) < 1 or len(metrics(run)) < 23:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    assert len(metrics(run)) < 60, "it was killed in mid-run"
    # a kill during a checkpoint leaves this
    half = run / "unfinished" / "checkpoint-40"
    half.mkdir(parents=True, exist_ok=True)
    (half / "model.safetensors").write_bytes(b"half")

    assert main(["pretrain", "--output-dir", str(run), "--resume"]) == 0
    assert trajectory(run) == trajectory(whole)
    for name, tensor in load_file(whole / "model" / "model.safetensors").items():
        assert torch.equal(tensor, load_file(run / "model" / "model.safetensors")[name]), name
    assert (
        json.loads((run / "summary.json").read_text())["held_out_after"]
        == (json.loads((whole / "summary.json").read_text())["held_out_after"])
    )
    assert not (run / "unfinished").exists()


def test_two_processes_equal_one_with_the_same_global_batch(
    tmp_path, corpus_file, small_run, command, one_thread
):
    """DistributedDataParallel and FSDP over gloo, with dropout."""
    sharded = ["--set", "fsdp=true", "--set", 'fsdp_config={"version": 2}']
    runs = {}
    for name, processes, more in (("one", 1, []), ("ddp", 2, []), ("fsdp", 2, sharded)):
        runs[name] = tmp_path / name
        options = [
            "pretrain", "--data", corpus_file, "--output-dir", runs[name], *small_run,
            "--learning-rate", "5e-3", "--max-steps", 4, "--precision", "fp32",
            "--gradient-accumulation-steps", 2 // processes, *more,
        ]  # fmt: skip
        if processes == 1:
            assert main([*map(str, options)]) == 0
        else:
            finish(command(*options, processes=processes))
    one = metrics(runs["one"])
    after = {
        name: json.loads((run / "summary.json").read_text())["held_out_after"]
        for name, run in runs.items()
    }
    assert one[-1]["mlm_loss"] < one[0]["mlm_loss"]
    for name in ("ddp", "fsdp"):
        for a, b in zip(one, metrics(runs[name]), strict=True):
            for field in ("masked_tokens", "spans", "step"):
                assert a[field] == b[field]
            for field in ("mlm_loss", "sbo_loss", "grad_norm"):
                # fp32 sums in another order, over 4 steps
                assert a[field] == pytest.approx(b[field], rel=2e-4), (name, a["step"], field)
        assert after[name]["mlm_count"] == after["one"]["mlm_count"]
        assert after[name]["mlm_loss"] == pytest.approx(after["one"]["mlm_loss"], rel=1e-3)


def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path, corpus_file, small_run, monkeypatch, capsys
):
    """The second checkpoint runs into the file-size limit in the middle of its weights."""
    save = SpanPretrainingTrainer._save_checkpoint

    def save_on_a_full_disk(self, model, trial):
        if self.state.global_step < 4:
            return save(self, model, trial)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            return save(self, model, trial)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(SpanPretrainingTrainer, "_save_checkpoint", save_on_a_full_disk)
    run = tmp_path / "run"
    options = ["pretrain", "--data", str(corpus_file), "--output-dir", str(run), *small_run]
    code = main([*options, "--max-steps", "6", "--save-steps", "2", "--save-total-limit", "1"])
    assert code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoint of step 4 could not be saved" in error and "--resume" in error
    assert [path.name for path in checkpoints(run)] == ["checkpoint-2"]
    assert not (run / "unfinished").exists()
    monkeypatch.setattr(SpanPretrainingTrainer, "_save_checkpoint", save)
    assert main(["pretrain", "--output-dir", str(run), "--resume"]) == 0
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]


def test_warm_start_from_a_stock_bert_names_what_is_missing(
    finished, tmp_path, corpus_file, capsys
):
    """A masked LM without the span head becomes a SpanBERT."""
    source = tmp_path / "bert"
    BertForMaskedLM.from_pretrained(finished[0] / "model").save_pretrained(source)
    AutoTokenizer.from_pretrained(finished[0] / "model").save_pretrained(source)
    run = tmp_path / "run"
    options = [
        "--recipe", "tiny", "--max-seq-length", "48", "--tokens-per-batch", "256", "--held-out",
        "0.1", "--logging-steps", "1", "--seed", "3", "--learning-rate", "1e-6", "--max-steps", "2",
        "--warmup-steps", "2",
    ]  # fmt: skip
    code = main(
        ["pretrain", "--data", str(corpus_file), "--output-dir", str(run), *options]
        + ["--init-from", str(source)]
    )
    err = capsys.readouterr().err
    assert code == 0, err
    assert f"{source}: lacks cls.span_boundary.*: initialised" in err
    assert "--warmup-steps 2 leaves no step of the 2 at the full learning rate" in err
    assert "another tokenizer" not in err
    trained = json.loads((finished[0] / "summary.json").read_text())["held_out_after"]["mlm_loss"]
    warm = json.loads((run / "summary.json").read_text())["held_out_before"]
    assert warm["mlm_loss"] == pytest.approx(trained, rel=0.05)
    assert warm["sbo_loss"] > 4, "the span boundary head has not been trained"

    other = tmp_path / "other"
    train_wordpiece([corpus_file.read_text()], 150).save_pretrained(other)
    code = main(
        ["pretrain", "--data", str(corpus_file), "--output-dir", str(tmp_path / "again"), *options]
        + ["--init-from", str(source), "--tokenizer", str(other)]
    )
    assert code == 0
    assert "comes with another tokenizer than this run's" in capsys.readouterr().err


def test_prepared_shards_and_mixed_precision(tmp_path, corpus_file, small_run, capsys):
    shards = tmp_path / "shards"
    assert main(
        ["prepare", "--data", str(corpus_file), "--output-dir", str(shards), "--vocab-size", "200"]
    ) == 0  # fmt: skip
    assert "60 documents" in capsys.readouterr().out
    run = tmp_path / "run"
    code = main(
        ["pretrain", "--data", str(shards), "--output-dir", str(run), *small_run]
        + ["--max-steps", "3", "--precision", "bf16", "--num-workers", "1", "--eval-steps", "2"]
        + ["--set", "gradient_checkpointing=true"]
    )
    assert code == 0, capsys.readouterr().err
    assert len(metrics(run)) == 3
    assert not (run / "shards").exists(), "prepared shards are read where they lie"


def test_a_warm_start_keeps_the_places_of_the_checkpoint(tmp_path, corpus_file, small_run, capsys):
    """The sampler gives a span at most as many targets as the span boundary head has places."""
    start = ["pretrain", "--data", str(corpus_file), "--max-steps", "1", "--output-dir"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*start, str(first), *small_run, "--max-span-targets", "2"]) == 0
    rest = ["--max-seq-length", "48", "--tokens-per-batch", "256", "--held-out", "0.1"]
    code = main([*start, str(second), *rest, "--init-from", str(first / "model")])
    assert code == 0, capsys.readouterr().err
    config = json.loads((second / "model" / "config.json").read_text())
    assert config["max_span_targets"] == 2


def test_every_loss_is_divided_by_the_global_batch(tmp_path, corpus_file, small_run, monkeypatch):
    forward, seen = sb.SpanBertForPreTraining.forward, []

    def spy(self, **batch):
        if self.training:
            sizes = [len(batch[k]) for k in ("mlm_targets", "sbo_targets", "input_ids")]
            divisors = [int(batch[f"{k}_denominator"]) for k in ("mlm", "sbo", "pair")]
            seen.append((sizes, divisors))
        return forward(self, **batch)

    monkeypatch.setattr(sb.SpanBertForPreTraining, "forward", spy)
    options = ["--max-steps", "2", "--gradient-accumulation-steps", "3"]
    options += ["--pair-loss-weight", "0.5", "--output-dir", str(tmp_path / "run")]
    assert main(["pretrain", "--data", str(corpus_file), *small_run, *options]) == 0
    assert len(seen) == 6
    for step in (seen[:3], seen[3:]):
        totals = [sum(column) for column in zip(*(sizes for sizes, _ in step), strict=True)]
        assert all(divisors == totals for _, divisors in step)


def test_a_run_resumes_without_the_text_that_it_has_tokenised(
    tmp_path, corpus_file, small_run, capsys
):
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(corpus_file.read_text())
    options = ["pretrain", "--output-dir", str(run)]
    assert main([*options, "--data", str(text), *small_run, "--max-steps", "1"]) == 0
    text.unlink()
    shutil.rmtree(run / "model")  # so that some steps are left
    code = main([*options, "--resume"])
    assert code == 0, capsys.readouterr().err


def test_one_process_uses_one_gpu(tmp_path, monkeypatch, caplog):
    """With several, the Trainer would use DataParallel, which splits packed rows."""
    monkeypatch.setattr(
        TrainingArguments, "n_gpu", property(lambda self: 1 if self._n_gpu == 1 else 4)
    )
    with caplog.at_level("INFO", "spanbert_fast"):
        monkeypatch.setattr(logging.getLogger("spanbert_fast"), "propagate", True)
        assert training_arguments(PretrainOptions(str(tmp_path))).n_gpu == 1
    assert "one of 4 GPUs is used: torchrun --nproc-per-node 4" in caplog.text
