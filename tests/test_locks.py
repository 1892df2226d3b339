"""Only one process at a time writes into a directory, and a dead process holds no lock."""

import os
import signal
import subprocess
import sys

import pytest

from spanbert_fast.cli import main
from spanbert_fast.data.locks import FILE, locked
from spanbert_fast.errors import UsageError

HOLDER = """
import os, sys, time
from spanbert_fast.data.locks import locked
with locked(sys.argv[1]):
    if sys.argv[2] == "fork":
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, b".")
            time.sleep(60)  # a worker that outlives its parent
        os.read(read, 1)  # it has let go of the lock
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def hold(directory, how="alone") -> subprocess.Popen:
    """Start a process that holds the lock; it has the lock when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory), how],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    assert process.stdout.readline().strip() == str(process.pid)
    return process


@pytest.fixture
def holder(tmp_path):
    process = hold(tmp_path / "run")
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_directory_is_made_held_and_let_go(tmp_path):
    # the same process takes it twice
    with locked(tmp_path / "a" / "b"), locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / FILE).is_file()
    assert not (tmp_path / "a" / "b").exists(), "it stayed empty"
    with locked(tmp_path / "c"):
        (tmp_path / "c" / "file").write_text("")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["file"]
    with pytest.raises(UsageError, match="file is a file"), locked(tmp_path / "c" / "file"):
        pass


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_another_process_is_kept_out_until_the_holder_dies(tmp_path, how):
    process = hold(tmp_path / "run", how)
    with pytest.raises(UsageError, match=f"being written by another process .*{process.pid} on"):
        with locked(tmp_path / "run"):
            pass
    process.kill()
    process.wait()
    with locked(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / FILE).read_text()
    if how == "fork":
        os.killpg(process.pid, signal.SIGKILL)


def test_no_command_writes_into_a_live_run(tmp_path, holder, corpus_file, small_run, capsys):
    """It is refused before any text is read (this text does not exist), even with --overwrite."""
    run = ["--output-dir", str(tmp_path / "run")]
    (tmp_path / "run" / "options.json").write_text("{}")
    pretrain = ["pretrain", "--data", str(corpus_file), *small_run]
    data = [f"--{split}={corpus_file}" for split in ("train", "dev")]
    finetune = ["finetune", "ner", "--model", str(tmp_path), *data]
    for command in (pretrain, ["prepare", "--data", "nowhere.txt"], finetune):
        for more in ([], ["--overwrite"]):
            assert main([*command, *run, *more]) == 2
            *said, line = capsys.readouterr().err.strip().splitlines()
            assert all(text.startswith("precision ") for text in said)
            assert f"is being written by another process (process {holder.pid}" in line
    assert (tmp_path / "run" / "options.json").read_text() == "{}"
