"""`--max-minutes` fits the number of steps to this machine's speed."""

import json

import pytest

from spanbert_fast.cli import main
from spanbert_fast.errors import UsageError
from spanbert_fast.training.pretraining.fitted_length import fitted
from spanbert_fast.training.pretraining.options import PretrainOptions


def options(**given) -> PretrainOptions:
    return PretrainOptions(output_dir="run", **given)


@pytest.mark.parametrize(
    "minutes, step, steps, warmup",
    [
        (2.0, 0.3, 400, 40),  # half of the recipe's 800 steps, and half of its 80 warm-up steps
        (2.0, 0.001, 800, 80),  # at most the recipe's
        (0.5, 1000.0, 1, 0),  # at least one
    ],
)
def test_steps_and_warm_up_follow_the_speed(minutes, step, steps, warmup):
    found = fitted(options(max_minutes=minutes), step)
    assert (found.recipe.max_steps, found.recipe.warmup_steps) == (steps, warmup)
    assert found.max_minutes is None


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("inf"), float("nan")])
def test_minutes_are_checked(minutes):
    with pytest.raises(UsageError, match="--max-minutes must be above 0 and finite"):
        options(max_minutes=minutes)


def test_minutes_and_steps_exclude_each_other():
    with pytest.raises(UsageError, match="give it or --max-steps"):
        options(max_minutes=1.0, overrides={"max_steps": 3})


def test_a_run_is_fitted_once(corpus_file, small_run, tmp_path, capsys):
    """The number is stored, and a resumed run uses it."""
    run = tmp_path / "run"
    command = ["pretrain", "--data", str(corpus_file), "--output-dir", str(run)]
    given = [str(part) for part in small_run]
    for unused in ("--max-steps", "--warmup-steps"):
        if unused in given:
            del given[given.index(unused) : given.index(unused) + 2]
    command += [*given, "--max-minutes", "0.02"]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "steps fit into 0.02 minutes" in said
    written = json.loads((run / "options.json").read_text())
    steps = written["overrides"]["max_steps"]
    assert written["max_minutes"] is None and 1 <= steps < 800
    assert json.loads((run / "summary.json").read_text())["steps"] == steps
    assert main([*command, "--resume"]) == 0
    assert "steps fit into" not in capsys.readouterr().err
    assert json.loads((run / "options.json").read_text()) == written
