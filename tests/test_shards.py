"""Prepared corpora give back their text, and broken files are refused by name."""

import json
import pickle

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from spanbert_fast.data import encode as encode_module
from spanbert_fast.data import prepare as prepare_module
from spanbert_fast.data.prepare import is_prepared, open_shards, prepare
from spanbert_fast.data.shards import Shard, write_shard
from spanbert_fast.data.tokenizer import (
    load_tokenizer,
    tokenizer_fingerprint,
    train_wordpiece,
)
from spanbert_fast.data.words import word_start_table
from spanbert_fast.errors import DataError, UsageError

TEXTS = [
    f"Document {number} has some words.\n\n"
    + "\n".join(
        " ".join(f"word{number * i % 37}s" for i in range(length)) for length in range(number % 7)
    )
    for number in range(1, 40)
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(TEXTS, 120)


def corpus(texts):
    return datasets.Dataset.from_dict({"text": list(texts)})


def lines_of(shards: list[Shard]) -> list[list[list[int]]]:
    """Documents as lists of lines as lists of ids."""
    documents = []
    for shard in shards:
        lines = np.split(shard.tokens, shard.line_offsets[1:-1])
        for first, last in zip(shard.document_offsets, shard.document_offsets[1:], strict=False):
            documents.append([line.tolist() for line in lines[first:last]])
    return documents


def expected_lines(texts, tokenizer) -> list[list[list[int]]]:
    documents = []
    for text in texts:
        lines = [tokenizer(line, add_special_tokens=False).input_ids for line in text.split("\n")]
        documents.append([line for line in lines if line])
    return [document for document in documents if document]


@pytest.mark.parametrize("shard_tokens", [1, 100, 1 << 20])
def test_prepared_tokens_are_the_tokenizer_s(tmp_path, tokenizer, shard_tokens):
    texts = ["", *TEXTS, " \n \n", "last"]
    paths = prepare(corpus(texts), tokenizer, tmp_path / "out", shard_tokens=shard_tokens)
    shards = open_shards(tmp_path / "out", tokenizer_fingerprint(tokenizer))
    assert [shard.path for shard in shards] == paths
    expected = expected_lines(texts, tokenizer)
    # no document is split between shards
    assert len(shards) == {1: len(expected), 1 << 20: 1}.get(shard_tokens, len(shards)) > 0
    assert lines_of(shards) == expected
    table = word_start_table(tokenizer)
    for shard in shards:
        assert shard.tokens.dtype == np.uint16 and shard.vocab_size == len(tokenizer)
        assert not shard.tokens.flags.writeable
        starts = shard.word_starts(0, shard.num_tokens)
        assert np.array_equal(starts, table[shard.tokens])
    assert not all(shard.word_starts(0, shard.num_tokens).all() for shard in shards)
    manifest = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert manifest["documents"] == len(expected)
    assert manifest["lines"] == sum(map(len, expected))
    assert manifest["tokens"] == sum(shard.num_tokens for shard in shards)


def test_small_batches_give_the_same_shard(tmp_path, tokenizer, monkeypatch):
    prepare(corpus(TEXTS), tokenizer, tmp_path / "large")
    monkeypatch.setattr(prepare_module, "_BATCH_CHARACTERS", 50)
    monkeypatch.setattr(encode_module, "_PIECE", 20)  # lines are cut at blanks
    prepare(corpus(TEXTS), tokenizer, tmp_path / "small")
    name = "shard-00000.safetensors"
    assert (tmp_path / "large" / name).read_bytes() == (tmp_path / "small" / name).read_bytes()


def test_the_directory_holds_its_tokenizer(tmp_path, tokenizer):
    prepare(corpus(TEXTS), tokenizer, tmp_path)
    assert is_prepared(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    open_shards(tmp_path, tokenizer_fingerprint(loaded))


def test_special_tokens_in_a_text_are_plain_text(tmp_path, tokenizer):
    prepare(corpus(["some [MASK] words [SEP] s"]), tokenizer, tmp_path)
    (shard,) = open_shards(tmp_path)
    special = {tokenizer.mask_token_id, tokenizer.sep_token_id}
    assert special.isdisjoint(shard.tokens.tolist())


def test_a_long_line_is_not_truncated(tmp_path, tokenizer):
    tokenizer = load_and_limit(tokenizer, tmp_path / "tokenizer")
    prepare(corpus(["words " * 5000]), tokenizer, tmp_path / "out")
    (shard,) = open_shards(tmp_path / "out")
    assert shard.num_tokens >= 5000


def load_and_limit(tokenizer, directory):
    tokenizer.save_pretrained(directory)
    limited = load_tokenizer(directory)
    limited.model_max_length = 8
    limited("words " * 20, truncation=True, padding="max_length", max_length=8)
    assert limited.backend_tokenizer.truncation is not None
    return limited


def test_a_full_disk_leaves_no_file(tmp_path, tokenizer, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(corpus(TEXTS), tokenizer, tmp_path)
    assert list(tmp_path.glob("shard-*")) == [] and not is_prepared(tmp_path)


def test_prepare_refuses_what_cannot_be(tmp_path, tokenizer):
    with pytest.raises(DataError, match="the corpus is empty"):
        prepare(corpus(["", " \n"]), tokenizer, tmp_path / "a")
    assert not is_prepared(tmp_path / "a")
    with pytest.raises(UsageError, match="shard_tokens must be positive, got 0"):
        prepare(corpus(TEXTS), tokenizer, tmp_path / "b", shard_tokens=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is a file"):
        prepare(corpus(TEXTS), tokenizer, tmp_path / "file")


def small_shard(path, *, vocab_size=1000, num_tokens=1000):
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, vocab_size, num_tokens)
    starts = rng.random(num_tokens) < 0.7
    cuts = np.sort(rng.choice(np.arange(1, num_tokens), 99, replace=False))
    line_lengths = np.diff(np.concatenate(([0], cuts, [num_tokens])))
    write_shard(
        path, tokens, starts, line_lengths, np.full(20, 5), tokenizer="0123", vocab_size=vocab_size
    )
    return tokens, starts


@pytest.mark.parametrize("vocab_size", [1, 1 << 16, (1 << 16) + 1, 250_000])
def test_ids_take_the_smallest_dtype(tmp_path, vocab_size):
    tokens, _ = small_shard(tmp_path / "a", vocab_size=vocab_size)
    shard = Shard.open(tmp_path / "a", "0123")
    assert shard.tokens.dtype == (np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    assert np.array_equal(shard.tokens, tokens)


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 1000), length=st.integers(0, 1000))
def test_word_starts_of_any_range(shard_and_starts, start, length):
    shard, starts = shard_and_starts
    got = shard.word_starts(start, min(length, 1000 - start))
    assert got.dtype == np.bool_
    assert np.array_equal(got, starts[start : start + length])


@pytest.fixture(scope="module")
def shard_and_starts(tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / "a"
    _, starts = small_shard(path)
    return Shard.open(path), starts


def test_a_shard_is_mapped_and_pickles_by_its_path(tmp_path):
    tokens, _ = small_shard(tmp_path / "a", num_tokens=200_000)
    shard = Shard.open(tmp_path / "a")
    content = pickle.dumps(shard)
    assert len(content) < 1000
    assert np.array_equal(pickle.loads(content).tokens, tokens)
    # the array is a view of the mapped file
    address = shard.tokens.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        ranges = [line.split()[0].split("-") for line in maps if str(tmp_path / "a") in line]
    assert any(int(low, 16) <= address < int(high, 16) for low, high in ranges)


def test_no_corruption_goes_unnoticed(tmp_path):
    path = tmp_path / "a.safetensors"
    small_shard(path)
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    header = 8 + int.from_bytes(content[:8], "little")
    # cuts in all parts of the file: the first bytes, the header, and the arrays
    places = [*range(12), *rng.integers(12, header, 60), *rng.integers(header, len(content), 60)]
    for place in map(int, places):
        broken = bytearray(content)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(DataError) as caught:
            Shard.open(path, "0123")
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 8, 50, 0.3, 0.9, -1])
def test_a_truncated_shard_is_refused(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    small_shard(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    for verify in (True, False):
        with pytest.raises(DataError, match="a.safetensors: truncated, corrupt or not a shard"):
            Shard.open(path, verify=verify)


def test_what_is_no_shard_of_this_corpus_is_refused(tmp_path, tokenizer):
    prepare(corpus(TEXTS), tokenizer, tmp_path, shard_tokens=100)
    path = sorted(tmp_path.glob("shard-*"))[1]
    with pytest.raises(DataError, match=r"corpus.json: made by another tokenizer \(fingerprint"):
        open_shards(tmp_path, "0" * 16)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match="shard-00001.safetensors: the shard is missing"):
        open_shards(tmp_path)
    small_shard(path)  # the shards have different tokenizers, though none was asked for
    with pytest.raises(DataError, match="shard-00001.safetensors: made by another tokenizer"):
        open_shards(tmp_path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(DataError, match="shard-00001.safetensors: not a shard of the format"):
        open_shards(tmp_path)
    path.write_bytes(content)
    assert len(open_shards(tmp_path)) > 2
    with pytest.raises(UsageError, match="nowhere: holds no prepared corpus"):
        open_shards(tmp_path / "nowhere")


def test_write_shard_refuses_lengths_that_do_not_fit(tmp_path):
    tokens, starts = np.arange(6), np.ones(6, bool)
    for line_lengths, document_lengths in (
        ([3, 2], [2]),
        ([3, 3], [1]),
        ([6, 0], [2]),
        ([3, 3], [2, 0]),
        ([6], []),
    ):
        with pytest.raises(ValueError, match="line_lengths and document_lengths must be positive"):
            write_shard(
                tmp_path / "a",
                tokens,
                starts,
                np.array(line_lengths, np.int64),
                np.array(document_lengths, np.int64),
                tokenizer="0",
                vocab_size=6,
            )
    assert list(tmp_path.iterdir()) == []
