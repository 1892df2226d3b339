"""`spanbert-fast finetune` and `predict` end to end, on entities that a small model can learn."""

import json

import numpy as np
import pytest

from finetune_cases import command_of, options_of, write_folder
from spanbert_fast.cli import main
from spanbert_fast.data.tokenizer import load_tokenizer
from spanbert_fast.tasks.ner import NamedEntities
from spanbert_fast.tasks.windows import WindowDataset
from spanbert_fast.training.checkpoints import checkpoints
from spanbert_fast.training.finetuning.finetune import finetune, make_trainer, training_arguments
from spanbert_fast.training.finetuning.models import initial_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("finetune"))


@pytest.fixture
def command_line(folder):
    return command_of(folder)


def test_learns_keeps_the_best_and_predicts(command_line, folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(command_line(run, "--epochs", 12)) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"]["f1"] > 90, "entities of a closed list are learned"
    assert f"{metrics['dev']['f1']:.4f}" in printed
    for name in ("curves.png", "model/README.md", "model/task.json", "model/tokenizer.json"):
        assert (run / name).is_file()
    assert list((run / "tensorboard").glob("events*"))
    card = (run / "model/README.md").read_text()
    assert "train.conll" in card and f"{metrics['dev']['f1']:.4g}" in card and "0.003" in card

    # the exported model is that of the best epoch: predict gives the same figures and tags
    out = tmp_path / "again" / "p.conll"
    arguments = ["predict", "ner", run / "model", folder / "test.conll", "--output", out]
    assert main(list(map(str, arguments))) == 0
    assert f"{metrics['test']['f1']:.4f}" in capsys.readouterr().out
    assert out.read_text() == (run / "predictions-test/predictions.conll").read_text()


def test_words_without_tags_are_predicted_and_not_measured(command_line, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(command_line(run, "--epochs", 1)) == 0
    capsys.readouterr()
    words = tmp_path / "words.txt"
    words.write_text("they\nmet\nMary\n\nnear\nOslo\n")
    out = tmp_path / "p.txt"
    assert main(["predict", "ner", str(run / "model"), str(words), "--output", str(out)]) == 0
    assert "f1" not in capsys.readouterr().out
    assert [line.split("\t")[0] for line in out.read_text().splitlines()] == [
        "they", "met", "Mary", "", "near", "Oslo", "",
    ]  # fmt: skip


def test_both_engines_take_the_same_steps(folder, tmp_path):
    """Without dropout the losses and the predictions agree to rounding."""
    losses, results = [], []
    for engine in ("spanbert_fast", "transformers"):
        options = options_of(
            folder,
            tmp_path / engine,
            model=str(folder / "large"),
            engine=engine,
            dropout=0.0,
            training_arguments={"logging_steps": 1},
        )
        results.append(finetune(options))
        state = checkpoints(tmp_path / engine)[-1] / "trainer_state.json"
        history = json.loads(state.read_text())["log_history"]
        losses.append([float(line["loss"]) for line in history if "loss" in line])
    assert len(losses[0]) == len(losses[1]) >= 8
    # losses are logged with four digits, and steps of 3e-3 amplify rounding
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02, atol=2e-3)
    assert results[0]["dev"] == pytest.approx(results[1]["dev"], abs=2)


def test_seeds_and_early_stopping(command_line, tmp_path, capsys):
    run = tmp_path / "run"
    more = ["--epochs", 30, "--patience", 1, "--seeds", 4, 5, "--learning-rate", "1e-2"]
    assert main(command_line(run, *more)) == 0
    assert "over 2 seeds" in capsys.readouterr().out
    figures = [json.loads((run / f"seed-{s}/metrics.json").read_text()) for s in (4, 5)]
    assert figures[0]["best_epoch"] < 29 and figures[0] != figures[1]
    mean, _ = json.loads((run / "seeds.json").read_text())["dev"]["f1"]
    assert mean == pytest.approx(np.mean([f["dev"]["f1"] for f in figures]))


def test_the_trainer_s_optimiser_is_fused(folder, tmp_path):
    options = options_of(folder, tmp_path / "run", precision="bf16")
    arguments = training_arguments(options)
    assert arguments.bf16 and arguments.optim == "adamw_torch_fused"
    task = NamedEntities(max_seq_length=32)
    items = task.read(folder / "train.conll").items
    task.learn(items)
    tokenizer = load_tokenizer(folder / "model")
    model = initial_model(options.model, task, tokenizer, engine="spanbert_fast")
    windows = WindowDataset(task, items, tokenizer)
    trainer = make_trainer(options, arguments, task, model, tokenizer, windows, items[:3])
    assert trainer.evaluate().keys() == {"eval_f1", "eval_precision", "eval_recall"}
