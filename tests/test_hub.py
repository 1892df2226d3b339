"""Checkpoints by Hub names, from a cache in the layout of the Hub's library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_cases import write_folder
from spanbert_fast import hub
from spanbert_fast.errors import UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("finetune"))


def put_into_cache(cache: Path, name: str, folder: Path) -> None:
    """Put a repository into a cache; files are in the snapshot itself, without blobs."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "snapshots").mkdir()
    (root / "snapshots" / COMMIT).symlink_to(folder.resolve(), target_is_directory=True)


def offline(cache: Path, *arguments) -> subprocess.CompletedProcess:
    environment = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "spanbert_fast", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("bert-base-cased", "SpanBERT/spanbert-base-cased", "a/b.c_d-1"):
        assert hub.is_repository(name), name
        hub.check_name(name, "--model")
    for name in ("a/b/c", "./a", "/a/b", "a b", "../x"):
        assert not hub.is_repository(name), name
        with pytest.raises(UsageError, match=r"^--model .* is not a directory, and not a name of"):
            hub.check_name(name, "--model")
    (tmp_path / "bert-base-cased").mkdir()
    assert not hub.is_repository("bert-base-cased")
    assert hub.folder_of("bert-base-cased", "--model") == Path("bert-base-cased")


def test_a_model_of_the_cache_is_used_and_a_missing_one_says_what_was_tried(tmp_path, folder):
    cache = tmp_path / "cache"
    put_into_cache(cache, "somebody/small-bert", folder / "model")
    done = offline(cache, "fill", "they met [MASK]", "--model", "somebody/small-bert", "--top-k", 2)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    done = offline(cache, "fill", "they met [MASK]", "--model", "somebody/another")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--model somebody/another: there is no directory" in line
    assert str(cache) in line and "HF_HUB_OFFLINE is set" in line
