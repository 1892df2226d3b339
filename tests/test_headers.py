"""Files that lie about themselves: refused by name, field and value, before anything is made."""

import json
import os

import numpy as np
import pytest
from datasets import Dataset
from safetensors.numpy import save_file

from spanbert_fast.data import shards as shards_module
from spanbert_fast.data.prepare import open_shards, prepare
from spanbert_fast.data.shards import Shard
from spanbert_fast.data.tokenizer import train_wordpiece
from spanbert_fast.errors import DataError, UsageError

TEXTS = [f"Document {number} has some words.\nAnd a second line." for number in range(12)]


def test_a_manifest_that_lies_is_refused(tmp_path):
    prepare(
        Dataset.from_dict({"text": TEXTS}), train_wordpiece(TEXTS, 60), tmp_path, shard_tokens=10
    )
    path = tmp_path / "corpus.json"
    manifest = json.loads(path.read_text())
    names = manifest["shards"]
    for text, message in (
        ("{", "corpus.json: not JSON"),
        ("[" * 100_000, "corpus.json: not JSON"),
        ("[]", r"corpus.json: must hold an object, got \[\]"),
        ("null", "corpus.json: must hold an object, got null"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            open_shards(tmp_path)
    for change, message in (
        ({"format": "spanbert_fast.corpus.2"}, "format must be .*corpus.1.*corpus.2"),
        ({"tokenizer": 3}, "tokenizer must be a string, got 3"),
        ({"tokenizer": "0" * 16}, "shard-00000.*: made by another tokenizer"),
        ({"shards": [*names, names[1]]}, "shards must hold each file once, got shard-00001"),
        ({"shards": names[:-1]}, "documents must be that of the shards, .*, got 12"),
        ({"shards": ["../x"]}, "shards must be a list of a file's name, got"),
        ({"shards": names + [None]}, "shards must be a list of a file's name, got"),
        ({"documents": 2**40}, "documents must be that of the shards, 12, got 1099511627776"),
        ({"tokens": 1}, "tokens must be that of the shards, "),
        ({"lines": "7"}, 'lines must be a whole number in .*, got "7"'),
    ):
        path.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(DataError, match=message) as caught:
            open_shards(tmp_path)
        assert "\n" not in str(caught.value)
    for name in manifest:
        path.write_text(json.dumps({k: v for k, v in manifest.items() if k != name}))
        with pytest.raises(DataError, match=f"corpus.json: {name} must be .*, it is missing"):
            open_shards(tmp_path)
    path.unlink()
    os.mkfifo(path)  # which nobody writes to: opening it would wait for good
    with pytest.raises(UsageError, match="holds no prepared corpus"):
        open_shards(tmp_path)


def test_a_shard_that_lies_is_refused(tmp_path):
    """Its digest is right: somebody has made it so."""
    path = tmp_path / "a.safetensors"
    arrays = {
        "tokens": np.array([1, 2, 7], np.uint16),
        "word_start_bits": np.array([7], np.uint8),
        "line_offsets": np.array([0, 3]),
        "document_offsets": np.array([0, 1]),
    }
    good = {"format": "spanbert_fast.shard.1", "tokenizer": "0", "vocab_size": 8}

    def write(header):
        header = {**header, "digest": shards_module._digest(header, arrays)}
        save_file(arrays, path, metadata={"shard": json.dumps(header)})

    write(good)
    assert Shard.open(path).num_tokens == 3
    for change, message in (
        ({"vocab_size": 7}, "every token must be below vocab_size = 7, got 7"),
        ({"vocab_size": 2**40}, "vocab_size must be a whole number in .*, got 1099511627776"),
        ({"vocab_size": None}, "vocab_size must be a whole number in .*, got null"),
        ({"vocab_size": "8"}, 'vocab_size must be a whole number in .*, got "8"'),
        ({"tokenizer": []}, r"tokenizer must be a string, got \[\]"),
        ({"format": 1}, "format must be .*, got 1"),
    ):
        write({**good, **change})
        with pytest.raises(DataError, match=f"a.safetensors: {message}"):
            Shard.open(path)
    for text in ("[1]", "3", '"x"', "[" * 100_000):
        save_file(arrays, path, metadata={"shard": text})
        with pytest.raises(DataError, match="a.safetensors: (must hold an object|truncated)"):
            Shard.open(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="a.safetensors: must be a regular file, is a pipe"):
        Shard.open(path)
