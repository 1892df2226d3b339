"""Checkpoints of both Trainers are complete, damage is reported, and the newest good one is
used."""

import json
import logging
import shutil

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from finetune_cases import command_of, write_folder
from spanbert_fast import digests
from spanbert_fast.cli import main
from spanbert_fast.training.checkpoints import (
    checkpoint_to_resume,
    checkpoints,
    damaged_checkpoints,
    drop_old,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def finetuned(folder, tmp_path_factory):
    """A run of two short epochs, with a checkpoint after each."""
    run = tmp_path_factory.mktemp("finetuned") / "run"
    assert main(command_of(folder)(run, *SHORT, "--epochs", 2)) == 0
    assert [path.name for path in checkpoints(run)] == ["checkpoint-2", "checkpoint-4"]
    return run


SHORT = ["--max-train", 16, "--max-dev", 4]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, corpus_file, small_run):
    run = tmp_path_factory.mktemp("pretrained") / "run"
    options = ["--data", str(corpus_file), "--output-dir", str(run), *small_run]
    assert main(["pretrain", *options, "--max-steps", "4", "--save-steps", "2"]) == 0
    return run


def resume(kind, run):
    words = ["pretrain"] if kind == "pretrained" else ["finetune", "ner"]
    return main([*words, "--output-dir", str(run), "--resume"])


FILES = {
    "pretrained": "model.safetensors optimizer.pt scheduler.pt rng_state.pth trainer_state.json "
    "config.json digests.json",
    "finetuned": "model.safetensors optimizer.pt scheduler.pt rng_state.pth trainer_state.json "
    "training_args.bin tokenizer.json digests.json",
}
CASES = [(kind, name) for kind in FILES for name in FILES[kind].split()]


@pytest.mark.parametrize("kind", FILES)
def test_a_whole_run_has_digests_everywhere(kind, request):
    run = request.getfixturevalue(kind)
    for path in (*checkpoints(run), run / "model"):
        assert digests.damage(path) is None
        listed = json.loads((path / digests.FILE).read_text())["files"].keys()
        assert listed == {file.name for file in path.iterdir()} - {digests.FILE}
    assert not (run / "unfinished").exists() and not (run / ".lock").exists()


def hurt(path, how):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(content if how == "flipped" else content[: len(content) // 2])


@pytest.mark.parametrize("how", ["removed", "truncated", "flipped"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    kind, name, how, request, tmp_path, caplog, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(request.getfixturevalue(kind), run)
    first, last = checkpoints(run)
    hurt(last / name, how)
    monkeypatch.setattr(logging.getLogger("spanbert_fast"), "propagate", True)
    caplog.set_level("INFO", "spanbert_fast")
    assert checkpoint_to_resume(run, PartialState()) == first
    lines = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    named = "" if name == digests.FILE else f"{name} "
    assert lines[0].startswith(f"{last} is damaged and not gone on with: {named}")
    (aside,) = damaged_checkpoints(run)
    assert lines[1:] == [f"{last} is now called {aside.name}", f"resuming from {first}"]
    assert (aside / name).exists() == (how != "removed"), "nothing is deleted"


@pytest.mark.parametrize("kind", FILES)
def test_a_run_goes_on_from_the_newest_whole_checkpoint(kind, request, tmp_path, capsys):
    """It ends as an undisturbed run does."""
    whole, run = request.getfixturevalue(kind), tmp_path / "run"
    shutil.copytree(whole, run)
    hurt(checkpoints(run)[-1] / "optimizer.pt", "flipped")
    assert resume(kind, run) == 0
    err = capsys.readouterr().err
    assert "optimizer.pt does not have the digest" in err and "resuming from" in err
    tensors = [load_file(path / "model" / "model.safetensors") for path in (whole, run)]
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name]), name


def test_where_no_checkpoint_is_whole_nothing_begins_anew(finetuned, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finetuned, run)
    for path, name in zip(checkpoints(run), ("scheduler.pt", "optimizer.pt"), strict=True):
        (path / name).unlink()
    assert resume("finetuned", run) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no checkpoint is whole; checkpoint-4: optimizer.pt is missing" in line
    assert len(checkpoints(run)) == 2


def test_a_damaged_best_checkpoint_is_named_before_the_training(finetuned, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finetuned, run)
    first, last = checkpoints(run)
    state = json.loads((last / "trainer_state.json").read_text())
    state["best_global_step"] = 2
    (last / "trainer_state.json").write_text(json.dumps(state))
    digests.write_digests(last)
    (first / "model.safetensors").write_bytes(b"")
    assert resume("finetuned", run) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{first}, the best one so far, is damaged: model.safetensors has 0 bytes" in line


def test_a_moved_run_is_resumed_with_its_best_weights(finetuned, tmp_path):
    """Checkpoints do not contain the path of the run's directory."""
    run = tmp_path / "elsewhere"
    shutil.copytree(finetuned, run)
    shutil.rmtree(run / "model")  # a run with all its files would not write this one again
    assert resume("finetuned", run) == 0
    before, after = (json.loads((r / "metrics.json").read_text()) for r in (finetuned, run))
    assert before["dev"] == after["dev"] and before["best_epoch"] == after["best_epoch"]


def test_the_newest_and_the_best_are_never_dropped(tmp_path):
    def left(steps, **options):
        shutil.rmtree(tmp_path, ignore_errors=True)
        for step in steps:
            (tmp_path / f"checkpoint-{step}").mkdir(parents=True)
        drop_old(tmp_path, **options)
        return [int(path.name.split("-")[1]) for path in checkpoints(tmp_path)]

    assert left([2, 4, 10], keep=2) == [4, 10]
    assert left([2, 4, 10], keep=1, best="checkpoint-2") == [2, 10]
    assert left([2, 4, 10], keep=2, best="checkpoint-10") == [4, 10]
    assert left([2, 4, 10], keep=2, best="checkpoint-7") == [4, 10]
    assert left([2, 4], keep=None) == [2, 4]
    assert left([], keep=1) == []
