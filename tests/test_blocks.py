"""Blocks follow BERT's rule, written out line by line; no token is lost or repeated."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from spanbert_fast.data.batches import TokenBudgetBatches
from spanbert_fast.data.blocks import BlockDataset
from spanbert_fast.data.shards import Shard, write_shard
from spanbert_fast.errors import DataError, UsageError

CLS, SEP = 900, 901
VOCAB = 902

# documents as lists of lines as lists of ids
Corpus = list[list[list[int]]]


def random_corpus(num_documents: int, seed: int = 0, max_line: int = 40) -> Corpus:
    """Ids count up, as far as the vocabulary allows, so that the order of tokens shows."""
    rng = np.random.default_rng(seed)
    corpus, token = [], 0
    for _ in range(num_documents):
        document = []
        for length in rng.integers(1, max_line + 1, rng.integers(1, 12)).tolist():
            document.append([(token + i) % CLS for i in range(length)])
            token += length
        corpus.append(document)
    return corpus


def make_shards(directory, corpus: Corpus, per_shard: int = 7) -> list[Shard]:
    directory.mkdir(exist_ok=True)
    shards = []
    for first in range(0, len(corpus), per_shard):
        documents = corpus[first : first + per_shard]
        lines = [line for document in documents for line in document]
        tokens = np.array([token for line in lines for token in line])
        path = directory / f"shard-{len(shards):05d}"
        write_shard(
            path,
            tokens,
            tokens % 3 > 0,
            np.array([len(line) for line in lines]),
            np.array([len(document) for document in documents]),
            tokenizer="0",
            vocab_size=VOCAB,
        )
        shards.append(Shard.open(path))
    return shards


def make_blocks(directory, corpus: Corpus, per_shard: int = 7, **options) -> BlockDataset:
    shards = make_shards(directory, corpus, per_shard)
    return BlockDataset(shards, cls_token_id=CLS, sep_token_id=SEP, **options)


def tokens_of(blocks: BlockDataset) -> list[list[int]]:
    return [blocks[i]["input_ids"][1:-1].tolist() for i in range(len(blocks))]


def greedy_blocks(corpus: Corpus, max_tokens: int) -> list[list[int]]:
    """Lines are added while they fit; a line that does not fit alone is cut."""
    blocks = []
    for document in corpus:
        block: list[int] = []
        for line in document:
            if block and len(block) + len(line) > max_tokens:
                blocks.append(block)
                block = []
            while len(line) > max_tokens:
                blocks.append(line[:max_tokens])
                line = line[max_tokens:]
            block = block + line
        if block:
            blocks.append(block)
    return blocks


@pytest.mark.parametrize("max_seq_length", [3, 4, 5, 17, 42, 64, 1000])
def test_whole_lines_are_packed_greedily(tmp_path, max_seq_length):
    corpus = random_corpus(30)
    blocks = make_blocks(tmp_path, corpus, max_seq_length=max_seq_length, short_seq_prob=0.0)
    assert tokens_of(blocks) == greedy_blocks(corpus, max_seq_length - 2)
    assert blocks.lengths.tolist() == [len(tokens) + 2 for tokens in tokens_of(blocks)]
    assert blocks.lengths.max() <= max_seq_length


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    max_seq_length=st.integers(3, 80),
    short_seq_prob=st.sampled_from([0.0, 0.1, 1.0]),
    per_shard=st.integers(1, 9),
)
def test_no_token_is_lost_or_doubled(
    tmp_path_factory, seed, max_seq_length, short_seq_prob, per_shard
):
    corpus = random_corpus(9, seed)
    blocks = make_blocks(
        tmp_path_factory.mktemp("shards"),
        corpus,
        per_shard,
        max_seq_length=max_seq_length,
        short_seq_prob=short_seq_prob,
        seed=seed,
    )
    got = iter(tokens_of(blocks))
    for document in corpus:  # blocks are in order, and none crosses documents
        tokens = [token for line in document for token in line]
        while tokens:
            block = next(got)
            assert block and len(block) <= max_seq_length - 2
            assert block == tokens[: len(block)]
            tokens = tokens[len(block) :]
    assert next(got, None) is None


def test_short_targets_have_their_law(tmp_path):
    # with lines of one token, a block has its target length, except the last of a document
    corpus = [[[i % CLS] for i in range(60_000)]]
    blocks = make_blocks(tmp_path, corpus, max_seq_length=34, short_seq_prob=0.25, seed=2)
    targets = blocks.lengths[:-1] - 2
    assert targets.min() == 2 and targets.max() == 32
    n = len(targets)
    share = 0.25 / 31  # how many blocks have each length in [2, 32]
    counts = np.bincount(targets, minlength=33)
    # five standard errors of a binomial share
    allowed = 5 * np.sqrt(n * share)
    assert np.abs(counts[2:32] - n * share).max() < allowed
    assert abs(counts[32] - n * (0.75 + share)) < 5 * np.sqrt(n * 0.25)


def test_blocks_depend_on_the_seed_but_not_on_the_shards(tmp_path):
    corpus = random_corpus(30)
    options = {"max_seq_length": 50, "short_seq_prob": 0.3}
    one = make_blocks(tmp_path / "one", corpus, 30, seed=1, **options)
    many = make_blocks(tmp_path / "many", corpus, 4, seed=1, **options)
    other = make_blocks(tmp_path / "other", corpus, 30, seed=2, **options)
    assert tokens_of(one) == tokens_of(many) != tokens_of(other)


def test_an_item_is_a_single_sequence_with_its_words(tmp_path):
    corpus = random_corpus(30)
    blocks = make_blocks(tmp_path, corpus, max_seq_length=30, short_seq_prob=0.0)
    for index in range(len(blocks)):
        item = blocks[index]
        ids, starts = item["input_ids"], item["word_starts"]
        assert ids.dtype == np.int64 and starts.dtype == np.bool_
        assert len(ids) == len(starts) == blocks.lengths[index]
        assert (ids[0], ids[-1]) == (CLS, SEP)
        assert starts[[0, 1, -1]].all()
        assert np.array_equal(starts[2:-1], ids[2:-1] % 3 > 0)
        assert (item["example_id"], item["epoch"]) == (index, 0)
    item, same = blocks[3], blocks[(8, 3)]
    assert (same["example_id"], same["epoch"]) == (3, 8)
    assert np.array_equal(same["input_ids"], item["input_ids"])


def test_split_keeps_documents_whole(tmp_path):
    corpus = random_corpus(200)
    blocks = make_blocks(tmp_path, corpus, max_seq_length=20)
    for fraction in (0.01, 0.1, 0.5):
        rest, held_out = blocks.split(fraction, seed=3)
        share = held_out.lengths.sum() / blocks.lengths.sum()
        assert 0.5 * fraction < share <= fraction
        ids = [{part[i]["example_id"] for i in range(len(part))} for part in (rest, held_out)]
        assert ids[0] | ids[1] == set(range(len(blocks))) and not ids[0] & ids[1]
        documents = [set(part.documents().tolist()) for part in (rest, held_out)]
        assert not documents[0] & documents[1]
        assert documents[0] | documents[1] == set(range(200))
        for part in (rest, held_out):  # an example_id still identifies its block
            for i in range(0, len(part), 7):
                item = part[i]
                same = blocks[item["example_id"]]
                assert np.array_equal(item["input_ids"], same["input_ids"])
        again = blocks.split(fraction, seed=3)[1]
        assert numbers_of(again) == numbers_of(held_out)
    assert numbers_of(blocks.split(0.1, seed=4)[1]) != numbers_of(blocks.split(0.1, seed=3)[1])
    # a part can be split again
    rest, held_out = blocks.split(0.5)[0].split(0.2)
    assert not set(rest.documents().tolist()) & set(held_out.documents().tolist())
    for i, number in enumerate(numbers_of(held_out)):
        assert np.array_equal(held_out[i]["input_ids"], blocks[number]["input_ids"])


def test_the_document_of_each_block(tmp_path):
    corpus = random_corpus(30)
    blocks = make_blocks(tmp_path, corpus, max_seq_length=9)
    documents = blocks.documents().tolist()
    assert documents == sorted(documents)
    for number, document in enumerate(corpus):
        tokens = [t for d, own in zip(documents, tokens_of(blocks), strict=True) for t in own
                  if d == number]  # fmt: skip
        assert tokens == [token for line in document for token in line]


def numbers_of(part: BlockDataset) -> list[int]:
    return [part[i]["example_id"] for i in range(len(part))]


def test_the_index_is_small(tmp_path):
    """8 bytes a block, and 12 after a split."""
    blocks = make_blocks(tmp_path, random_corpus(200), max_seq_length=5)
    rest, _ = blocks.split(0.1)
    for part, most in ((blocks, 8), (rest, 12)):
        assert len(pickle.dumps(part)) < most * len(part) + 5000


def test_split_of_few_documents_is_by_block(tmp_path):
    blocks = make_blocks(tmp_path / "few", random_corpus(3), max_seq_length=6)
    rest, held_out = blocks.split(0.2)
    assert 0.1 < held_out.lengths.sum() / blocks.lengths.sum() <= 0.2
    assert len(rest) + len(held_out) == len(blocks)
    two = make_blocks(tmp_path / "two", [[[1, 2]], [[3]]])
    assert [len(part) for part in two.split(0.001)] == [1, 1]
    one = make_blocks(tmp_path / "alone", [[[1, 2]]])
    with pytest.raises(DataError, match="alone: a corpus of 1 block is too small"):
        one.split(0.1)
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(UsageError, match=r"fraction must be in \(0, 1\)"):
            blocks.split(fraction)


def test_unigram_counts(tmp_path):
    blocks = make_blocks(tmp_path, random_corpus(200, max_line=20), max_seq_length=5)
    assert len(blocks) > 4096  # more than the counts take in one piece
    for part in (blocks, *blocks.split(0.3)):
        expected = np.zeros(VOCAB, dtype=np.int64)
        for tokens in tokens_of(part):
            np.add.at(expected, tokens, 1)
        counts = part.unigram_counts()
        assert counts.dtype == np.int64
        assert np.array_equal(counts, expected)


def test_bad_arguments_are_refused(tmp_path):
    corpus = random_corpus(2)
    with pytest.raises(UsageError, match="max_seq_length must be at least 3, got 2"):
        make_blocks(tmp_path, corpus, max_seq_length=2)
    with pytest.raises(UsageError, match=r"short_seq_prob must be in \[0, 1\], got 1.5"):
        make_blocks(tmp_path, corpus, short_seq_prob=1.5)
    with pytest.raises(DataError, match="the corpus is empty"):
        BlockDataset([], cls_token_id=CLS, sep_token_id=SEP)


@pytest.mark.parametrize("pickled", [False, True])
def test_workers_and_other_processes_give_the_same_batches(tmp_path, pickled):
    blocks = make_blocks(tmp_path, random_corpus(40), max_seq_length=30)
    content = pickle.dumps(blocks)
    assert len(content) < 50 * len(blocks) + 10_000  # the pickle holds indices only
    batches = TokenBudgetBatches(blocks.lengths, 100, num_batches=30, seed=1)
    alone = list(DataLoader(blocks, batch_sampler=batches, collate_fn=list))
    assert len(alone) == 30
    theirs = pickle.loads(content) if pickled else blocks
    loader = DataLoader(theirs, batch_sampler=batches, collate_fn=list, num_workers=2)
    for batch, expected in zip(loader, alone, strict=True):
        for a, b in zip(batch, expected, strict=True):
            assert (a["example_id"], a["epoch"]) == (b["example_id"], b["epoch"])
            assert np.array_equal(a["input_ids"], b["input_ids"])
            assert np.array_equal(a["word_starts"], b["word_starts"])
