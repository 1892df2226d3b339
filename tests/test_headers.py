"""Files with false headers are refused, with file, field and value, before memory is allocated."""

import json
import os
import shutil

import numpy as np
import pytest
from datasets import Dataset
from safetensors.numpy import save_file

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.data import shards as shards_module
from spanbert_fast.data.prepare import open_shards, prepare
from spanbert_fast.data.shards import Shard
from spanbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.models import SpanBertModel
from spanbert_fast.tasks import task_class
from spanbert_fast.training.finetuning.options import FinetuneOptions, options_of_run
from spanbert_fast.training.finetuning.run_directory import load_task, save_task

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
    for name in set(manifest) - {"words"}:  # corpora of earlier versions lack this file
        path.write_text(json.dumps({k: v for k, v in manifest.items() if k != name}))
        with pytest.raises(DataError, match=f"corpus.json: {name} must be .*, it is missing"):
            open_shards(tmp_path)
    path.unlink()
    os.mkfifo(path)  # nobody writes to this pipe: opening it would never return
    with pytest.raises(UsageError, match="holds no prepared corpus"):
        open_shards(tmp_path)


def test_a_shard_that_lies_is_refused(tmp_path):
    """The shard's digest is right, as a forger would make it."""
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


# Checkpoints, tokenizers and runs


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small checkpoint with its tokenizer; tests copy its files and change them."""
    folder = tmp_path_factory.mktemp("good")
    tokenizer = train_wordpiece(TEXTS, 60)
    config = SpanBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    SpanBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_task(task_class("ner")(labels=["O", "B-X", "I-X"]), folder)
    data = {name: str(folder / "config.json") for name in ("train", "dev")}
    options = FinetuneOptions("ner", str(folder), output_dir=str(folder), **data)
    (folder / "options.json").write_text(json.dumps(options.to_json()))
    return folder


def spoilt(good, folder, name, change, inside=None):
    """A copy in which an object in a file (all of it, or the one under a key) has other fields."""
    shutil.copytree(good, folder, dirs_exist_ok=True)
    content = json.loads((folder / name).read_text())
    (content if inside is None else content[inside]).update(change)
    (folder / name).write_text(json.dumps(content))
    return folder


COUNT = "must be a whole number in"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, f"num_hidden_layers {COUNT} [1, 1024], got 1000000000"),
        ({"num_hidden_layers": 1.0}, f"num_hidden_layers {COUNT} [1, 1024], got 1.0"),
        ({"vocab_size": 2**40}, f"vocab_size {COUNT} [1, 16777216], got 1099511627776"),
        ({"vocab_size": True}, f"vocab_size {COUNT} [1, 16777216], got true"),
        ({"hidden_size": "16"}, f'hidden_size {COUNT} [1, 65536], got "16"'),
        ({"hidden_size": None}, f"hidden_size {COUNT} [1, 65536], got null"),
        ({"num_attention_heads": 0}, f"num_attention_heads {COUNT} [1, 4096], got 0"),
        ({"num_attention_heads": 3}, "hidden_size must be a multiple of num_attention_heads = 3"),
        ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob must be a number in [0, 1]"),
        ({"layer_norm_eps": []}, "layer_norm_eps must be a number in [0, 1], got []"),
        ({"id2label": {"x": "a"}}, "id2label must be an object of a string of a whole number"),
        ({"id2label": {"0": 1}}, "id2label must be an object of"),
        ({"torch_dtype": "float7"}, "torch_dtype must be null or "),
        ({"hidden_act": None}, "hidden_act must be a string, got null"),
        ({"is_decoder": "no"}, 'is_decoder must be true or false, got "no"'),
        ({"hidden_act": "relu"}, 'cannot be used: hidden_act must be "gelu"'),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(good, tmp_path, change, message):
    folder = spoilt(good, tmp_path, "config.json", change)
    with pytest.raises(DataError) as caught:
        SpanBertModel.from_pretrained(folder)
    assert f"{folder / 'config.json'}" in str(caught.value)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '"x"', "[" * 100_000, "{", '{"a": ' + "1" * 5000]
)
def test_a_file_that_is_no_object_is_refused(good, tmp_path, text):
    readers = {
        "config.json": SpanBertModel.from_pretrained,
        "tokenizer.json": load_tokenizer,
        "tokenizer_config.json": load_tokenizer,
        "task.json": load_task,
        "options.json": options_of_run,
    }
    for name, read in readers.items():
        shutil.copytree(good, tmp_path, dirs_exist_ok=True)
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=f"{name}: (not JSON|must hold an object)") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "task.json", "options.json"]
)
def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused(good, tmp_path, name):
    reads = {"tokenizer.json": load_tokenizer, "task.json": load_task}
    read = reads.get(name, SpanBertModel.from_pretrained)
    read = options_of_run if name == "options.json" else read
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    for make, kind in ((os.mkfifo, "pipe"), (os.mkdir, "folder")):
        path = tmp_path / name
        path.unlink()
        make(path)
        with pytest.raises(DataError, match=f"{name}: must be a regular file, is a {kind}"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("inside", "change", "message"),
    [
        ("model", {"vocab": {"[UNK]": 2**31}}, "vocab must be an object of tokens with an id"),
        ("model", {"vocab": {"[UNK]": -1}}, "vocab must be an object of tokens with an id"),
        ("model", {"vocab": {"[UNK]": 1, "a": 1}}, "vocab must be an object of tokens"),
        ("model", {"vocab": ["[UNK]"]}, "vocab must be an object of tokens"),
        (None, {"added_tokens": [{"id": 2**32, "content": "a"}]}, "added_tokens must be objects"),
        (None, {"added_tokens": {}}, "added_tokens must be objects"),
        (None, {"model": None}, "model must be an object, got null"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_refused(good, tmp_path, inside, change, message):
    folder = spoilt(good, tmp_path, "tokenizer.json", change, inside)
    with pytest.raises(DataError, match=f"tokenizer.json: {message}"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("task.json", {"task": "nothing"}, 'task must be "qa" or .*, got "nothing"'),
        ("task.json", {"max_seq_length": 2**40}, f"max_seq_length {COUNT}"),
        ("task.json", {"labels": [1]}, "labels must be null or a list of a string"),
        ("task.json", {"other": 1}, "makes no task ner .*'other'"),
        ("task.json", {"word_column": "x"}, f'word_column {COUNT} .*, got "x"'),
        ("options.json", {"epochs": "3"}, 'epochs must be null or a number in .*, got "3"'),
        ("options.json", {"seed": 2**70}, f"seed {COUNT}"),
        ("options.json", {"train": 3}, "train must be null or a string, got 3"),
        ("options.json", {"model": None}, "model must be a string, got null"),
        ("options.json", {"task_options": 3}, "task_options must be an object, got 3"),
    ],
)
def test_a_run_s_file_that_cannot_be_is_refused(good, tmp_path, name, change, message):
    folder = spoilt(good, tmp_path, name, change)
    with pytest.raises(DataError, match=f"{name}: {message}".replace("[", r"\[")):
        load_task(folder) if name == "task.json" else options_of_run(folder)


@pytest.mark.parametrize("name", ["train", "dev"])
def test_a_run_s_data_may_be_null_but_not_left_out(good, tmp_path, name):
    folder = spoilt(good, tmp_path, "options.json", {name: None})
    assert getattr(options_of_run(folder), name) is None
    saved = json.loads((folder / "options.json").read_text())
    del saved[name]
    (folder / "options.json").write_text(json.dumps(saved))
    with pytest.raises(DataError, match=f"options.json: {name} must be null or a .* is missing"):
        options_of_run(folder)
