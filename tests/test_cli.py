"""The command line's help, exit codes and one-line errors."""

import json

import pytest

from spanbert_fast.cli import COMMANDS, main


def last_line(capsys) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"spanbert-fast {name}" in out and "example" in out


def test_front_door(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert main([]) == 2
    capsys.readouterr()
    assert main(["train"]) == 2
    assert "COMMAND must be one of pretrain" in last_line(capsys)
    assert main(["--version"]) == 0


def test_env_names_every_op_and_versions(capsys):
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["libraries"]["torch"] and found["cpu"]["cores"] >= 1
    from spanbert_fast.ops._implementations import OPS

    assert {op["op"] for op in found["ops"]} == set(OPS)
    assert all(op["name"] and op["reason"] for op in found["ops"])
    assert main(["env"]) == 0
    assert "varlen_attention" in capsys.readouterr().out


USAGE = [
    (["--recipe", "huge"], "--recipe must be one of spanbert-base, spanbert-large, small, tiny"),
    (["--data", "no/such/file.txt"], "no/such/file.txt"),
    (["--max-steps", "0"], "--max-steps must be at least 1, got 0"),
    (["--mask-ratio", "1.5"], "--mask-ratio must be in (0, 1], got 1.5"),
    (["--max-span-words", "0"], "--max-span-words must be at least --min-span-words = 1, got 0"),
    (["--hidden-size", "100"], "--hidden-size must be a multiple of --num-attention-heads = 3"),
    (["--tokens-per-batch", "10"], "--tokens-per-batch must be at least --max-seq-length = 128"),
    (["--init-from", "x", "--hidden-size", "64"], "--hidden-size cannot be given with --init-from"),
    (["--set", "torch_compile"], "--set must be NAME=VALUE, got torch_compile"),
    (["--set", "no_such_field=1"], "no_such_field"),
    (["--init-from", "no/such/model"], "--init-from no/such/model is not a directory"),
    (["--resume"], "holds no run to resume"),
    (["--init-from", "."], "--init-from . holds no checkpoint (no config.json)"),
    (["--set", "max_steps=5"], "--set max_steps: give --max-steps instead"),
    (["--set", "bf16=true"], "--set bf16: give --precision instead"),
    (["--set", "load_best_model_at_end=true"], "--set load_best_model_at_end has no effect"),
    (["--seed", "4294967296"], "--seed must be below 2**32, got 4294967296"),
    (["--max-span-words", "257"], "--max-span-words must be at most 256, got 257"),
    (["--held-out", "1"], "--held-out must be in (0, 1), got 1"),
    (
        ["--precision", "fp16", "--set", "use_cpu=true"],
        "--precision must be auto, fp32 or bf16 on a CPU, got fp16",
    ),
    (["--data", __file__], "the suffix must be one of .txt, .text, .jsonl, .json, .parquet, with"),
]


@pytest.mark.parametrize(("options", "message"), USAGE, ids=[" ".join(o) for o, _ in USAGE])
def test_wrong_usage_is_one_line_and_code_2(options, message, tmp_path, capsys):
    assert main(["pretrain", "--output-dir", str(tmp_path / "run"), *options]) == 2
    assert message in last_line(capsys)


def test_a_missing_output_dir_and_bad_option(capsys):
    assert main(["pretrain"]) == 2
    assert "--output-dir must be given" in last_line(capsys)
    assert main(["pretrain", "--no-such-option"]) == 2


def test_broken_text_names_the_file(tmp_path, capsys):
    cases = {
        "empty.txt": (b"\n\n", "empty.txt"),
        "bytes.txt": (b"fine text\n\nthen \xff\xfe bytes\n", "16"),
        "fields.jsonl": (b'{"text": "one"}\n{"body": "two"}\n', "fields.jsonl"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        run = tmp_path / f"run-{name}"
        assert main(["pretrain", "--data", str(path), "--output-dir", str(run)]) == 1
        line = last_line(capsys)
        assert name in line and message in line


def test_an_output_dir_with_a_run_is_kept(tmp_path, corpus_file, small_run, capsys):
    run = tmp_path / "run"
    options = ["pretrain", "--data", str(corpus_file), "--output-dir", str(run), *small_run]
    assert main([*options, "--max-steps", "2"]) == 0
    capsys.readouterr()
    assert main([*options, "--max-steps", "2"]) == 2
    assert "already holds a run" in last_line(capsys)
    assert main(["pretrain", "--output-dir", str(run), "--resume", "--learning-rate", "1"]) == 2
    assert "--learning-rate 1.0 differs from the run's" in last_line(capsys)
    note = run / "notes.txt"
    note.write_text("mine")
    assert main([*options, "--max-steps", "1", "--overwrite"]) == 0
    assert note.read_text() == "mine", "only what a run writes is replaced"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1

    # a longer sequence and a larger vocabulary do not fit the run's small model
    model = str(run / "model")
    base = ["pretrain", "--data", str(corpus_file), "--init-from", model, "--max-steps", "1"]
    assert main([*base, "--output-dir", str(tmp_path / "a"), "--max-seq-length", "1024"]
                + ["--tokens-per-batch", "1024"]) == 2  # fmt: skip
    assert "beyond the checkpoint's position table of 512" in last_line(capsys)
    config = json.loads((run / "model" / "config.json").read_text())
    (run / "model" / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    assert main([*base, "--output-dir", str(tmp_path / "b")]) == 1
    line = last_line(capsys)
    assert model in line and "intermediate.dense" in line


def test_an_overwritten_run_is_not_what_the_new_one_starts_from(trained_model, corpus_file, capsys):
    run = trained_model.parent
    overwrite = ["pretrain", "--output-dir", str(run), "--overwrite", "--max-steps", "1"]
    for option, folder in (("init-from", "model"), ("tokenizer", "model"), ("data", "shards")):
        given = ["--data", str(corpus_file)] if option != "data" else []
        assert main([*overwrite, *given, f"--{option}", str(run / folder)]) == 2
        assert f"--{option} {run / folder} belongs to the run in --output-dir" in last_line(capsys)
    assert (trained_model / "model.safetensors").is_file() and (run / "options.json").is_file()


def test_prepared_shards_outlive_a_mistyped_overwrite(tmp_path, corpus_file, capsys):
    shards = tmp_path / "shards"
    options = ["prepare", "--output-dir", str(shards), "--vocab-size", "200"]
    assert main([*options, "--data", str(corpus_file)]) == 0
    before = (shards / "corpus.json").read_bytes()
    assert main([*options, "--data", str(tmp_path / "typo.txt"), "--overwrite"]) == 2
    assert "typo.txt: no such file" in last_line(capsys)
    assert (shards / "corpus.json").read_bytes() == before
    corpus = tmp_path / "short.txt"
    corpus.write_text(corpus_file.read_text()[:2000])
    assert main([*options, "--data", str(corpus), "--overwrite"]) == 0
    assert (shards / "corpus.json").read_bytes() != before


def test_a_kill_behind_the_last_shard_leaves_nothing(tmp_path, corpus_file, capsys):
    options = [
        "--data",
        str(corpus_file),
        "--vocab-size",
        "300",
        "--output-dir",
        str(tmp_path / "s"),
    ]
    assert main(["prepare", *options]) == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    (tmp_path / "s" / "unfinished.json").write_text("{}")
    assert main(["prepare", *options]) == 2
    assert "already holds shards" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == whole


def test_an_interrupt_while_a_command_is_imported(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("spanbert_fast.cli.importlib.import_module", interrupted)
    assert main(["prepare", "--help"]) == 130
    assert capsys.readouterr().err.strip() == "spanbert-fast prepare: interrupted"


def test_fill(trained_model, tmp_path, capsys):
    text = "The [MASK] [MASK] the garden."
    model = ["--model", str(trained_model)]
    assert main(["fill", text, text, *model, "--top-k", "3", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 6 and all("[MASK]" not in line["text"] for line in lines)
    for head in ("mlm", "sbo"):
        assert main(["fill", text, *model, "--head", head]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    assert main(["fill", text, "--model", str(tmp_path / "none")]) == 2
    assert "is not a directory" in last_line(capsys)
    assert main(["fill", "no mask here", *model]) == 1
    assert "[MASK]" in last_line(capsys)
