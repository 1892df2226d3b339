"""`spanbert-fast finetune` and `predict` end to end, on entities that a small model can learn."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForTokenClassification

from spanbert_fast.cli import main
from spanbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
from spanbert_fast.models import SpanBertConfig, SpanBertForPreTraining
from spanbert_fast.models.tasks import SpanBertForTokenClassification
from spanbert_fast.tasks.ner import NamedEntities, Sentence
from spanbert_fast.tasks.predict import predict
from spanbert_fast.tasks.windows import WindowCollator, WindowDataset
from spanbert_fast.training.checkpoints import checkpoints
from spanbert_fast.training.finetune import finetune, make_trainer, training_arguments
from spanbert_fast.training.finetune_models import initial_model
from spanbert_fast.training.finetune_options import FinetuneOptions

NAMES = {"PER": ["John Smith", "Mary", "Ann Lee"], "LOC": ["Paris", "New York", "Oslo"]}


def sentences(count: int, seed: int) -> str:
    draw, text = random.Random(seed), []
    for _ in range(count):
        rows = []
        for _ in range(draw.randint(1, 3)):
            rows += [(w, "O") for w in draw.choice(["they met", "the old man saw", "near"]).split()]
            kind = draw.choice(list(NAMES))
            first, *others = draw.choice(NAMES[kind]).split()
            rows += [(first, f"B-{kind}"), *((w, f"I-{kind}") for w in others)]
        text.append("\n".join(f"{word}\t{tag}" for word, tag in rows))
    return "\n\n".join(text) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train, dev and test files, and two small checkpoints, one of large weights."""
    folder = tmp_path_factory.mktemp("finetune")
    for seed, (name, count) in enumerate((("train", 60), ("dev", 20), ("test", 20))):
        (folder / f"{name}.conll").write_text(sentences(count, seed))
    words = (folder / "train.conll").read_text().replace("\t", " ")
    tokenizer = train_wordpiece([words] * 2, 150)
    torch.manual_seed(1)
    for name, deviation in (("model", 0.1), ("large", 0.3)):
        config = SpanBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=deviation,
        )
        SpanBertForPreTraining(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def command_line(folder):
    """The arguments of a run into `output`."""

    def arguments(output, *more):
        files = [f"--{split}={folder / split}.conll" for split in ("train", "dev", "test")]
        fast = ["--max-seq-length", "32", "--batch-size", "8", "--learning-rate", "3e-3"]
        model = ["--model", str(folder / "model"), "--output-dir", str(output)]
        return ["finetune", "ner", *model, *files, *fast, *map(str, more)]

    return arguments


def options_of(folder, output, **fields) -> FinetuneOptions:
    files = {split: str(folder / f"{split}.conll") for split in ("train", "dev", "test")}
    values = {
        "task": "ner",
        "model": str(folder / "model"),
        "output_dir": str(output),
        "task_options": {"max_seq_length": 32},
        "batch_size": 8,
        "learning_rate": 3e-3,
        "epochs": 2,
        **files,
        **fields,
    }
    return FinetuneOptions(**values)


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

    # the exported model is the best epoch's: predict finds the figures again, and the same tags
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
        state = next((tmp_path / engine).glob("checkpoint-*")) / "trainer_state.json"
        history = json.loads(state.read_text())["log_history"]
        losses.append([float(line["loss"]) for line in history if "loss" in line])
    assert len(losses[0]) == len(losses[1]) >= 8
    # logged with four digits; steps of 3e-3 amplify rounding
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02, atol=2e-3)
    assert results[0]["dev"] == pytest.approx(results[1]["dev"], abs=2)


def test_a_resumed_run_ends_as_one_that_was_not_stopped(folder, tmp_path):
    whole = finetune(options_of(folder, tmp_path / "whole", epochs=3))
    part = options_of(folder, tmp_path / "part", epochs=3)

    class Stop(Exception):
        pass

    from transformers import TrainerCallback

    import spanbert_fast.training.finetune as module

    class StopsInTheSecondEpoch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.epoch > 1.3:
                raise Stop

    original = module.make_trainer

    def with_stop(*args):
        trainer = original(*args)
        trainer.add_callback(StopsInTheSecondEpoch())
        return trainer

    module.make_trainer = with_stop
    try:
        with pytest.raises(Stop):
            finetune(part)
    finally:
        module.make_trainer = original
    # a checkpoint that a kill left half written is not gone on with
    broken = tmp_path / "part" / "checkpoint-999"
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"global_step": 9')
    assert main(["finetune", "ner", "--output-dir", str(tmp_path / "part"), "--resume"]) == 0
    resumed = json.loads((tmp_path / "part" / "metrics.json").read_text())
    for name in ("dev", "test", "best_epoch"):
        assert resumed[name] == whole[name]
    weights = [
        SpanBertForTokenClassification.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("whole", "part")
    ]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_seeds_and_early_stopping(command_line, tmp_path, capsys):
    run = tmp_path / "run"
    more = ["--epochs", 30, "--patience", 1, "--seeds", 4, 5, "--learning-rate", "1e-2"]
    assert main(command_line(run, *more)) == 0
    assert "over 2 seeds" in capsys.readouterr().out
    figures = [json.loads((run / f"seed-{s}/metrics.json").read_text()) for s in (4, 5)]
    assert figures[0]["best_epoch"] < 29 and figures[0] != figures[1]
    mean, _ = json.loads((run / "seeds.json").read_text())["dev"]["f1"]
    assert mean == pytest.approx(np.mean([f["dev"]["f1"] for f in figures]))


WRONG = [
    (["--epochs", "0"], 2, "--epochs must be above 0"),
    (["--max-seq-length", "65"], 2, "--max-seq-length must be at most the checkpoint's 64"),
    (["--set", "bf16=true"], 2, "--set bf16: give --precision instead"),
    (["--set", "no_such=1"], 2, "no_such"),
    (["--train", "nowhere.conll"], 2, "--train nowhere.conll: no such file"),
    (["--model", "nowhere"], 2, "--model nowhere is not a directory"),
    (["--scheme", "bilou"], 2, "invalid choice"),
    (["--doc-stride", "3"], 2, "unrecognized arguments"),
]


@pytest.mark.parametrize(("more", "code", "message"), WRONG)
def test_wrong_options_end_in_one_line(more, code, message, command_line, tmp_path, capsys):
    assert main(command_line(tmp_path / "run", *more)) == code
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_data_ends_in_one_line_or_is_counted(command_line, folder, tmp_path, capsys):
    bad = tmp_path / "bad.conll"
    bad.write_text((folder / "train.conll").read_text() + "\nlonely\n")
    number = len(bad.read_text().splitlines())
    assert main(command_line(tmp_path / "a", "--train", bad)) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"bad.conll:{number}: has 1 columns, 2 are needed" in line or "no tags" in line
    ragged = tmp_path / "ragged.conll"
    ragged.write_text((folder / "train.conll").read_text() + "\na\tO\nb\n")
    arguments = command_line(tmp_path / "b", "--train", ragged, "--epochs", 1, "--skip-bad")
    assert main(arguments) == 0
    assert "1 bad examples left out" in capsys.readouterr().err
    assert json.loads((tmp_path / "b/metrics.json").read_text())["skipped"] == {"train": 1}


def test_what_no_window_holds_is_bad_data(command_line, folder, tmp_path, capsys):
    """Found out before the training, in every file, and by `predict`."""
    long = tmp_path / "long.conll"
    rows = ["Mary\tB-PER", *["John\tI-PER"] * 40]
    long.write_text((folder / "dev.conll").read_text() + "\n" + "\n".join(rows) + "\n")
    first = len(long.read_text().splitlines()) - 40
    wrong = f"long.conll:{first}: its PER that begins with 'Mary' has "
    for split in ("train", "dev", "test"):
        run = tmp_path / split
        assert main(command_line(run, f"--{split}", long, "--epochs", 1)) == 1
        assert wrong in capsys.readouterr().err.strip().splitlines()[-1]
        assert not run.exists()
    run = tmp_path / "skipped"
    more = ["--dev", long, "--test", long, "--epochs", 1, "--skip-bad"]
    assert main(command_line(run, *more)) == 0
    assert capsys.readouterr().err.count("long.conll: 1 bad examples left out") == 2
    assert json.loads((run / "metrics.json").read_text())["skipped"] == {"dev": 1, "test": 1}
    predict_it = ["predict", "ner", str(run / "model"), str(long), "--output", str(tmp_path / "p")]
    assert main(predict_it) == 1
    assert wrong in capsys.readouterr().err
    assert main([*predict_it, "--skip-bad"]) == 0
    assert "bad examples left out: 1\n" in capsys.readouterr().out


PROCESS = """
import json, os, shutil, sys
from pathlib import Path
from torch import distributed
from spanbert_fast.cli import main
from spanbert_fast.training.checkpoints import checkpoints
from spanbert_fast.training.finetune import finetune
from spanbert_fast.training.finetune_options import options_of_run

run, rank = Path(sys.argv[1]), int(os.environ["RANK"])
assert main(json.loads(sys.argv[2])) == 0
first, last = checkpoints(run)
distributed.barrier()
if rank == 0:
    shutil.copytree(run / "model", run / "whole")
    shutil.rmtree(last)
distributed.barrier()
result = finetune(options_of_run(str(run)), resume=True)
(run / f"rank-{rank}.json").write_text(json.dumps(result))
distributed.destroy_process_group()
"""


def pairs(count: int, seed: int) -> str:
    """TACRED lines; the relation shows in the verb."""
    draw, lines = random.Random(seed), []
    for i in range(count):
        verb, relation = draw.choice([("saw", "no_relation"), ("met", "per:met")])
        item = {"id": i, "token": ["they", "John", verb, draw.choice(["old", "the"]), "Mary"]}
        for role, place in (("subj", 1), ("obj", 4)):
            item |= {f"{role}_start": place, f"{role}_end": place, f"{role}_type": "PERSON"}
        lines.append(json.dumps(item | {"relation": relation}))
    return "\n".join(lines)


def test_two_processes_take_the_steps_of_one(folder, tmp_path):
    """The same figures in both, files from the first alone; resumed, they end the same."""
    one, two = tmp_path / "one", tmp_path / "two"
    fixed = ["finetune", "relation", "--model", folder / "large", "--dropout", 0, "--epochs", 2]
    for seed, (split, count) in enumerate((("train", 24), ("dev", 9), ("test", 9))):
        (tmp_path / split).write_text(pairs(count, seed))
        fixed += [f"--{split}", tmp_path / split]
    fixed += ["--max-seq-length", 16, "--learning-rate", "3e-3"]
    fixed += ["--set", "logging_steps=1", "--set", "save_total_limit=2"]
    fixed = [*map(str, fixed)]
    assert main([*fixed, "--output-dir", str(one), "--batch-size", "8"]) == 0
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    arguments = json.dumps([*fixed, "--output-dir", str(two), "--batch-size", "4"])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    finished = subprocess.run(
        [sys.executable, *launcher, script, two, arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("model: ") == 1, "one process speaks"
    assert len(list((two / "tensorboard").glob("events*"))) == 2, "of the first process's two runs"
    losses = []
    for run in (one, two):
        state = json.loads((checkpoints(run)[-1] / "trainer_state.json").read_text())
        losses.append([float(line["loss"]) for line in state["log_history"] if "loss" in line])
    assert len(losses[0]) == 6 and losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    results = [json.loads((two / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    written = json.loads((two / "metrics.json").read_text())
    for name in ("dev", "test", "best_epoch"):
        assert results[0][name] == results[1][name] == written[name]
    weights = [load_file(two / name / "model.safetensors") for name in ("whole", "model")]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_a_run_is_not_lost_by_mistake(command_line, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(command_line(run, "--epochs", 1)) == 0
    assert main(command_line(run, "--epochs", 1)) == 2
    assert "already holds a run" in capsys.readouterr().err
    inside = command_line(run, "--epochs", 1, "--overwrite", "--model", run / "model")
    assert main(inside) == 2
    assert "belongs to the run" in capsys.readouterr().err
    assert main(command_line(run, "--epochs", 1, "--overwrite")) == 0
    assert main(["finetune", "ner", "--output-dir", str(run), "--resume", "--epochs", "3"]) == 2
    assert main(["finetune", "qa", "--output-dir", str(run), "--resume"]) == 2
    assert main(["predict", "ner", str(run), str(run / "metrics.json")]) == 1
    assert "is this a model of `finetune`?" in capsys.readouterr().err


# Predicting


def test_a_batch_gives_what_single_sentences_give(folder):
    """Whatever the batches, packed or padded, and with windows of one sentence far apart."""
    tokenizer = load_tokenizer(folder / "model")
    task = NamedEntities(max_seq_length=16, labels=["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    torch.manual_seed(5)
    ours = initial_model(str(folder / "model"), task, tokenizer, engine="spanbert_fast")
    torch.manual_seed(5)
    theirs = initial_model(str(folder / "model"), task, tokenizer, engine="transformers")
    assert type(theirs) is BertForTokenClassification
    items = task.read(folder / "test.conll").items
    long = Sentence("long", "x:1", [w for s in items for w in s.words], None)
    examples = [*items[:7], long, *items[7:]]
    alone = [predict(ours, task, [e], tokenizer)[0] for e in examples]
    assert [len(tags) for tags in alone] == [len(e.words) for e in examples]
    assert len({tag for tags in alone for tag in tags}) > 2, "the random head says various things"
    for model in (ours, theirs):
        for tokens in (1, 40, 8192):
            got = predict(model, task, examples, tokenizer, tokens_per_batch=tokens)
            assert got == alone
    assert predict(ours, task, [], tokenizer) == []


def test_a_long_document_is_predicted_in_pieces(folder, monkeypatch):
    tokenizer = load_tokenizer(folder / "model")
    task = NamedEntities(max_seq_length=16, labels=["O", "B-PER", "I-PER"])
    model = initial_model(str(folder / "model"), task, tokenizer, engine="spanbert_fast")
    seen = []
    forward = type(model).forward

    def counting(self, input_ids, **kwargs):
        seen.append(len(input_ids))
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", counting)
    words = ("they met Mary near Oslo " * 3000).split()
    (tags,) = predict(model, task, [Sentence("0", "x", words, None)], tokenizer)
    assert len(tags) == len(words) and max(seen) <= 8192 and len(seen) > 2


def test_collator_packs_and_pads_the_same(folder):
    tokenizer = load_tokenizer(folder / "model")
    task = NamedEntities(max_seq_length=16)
    items = task.read(folder / "dev.conll").items
    task.learn(items)
    dataset = WindowDataset(task, items, tokenizer)
    windows = [dataset[i] for i in range(5)]
    packed, padded = (WindowCollator(kind, 0)(windows) for kind in (True, False))
    real = padded["attention_mask"].bool()
    assert real.sum(1).tolist() == [len(w["input_ids"]) for w in windows]
    for name in ("input_ids", "labels", "token_type_ids"):
        assert torch.equal(padded[name][real], packed[name])
    assert (padded["labels"][~real] == -100).all()
    assert packed["cu_seqlens"].diff().tolist() == real.sum(1).tolist()


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
