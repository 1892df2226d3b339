"""Where words begin, for every kind of tokenizer; and preparing and masking text in any script."""

import json
import unicodedata
from itertools import pairwise

import numpy as np
import pytest

from spanbert_fast import DataCollatorForSpanMasking
from spanbert_fast.data.blocks import BlockDataset
from spanbert_fast.data.corpus import load_documents
from spanbert_fast.data.prepare import open_shards, prepare, words_of
from spanbert_fast.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from spanbert_fast.data.words import WordStarts
from spanbert_fast.values import WORDS
from tokenizer_cases import ALL_KINDS, KINDS, TEXTS


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_the_pre_tokenizers(kind):
    """The words equal those that the tokenizer itself finds in the text."""
    tokenizer = KINDS[kind]()
    starts_of = WordStarts.of(tokenizer)
    for text in (TEXTS[0], "a  b", "x", "go (at 7am)"):
        encoded = tokenizer(text, add_special_tokens=False)
        words = np.array(encoded.word_ids())
        expected = np.append(True, words[1:] != words[:-1])
        got = starts_of(np.array(encoded.input_ids))
        got[0] = True
        assert got.tolist() == expected.tolist(), tokenizer.convert_ids_to_tokens(encoded.input_ids)


@pytest.mark.parametrize("words", ["tokenizer", "tokens", "characters"])
@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back_from_its_masks(kind, words):
    """In every script, targets put back give the ids, and ids give the text; no special token is
    masked or drawn."""
    tokenizer = KINDS[kind]()
    collator = DataCollatorForSpanMasking(tokenizer, seed=3, words=words)
    assert not set(collator.random_token_pool.tolist()) & {*tokenizer.all_special_ids}
    for text in TEXTS:
        ids = [tokenizer.cls_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
        batch = collator([{"input_ids": ids}])
        masked = batch["input_ids"].clone()
        positions = batch["mlm_positions"]
        assert len(positions) > 0 and 0 not in positions
        masked[positions] = batch["mlm_targets"]
        assert masked.tolist() == ids
        if kind == "byte-level":
            assert tokenizer.decode(masked[1:]) == text


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_text_comes_back_from_prepared_and_masked_blocks(tmp_path, kind):
    """From a file through shards, blocks and masks, the tokens are those of each line, and no
    character is changed before the tokenizer sees it."""
    # spaces at both ends, and marks in an order that is no normal form
    odd = "  \u3000\u4e2d\u6587 e\u0301\u0327\u00a0x\u200d \u0e01\u0e33  "
    lines = [*TEXTS, odd]
    (tmp_path / "text.txt").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    documents = load_documents([tmp_path / "text.txt"])
    assert documents["text"][:] == ["\n".join(lines)]
    tokenizer = ALL_KINDS[kind]()
    prepare(documents, tokenizer, tmp_path / "shards")
    loaded = load_tokenizer(tmp_path / "shards")
    shards = open_shards(tmp_path / "shards", tokenizer_fingerprint(loaded))
    blocks = BlockDataset(
        shards,
        cls_token_id=loaded.cls_token_id,
        sep_token_id=loaded.sep_token_id,
        max_seq_length=16,
    )
    batch = DataCollatorForSpanMasking(loaded, seed=1)([blocks[i] for i in range(len(blocks))])
    ids, positions = batch["input_ids"].clone(), batch["mlm_positions"]
    assert len(positions) > 10 and (ids[positions] == loaded.mask_token_id).any()
    ids[positions] = batch["mlm_targets"]
    special = [loaded.cls_token_id, loaded.sep_token_id]
    ends = batch["cu_seqlens"].tolist()
    rows = [ids[a:b].tolist() for a, b in pairwise(ends)]
    assert all([row[0], row[-1]] == special for row in rows)
    expected = [tokenizer(line, add_special_tokens=False).input_ids for line in lines]
    assert [i for row in rows for i in row[1:-1]] == sum(expected, [])
    for line, tokens in zip(lines, expected, strict=True):
        if kind == "byte-level":  # the only kind with a token for every character
            assert tokenizer.decode(tokens) == line
    starts = shards[0].word_starts(0, shards[0].num_tokens)
    firsts = np.cumsum([0, *map(len, expected[:-1])])
    assert starts[firsts].all() and not starts.all()


def test_words_that_tokens_do_not_show_are_the_pre_tokenizers(tmp_path):
    tokenizer = ALL_KINDS["unmarked"]()
    prepare([{"text": TEXTS[0] + "\n<mask> two"}], tokenizer, tmp_path / "shards")
    (shard,) = open_shards(tmp_path / "shards")
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    expected = []
    for line in (TEXTS[0], "<mask> two"):
        encoding = backend.encode(line, add_special_tokens=False)
        expected += np.diff(encoding.word_ids, prepend=-1).astype(bool).tolist()
    assert shard.word_starts(0, shard.num_tokens).tolist() == expected
    assert tokenizer.mask_token_id not in shard.tokens


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_characters_are_never_cut(kind):
    """Each token is a word, except later bytes of a character, and marks."""
    tokenizer = ALL_KINDS[kind]()
    starts_of = WordStarts.of(tokenizer, "characters")
    every = WordStarts.of(tokenizer, "tokens")
    inside = 0
    for text in (*TEXTS, "\U0001f600", "\u0928\u093f"):
        ids = np.array(tokenizer(text, add_special_tokens=False).input_ids)
        starts = starts_of(ids)
        assert starts[0] and every(ids).all()
        inside += (~starts).sum()
        cuts = [*np.flatnonzero(starts), len(ids)]
        for first, last in pairwise(cuts):
            part = tokenizer.decode(ids[first:last])
            assert "\ufffd" not in part, (text, part)
            # the first byte of a mark does not show that it is one
            is_mark = unicodedata.category(part.lstrip("#")[:1] or "x")[0] == "M"
            assert not is_mark or last - first > 1, part
    assert inside > 0 or kind == "word piece"


def test_prepared_data_says_what_its_words_are(tmp_path):
    tokenizer = KINDS["byte-level"]()
    for words in WORDS:
        folder = tmp_path / words
        prepare([{"text": TEXTS[2]}], tokenizer, folder, words=words)
        assert words_of(folder) == words
    tokens, characters = (
        open_shards(tmp_path / words)[0].word_starts(0, 4) for words in ("tokens", "characters")
    )
    assert tokens.all() and not characters.all()
    manifest = tmp_path / "tokens" / "corpus.json"
    content = json.loads(manifest.read_text())
    del content["words"]  # as in versions without this choice
    manifest.write_text(json.dumps(content))
    assert words_of(tmp_path / "tokens") == "tokenizer"
    with pytest.raises(ValueError, match="words must be .*, got 'letters'"):
        prepare([{"text": "x"}], tokenizer, tmp_path / "other", words="letters")


def test_what_marks_no_words_needs_them_in_the_examples():
    tokenizer = ALL_KINDS["unmarked"]()
    example = {"input_ids": [0, 5, 6, 7]}
    with pytest.raises(ValueError, match="where the tokenizer does not mark words"):
        DataCollatorForSpanMasking(tokenizer)([example])
    assert len(DataCollatorForSpanMasking(tokenizer, words="tokens")([example])["mlm_positions"])
    with pytest.raises(ValueError, match="words must be .* or .characters., got 'letters'"):
        DataCollatorForSpanMasking(tokenizer, words="letters")
