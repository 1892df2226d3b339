"""Runs that a program starts: callbacks, given models and data, results, its own tasks."""

import json
import logging

import pytest
import torch
from transformers import TrainerCallback

from finetune_cases import options_of, write_folder
from spanbert_fast import tasks
from spanbert_fast.errors import UsageError
from spanbert_fast.models import SpanBertForTokenClassification
from spanbert_fast.tasks.ner import NamedEntities, Sentence
from spanbert_fast.training.finetuning.finetune import finetune
from spanbert_fast.training.pretraining.options import PretrainOptions
from spanbert_fast.training.profile import Profile
from test_examples import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("finetune"))


class Steps(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(state.global_step)


def examples(count):
    rows = [(["they", "met", "Mary"], ["O", "O", "B-PER"]), (["in", "Oslo"], ["O", "B-LOC"])]
    return [Sentence(str(i), f"example {i}", *map(list, rows[i % len(rows)])) for i in range(count)]


def test_ready_examples_a_ready_model_callbacks_and_a_trace(folder, tmp_path, caplog):
    torch.manual_seed(0)
    labels = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    names = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    model = SpanBertForTokenClassification.from_pretrained(folder / "model", **names)
    before = model.classifier.weight.detach().clone()
    options = options_of(
        folder, tmp_path / "run", train=None, dev=None, test=None, epochs=1, batch_size=4
    )
    steps, trace = Steps(), tmp_path / "run" / "trace.json"
    with caplog.at_level(logging.INFO, "spanbert_fast"):
        result = finetune(
            options,
            model=model,
            data={"train": examples(20), "dev": examples(6)},
            callbacks=[steps, Profile(2, trace)],
        )
    assert steps.seen == [1, 2, 3, 4, 5]
    assert not torch.equal(model.classifier.weight, before)
    assert result.output_dir == tmp_path / "run" and result.model_dir.is_dir()
    assert set(result["dev"]) == {"precision", "recall", "f1"}
    assert "fine-tuned on examples of a program" in (result.model_dir / "README.md").read_text()
    assert json.loads(trace.read_text())["traceEvents"]
    table = next(r.getMessage() for r in caplog.records if "trace: " in r.getMessage())
    assert len(table.splitlines()) == 12 and "aten::" in table
    # a finished run is not trained again, and the log says so
    caplog.clear()
    with caplog.at_level(logging.INFO, "spanbert_fast"):
        again = finetune(options, resume=True, callbacks=[steps])
    assert again == json.loads(json.dumps(result)) and len(steps.seen) == 5
    assert f"the run in {tmp_path / 'run'} is finished: nothing is trained" in caplog.text
    with pytest.raises(UsageError, match="--train must be given"):
        finetune(options, overwrite=True)


def test_patience_goes_on_where_a_killed_run_was(folder, tmp_path):
    """A run that learns nothing, with patience 3, ends after epoch 4, also if it was
    interrupted."""

    class Kill(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            if state.epoch >= 3:
                raise KeyboardInterrupt

    options = options_of(
        folder, tmp_path / "run", epochs=9, patience=3, learning_rate=1e-12, max_train=8, max_dev=4
    )
    with pytest.raises(KeyboardInterrupt):
        finetune(options, callbacks=[Kill()])
    steps = Steps()
    finetune(options, resume=True, callbacks=[steps])
    assert steps.seen[-1] == 4  # one step per epoch


def test_a_task_of_one_s_own(folder, tmp_path):
    example = load("toy_task")
    try:
        assert "number" in tasks.names()
        accuracy = example.main(str(folder / "large"), str(tmp_path / "run"))
        lines = (tmp_path / "run/predictions-dev/predictions.txt").read_text().splitlines()
        right = [(row[:3] == "yes") == any(map(str.isdigit, row)) for row in lines]
        assert len(right) == 64 and accuracy == 100 * sum(right) / 64
        card = (tmp_path / "run" / "model" / "README.md").read_text()
        assert "(number)" in card and "| total | 64 |" in card
    finally:
        tasks._registered.clear()
    with pytest.raises(ValueError, match="name must be none of qa, .*, got ner"):
        tasks.register(NamedEntities)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("neftune_noise_alpha", "which no noise is added to"),
        ("load_best_model_at_end", "the checkpoint of its best epoch"),
        ("per_device_eval_batch_size", "in batches of a number of tokens"),
    ],
)
def test_what_would_be_swallowed_is_refused(folder, tmp_path, field, reason):
    with pytest.raises(UsageError, match=f"--set {field} has no effect: .*{reason}"):
        options_of(folder, tmp_path, training_arguments={field: False})


def test_the_warm_up_of_a_warm_start_is_a_share_of_its_own_steps():
    given = {"output_dir": "x", "recipe_name": "spanbert-base", "init_from": "bert-base-cased"}
    options = PretrainOptions(**given, overrides={"max_steps": 20_000})
    assert options.recipe.warmup_steps == 2_000
    options = PretrainOptions(**given, overrides={"max_steps": 20_000, "warmup_steps": 5})
    assert options.recipe.warmup_steps == 5
    assert PretrainOptions("x", "spanbert-base").recipe.warmup_steps == 10_000
