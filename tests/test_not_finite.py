"""No NaN and no infinity goes on in silence: losses, weights, predictions, labels, ids."""

import json
import re
import shutil

import pytest
import torch

from finetune_cases import command_of, write_folder
from spanbert_fast import digests
from spanbert_fast.cli import main
from spanbert_fast.data.tokenizer import load_tokenizer
from spanbert_fast.models import SpanBertForTokenClassification
from spanbert_fast.training.checkpoints import checkpoints
from spanbert_fast.training.finetuning.trainer import FinetuneTrainer
from spanbert_fast.training.pretraining.trainer import SpanPretrainingTrainer

SHORT = ["--max-train", 16, "--max-dev", 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def finetuned(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("finetuned") / "run"
    assert main(command_of(folder)(run, *SHORT, "--epochs", 1)) == 0
    return run


def test_a_loss_that_is_no_number_stops_the_finetuning(folder, tmp_path, capsys, monkeypatch):
    """After the first checkpoint, which stays and is named; no model of NaN is written."""
    run, forward = tmp_path / "run", SpanBertForTokenClassification.forward
    steps = []

    def diverge(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if self.training:
            steps.append(1)
            if len(steps) > 2:
                output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(SpanBertForTokenClassification, "forward", diverge)
    assert main(command_of(folder)(run, *SHORT, "--epochs", 3)) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the loss is nan after step 3; the last good checkpoint is" in line
    assert [path.name for path in checkpoints(run)] == ["checkpoint-2"]
    assert str(run / "checkpoint-2") in line and not (run / "model").exists()
    assert digests.damage(run / "checkpoint-2") is None


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_weights_that_are_no_numbers_are_never_saved(
    kind, folder, tmp_path, corpus_file, small_run, capsys, monkeypatch
):
    """The loss of the last step is finite; the step itself makes the weights NaN."""
    run = tmp_path / "run"
    trainer = SpanPretrainingTrainer if kind == "pretrained" else FinetuneTrainer
    step = trainer.training_step

    def bad_step(self, model, *args):
        loss = step(self, model, *args)
        if self.state.global_step == 1:
            self.model.bert.encoder.layer[0].output.dense.weight.grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(trainer, "training_step", bad_step)
    if kind == "pretrained":
        options = ["pretrain", "--data", str(corpus_file), "--output-dir", str(run), *small_run]
        options += ["--max-steps", "2", "--save-steps", "1", "--max-grad-norm", "0"]
        fault = f"is no longer finite after step 2; the last good checkpoint is {run}/checkpoint-1"
    else:  # which evaluates before it saves
        options = command_of(folder)(run, *SHORT, "--epochs", 1, "--max-grad-norm", 0)
        fault = "the model's outputs are not finite after step 2; there is no checkpoint yet; lower"
    assert main(options) == 1
    assert fault in capsys.readouterr().err.strip().splitlines()[-1]
    assert len(checkpoints(run)) == (1 if kind == "pretrained" else 0)
    assert not (run / "model").exists() and not (run / "unfinished").exists()


def test_predictions_that_are_no_numbers_are_an_error(finetuned, folder, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(finetuned / "model", model)
    bad = SpanBertForTokenClassification.from_pretrained(model)
    with torch.no_grad():
        bad.classifier.weight.fill_(3e38)  # finite weights, infinite sums
    bad.save_pretrained(model)
    out = tmp_path / "p.conll"
    predict = ["predict", "ner", str(model), str(folder / "test.conll"), "--output", str(out)]
    assert main(predict) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"test.conll:\d+: the model's outputs are not finite", line)
    assert not out.exists()


def test_labels_and_ids_of_another_model_are_refused(finetuned, folder, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(finetuned / "model", model)
    task = json.loads((model / "task.json").read_text())
    task["labels"] = task["labels"][::-1]
    (model / "task.json").write_text(json.dumps(task))
    predict = ["predict", "ner", str(model), str(folder / "test.conll")]
    assert main([*predict, "--output", str(tmp_path / "p")]) == 1
    assert "config.json has the labels O, B-LOC" in capsys.readouterr().err
    larger = load_tokenizer(model)
    larger.add_tokens(["another"])
    larger.save_pretrained(model)
    assert main([*predict, "--output", str(tmp_path / "p")]) == 2
    assert "in which the tokenizer's 'another' with the id" in capsys.readouterr().err
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(folder / "model", checkpoint)
    larger.save_pretrained(checkpoint)
    assert main(command_of(folder)(tmp_path / "run", "--model", checkpoint)) == 2
    assert "in which the tokenizer's 'another' with the id" in capsys.readouterr().err
