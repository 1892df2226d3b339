"""An interrupted `prepare` continues after its complete shards, if the text is the same."""

import logging

import datasets
import pytest

from spanbert_fast.data import prepare as prepare_module
from spanbert_fast.data.prepare import is_prepared, open_shards, prepare
from spanbert_fast.data.shards import Shard
from spanbert_fast.data.tokenizer import train_wordpiece
from spanbert_fast.errors import UsageError

TEXTS = [
    "\n".join(f"Document {number} has line {line} of some words." for line in range(number % 4))
    for number in range(30)
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(TEXTS, 90)


def corpus(texts):
    return datasets.Dataset.from_dict({"text": list(texts)})


def run(texts, tokenizer, directory, **options):
    return prepare(corpus(texts), tokenizer, directory, shard_tokens=60, progress=False, **options)


class Killed(BaseException):
    pass


@pytest.fixture
def interrupted(tmp_path, tokenizer, monkeypatch):
    """A directory with three complete shards and half of a fourth."""
    write = prepare_module.write_shard

    def write_three(path, *args, **options):
        if path.name == "shard-00003.safetensors":
            path.with_name(path.name + ".partial").write_bytes(b"half")
            raise Killed
        write(path, *args, **options)

    monkeypatch.setattr(prepare_module, "write_shard", write_three)
    with pytest.raises(Killed):
        run(TEXTS, tokenizer, tmp_path / "shards")
    monkeypatch.setattr(prepare_module, "write_shard", write)
    return tmp_path / "shards"


@pytest.fixture
def written(monkeypatch):
    """A list that collects the names of shards as they are written."""
    names, write = [], prepare_module.write_shard

    def spy(path, *args, **options):
        names.append(path.name)
        write(path, *args, **options)

    monkeypatch.setattr(prepare_module, "write_shard", spy)
    return names


def bytes_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_it_goes_on_behind_them(tmp_path, tokenizer, interrupted, written, caplog, monkeypatch):
    """The result has the same files and bytes as an uninterrupted run."""
    assert not is_prepared(interrupted)
    with pytest.raises(UsageError, match="holds no prepared corpus"):
        open_shards(interrupted)
    assert all(Shard.open(path).num_tokens for path in interrupted.glob("*.safetensors"))
    monkeypatch.setattr(logging.getLogger("spanbert_fast"), "propagate", True)
    caplog.set_level("INFO", "spanbert_fast")
    paths = run(TEXTS, tokenizer, interrupted)
    assert written == [path.name for path in paths[3:]] and len(paths) > 4
    assert "going on behind 3 whole shards" in caplog.text
    run(TEXTS, tokenizer, tmp_path / "whole")
    assert bytes_of(interrupted) == bytes_of(tmp_path / "whole")
    with pytest.raises(UsageError, match="already holds a prepared corpus"):
        run(TEXTS, tokenizer, interrupted)


def test_after_the_last_shard_only_the_manifest_is_missing(tmp_path, tokenizer, written):
    run(TEXTS, tokenizer, tmp_path / "whole")
    whole = bytes_of(tmp_path / "whole")
    real = prepare_module.write_whole
    directory = tmp_path / "shards"
    with pytest.MonkeyPatch.context() as patch:

        def stop(path, content):
            raise Killed

        patch.setattr(prepare_module, "write_whole", stop)
        with pytest.raises(Killed):
            run(TEXTS, tokenizer, directory)
    assert prepare_module.write_whole is real
    written.clear()
    run(TEXTS, tokenizer, directory)
    assert written == [] and bytes_of(directory) == whole


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        ("text", 1),  # changes a document in the second shard
        ("a shard", 2),
        ("no shard", 0),
        ("tokenizer", 0),
        ("shard_tokens", 0),
        ("unfinished.json", 0),
        ("fewer documents", 1),
    ],
)
def test_what_is_not_the_same_is_made_again(
    tmp_path, tokenizer, interrupted, written, damage, kept
):
    texts, options = list(TEXTS), {"shard_tokens": 60}
    second = Shard.open(interrupted / "shard-00001.safetensors")
    first = Shard.open(interrupted / "shard-00000.safetensors")
    # the first document of the second shard
    number = [n for n, text in enumerate(TEXTS) if text][first.num_documents]
    if damage == "text":
        texts[number] = texts[number].replace("some", "few")
    elif damage == "a shard":
        path = interrupted / "shard-00002.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "no shard":
        (interrupted / "shard-00000.safetensors").unlink()
    elif damage == "tokenizer":
        tokenizer = train_wordpiece(TEXTS, 80)
    elif damage == "shard_tokens":
        options["shard_tokens"] = 50
    elif damage == "unfinished.json":
        (interrupted / damage).write_text("[")
    else:
        texts = texts[: number + second.num_documents - 1]
    paths = prepare(corpus(texts), tokenizer, interrupted, progress=False, **options)
    assert written == [path.name for path in paths[kept:]]
    prepare(corpus(texts), tokenizer, tmp_path / "whole", progress=False, **options)
    assert bytes_of(interrupted) == bytes_of(tmp_path / "whole")
