"""`spanbert-fast finetune`: a resumed run, and one in two processes, ends as a plain one does."""

import json
import os
import random
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from finetune_cases import options_of, write_folder
from spanbert_fast.cli import main
from spanbert_fast.models.heads import SpanBertForTokenClassification
from spanbert_fast.training.checkpoints import checkpoints
from spanbert_fast.training.finetuning.finetune import finetune


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("finetune"))


def test_a_resumed_run_ends_as_one_that_was_not_stopped(folder, tmp_path):
    whole = finetune(options_of(folder, tmp_path / "whole", epochs=3))
    part = options_of(folder, tmp_path / "part", epochs=3)

    class Stop(Exception):
        pass

    from transformers import TrainerCallback

    import spanbert_fast.training.finetuning.finetune as module

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
    # a checkpoint that a kill left half written is not used
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


PROCESS = """
import json, os, shutil, sys
from pathlib import Path
from torch import distributed
from spanbert_fast.cli import main
from spanbert_fast.training.checkpoints import checkpoints
from spanbert_fast.training.finetuning.finetune import finetune
from spanbert_fast.training.finetuning.options import options_of_run

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
    """Lines in TACRED's format; the verb shows the relation."""
    draw, lines = random.Random(seed), []
    for i in range(count):
        verb, relation = draw.choice([("saw", "no_relation"), ("met", "per:met")])
        item = {"id": i, "token": ["they", "John", verb, draw.choice(["old", "the"]), "Mary"]}
        for role, place in (("subj", 1), ("obj", 4)):
            item |= {f"{role}_start": place, f"{role}_end": place, f"{role}_type": "PERSON"}
        lines.append(json.dumps(item | {"relation": relation}))
    return "\n".join(lines)


def test_two_processes_take_the_steps_of_one(folder, tmp_path):
    """Both give the same figures, only the first writes files, and a resumed run ends the same."""
    one, two = tmp_path / "one", tmp_path / "two"
    fixed = ["finetune", "relation", "--model", folder / "large", "--dropout", 0, "--epochs", 2]
    for seed, (split, count) in enumerate((("train", 24), ("dev", 9), ("test", 9))):
        (tmp_path / split).write_text(pairs(count, seed))
        fixed += [f"--{split}", tmp_path / split]
    fixed += ["--max-seq-length", 16, "--learning-rate", "3e-3", "--precision", "fp32"]
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
