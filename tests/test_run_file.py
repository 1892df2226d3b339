"""Runs from a file: `--config`, options typed after it, and a run's own options.json."""

import json

import pytest

from spanbert_fast.cli import main
from spanbert_fast.commands import finetune, pretrain
from spanbert_fast.commands.run_file import expand
from spanbert_fast.errors import UsageError
from spanbert_fast.training.finetuning.options import FinetuneOptions
from spanbert_fast.training.pretraining.options import PretrainOptions

YAML = """
output-dir: runs/a
recipe: small
learning_rate: 3e-4
data: [a.txt, b.txt]
static_shapes: true
cuda-graph: false
tokenizer: null
set: {torch_compile: false, optim: adamw_torch}
"""


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def options(argv):
    return pretrain.options_of(pretrain.parser().parse_args(expand(argv)), 1)


def test_a_yaml_file_gives_options_and_what_is_typed_wins(tmp_path):
    path = written(tmp_path, "run.yaml", YAML)
    found = options(["--config", path, "--learning-rate", "1e-4", "--output-dir", "runs/b"])
    assert found == PretrainOptions(
        output_dir="runs/b",
        recipe_name="small",
        overrides={"learning_rate": 1e-4},
        data=("a.txt", "b.txt"),
        static_shapes=True,
        training_arguments={"torch_compile": False, "optim": "adamw_torch"},
    )
    # before it or after it
    assert options(["--output-dir", "runs/b", f"--config={path}", "--learning-rate=1e-4"]) == found


def test_options_json_of_a_pretraining_gives_the_same_options(tmp_path):
    wanted = PretrainOptions(
        output_dir="runs/c",
        overrides={"max_steps": 7, "replacement": "token"},
        seed=3,
        save_steps=2,
        training_arguments={"torch_compile": False},
    )
    path = written(tmp_path, "options.json", json.dumps(wanted.to_json(1)))
    assert options(["--config", path]) == wanted


def test_options_json_of_a_finetuning_gives_the_same_options(tmp_path):
    for name in ("train", "dev"):
        written(tmp_path, f"{name}.tsv", "sentence\tlabel\na\t1\n")
    wanted = FinetuneOptions(
        task="classify",
        model="bert-base-cased",
        train=str(tmp_path / "train.tsv"),
        dev=str(tmp_path / "dev.tsv"),
        output_dir="runs/d",
        task_options={"text_columns": ["sentence"], "regression": True, "max_seq_length": 64},
        seed=5,
        skip_bad=True,
        epochs=2.5,
    )
    path = written(tmp_path, "options.json", json.dumps(wanted.to_json()))
    for argv in (["--config", path], ["classify", "--config", path]):
        given = vars(finetune.parser().parse_args(expand(argv, {"seed": "seeds"})))
        assert given.pop("config", None) is None
        assert given.pop("seeds") == [5] and given.pop("task") == "classify"
        assert given.pop("text_columns") == ["sentence"] and given.pop("regression") is True
        assert given.pop("max_seq_length") == 64
        for name, value in given.items():
            assert value == getattr(wanted, name), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must hold names and values"),
        ("a: [\n", "run.yaml: while parsing"),
        ("learning_rate: fast\n", "argument --learning-rate: invalid float value: 'fast'"),
        ("no_such_option: 1\n", "unrecognized arguments: --no-such-option=1"),
    ],
)
def test_a_mistake_in_the_file_ends_in_one_line(text, message, tmp_path, capsys):
    path = written(tmp_path, "run.yaml", text)
    assert main(["pretrain", "--config", path, "--output-dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="no.yaml: no such file"):
        expand(["--config", str(tmp_path / "no.yaml")])
    with pytest.raises(UsageError, match="--config needs a file"):
        expand(["--config"])


def test_the_task_is_the_first_word_alone(capsys):
    arguments = finetune.parser().parse_args(["qa", "--output-dir", "ner"])
    assert (arguments.task, arguments.output_dir) == ("qa", "ner")
    for wrong in (["ner", "--doc-stride", "3"], ["qa", "--scheme", "bio"], ["no"], []):
        with pytest.raises(SystemExit):
            finetune.parser().parse_args(wrong)
    capsys.readouterr()
