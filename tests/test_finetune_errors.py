"""`spanbert-fast finetune` refuses wrong options, bad data, and to overwrite a run."""

import json

import pytest

from finetune_cases import command_of, write_folder
from spanbert_fast.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("finetune"))


@pytest.fixture
def command_line(folder):
    return command_of(folder)


WRONG = [
    (["--epochs", "0"], 2, "--epochs must be above 0"),
    (["--learning-rate", "nan"], 2, "--learning-rate must be above 0 and finite, got nan"),
    (["--weight-decay", "-1"], 2, "--weight-decay must be 0 or more and finite, got -1.0"),
    (["--dropout", "1"], 2, "--dropout must be 0 or in [1/512, 511/512), got 1.0"),
    (["--seeds", "1", "2", "1"], 2, "--seeds must differ, got 1 2 1"),
    (["--max-seq-length", "2"], 2, "--max-seq-length must be at least 3, got 2"),
    (["--max-seq-length", "65"], 2, "--max-seq-length must be at most the checkpoint's 64"),
    (["--set", "bf16=true"], 2, "--set bf16: give --precision instead"),
    (["--set", "no_such=1"], 2, "no_such"),
    (["--train", "nowhere.conll"], 2, "--train nowhere.conll: no such file"),
    (["--model", "no/such/place"], 2, "--model no/such/place is not a directory, and not a name"),
    (["--model", "nowhere"], 2, "--model nowhere: there is no directory"),
    (["--scheme", "bmewo"], 2, "invalid choice"),
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


def test_the_task_stands_before_the_options(tmp_path, capsys):
    """Otherwise the value of an option could be taken for a task."""
    assert main(["finetune", "--output-dir", "ner", "qa"]) == 2
    assert "TASK must come first: finetune TASK --output-dir ..." in capsys.readouterr().err
    assert main(["finetune", "qa", "--output-dir", "ner"]) == 2
    assert "--model must be given" in capsys.readouterr().err
    assert main(["finetune"]) == 2
    assert "required: TASK" in capsys.readouterr().err


def test_a_label_that_training_lacks_is_bad_data(command_line, folder, tmp_path, capsys):
    """This holds for dev and test; `predict` counts such a label as an error of the model."""
    strange = tmp_path / "strange.conll"
    strange.write_text((folder / "dev.conll").read_text() + "\nACME\tB-ORG\n")
    number = len(strange.read_text().splitlines())
    wrong = f"strange.conll:{number}: the entity type ORG is not in the training data"
    assert main(command_line(tmp_path / "a", "--dev", strange, "--epochs", 1)) == 1
    assert wrong in capsys.readouterr().err.strip().splitlines()[-1]
    run = tmp_path / "b"
    more = ["--dev", strange, "--test", strange, "--epochs", 1, "--skip-bad"]
    assert main(command_line(run, *more)) == 0
    assert capsys.readouterr().err.count("strange.conll: 1 bad examples left out") == 2
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["skipped"] == {"dev": 1, "test": 1} and metrics["dev"] == metrics["test"]
    predict_it = ["predict", "ner", str(run / "model"), str(strange), "--output"]
    assert main([*predict_it, str(tmp_path / "p.conll")]) == 0
    recall = float(capsys.readouterr().out.split("recall")[1].split()[0])
    assert recall < metrics["dev"]["recall"] or metrics["dev"]["recall"] == 0


def test_what_no_window_holds_is_bad_data(command_line, folder, tmp_path, capsys):
    """It is found before training, in every file, and by `predict`."""
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
    assert main(["finetune", "ner", "--output-dir", str(run), "--resume", "--seeds", "1"]) == 2
    assert "--seeds cannot be given with --resume" in capsys.readouterr().err
    assert main(["finetune", "qa", "--output-dir", str(run), "--resume"]) == 2
    assert main(["predict", "ner", str(run), str(run / "metrics.json")]) == 1
    assert "is this a model of `finetune`?" in capsys.readouterr().err
