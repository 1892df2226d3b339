"""Training, loading and comparing WordPiece tokenizers."""

import inspect
import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spanbert_fast.data.tokenizer import (
    load_tokenizer,
    load_wordpiece,
    piece_ids,
    tokenizer_fingerprint,
    train_wordpiece,
)
from spanbert_fast.data.words import word_start_table
from spanbert_fast.errors import DataError, UsageError

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def synthetic_texts(count: int = 400) -> list[str]:
    """Words of random syllables, in which many pairs are equally frequent."""
    rng = random.Random(5)
    syllables = [a + b for a in "BDKLMNbdklmnprst" for b in "aeiouéü"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(600)]
    return [" ".join(rng.choices(words, k=30)) + "." for _ in range(count)]


@pytest.fixture(scope="module")
def trained():
    return train_wordpiece(synthetic_texts(), 400)


@pytest.fixture
def directory(trained, tmp_path):
    trained.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_trained_tokenizer_is_a_cased_bert(trained):
    assert len(trained) == 400
    assert trained.convert_ids_to_tokens(range(5)) == SPECIAL_TOKENS
    text = synthetic_texts()[0]
    ids = trained(text).input_ids
    assert ids[0] == trained.cls_token_id and ids[-1] == trained.sep_token_id
    assert trained.unk_token_id not in ids
    assert trained.decode(ids[1:-1]) == text
    assert trained.tokenize("Ba ba")[0] != trained.tokenize("Ba ba")[-1]  # case is kept
    assert trained.tokenize("[MASK]") == ["[MASK]"]
    # frequent pieces became entries, not only characters
    assert sum(len(token.removeprefix("##")) > 1 for token in trained.get_vocab()) > 200


def test_training_is_deterministic_in_another_process_and_on_one_thread(trained):
    script = (
        f"import random\n{inspect.getsource(synthetic_texts)}\n"
        "from spanbert_fast.data.tokenizer import tokenizer_fingerprint, train_wordpiece\n"
        "print(tokenizer_fingerprint(train_wordpiece(synthetic_texts(), 400)))"
    )
    other = {"PYTHONHASHSEED": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **other},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == tokenizer_fingerprint(trained)
    assert train_wordpiece(synthetic_texts(), 400).get_vocab() == trained.get_vocab()


def test_training_refuses_what_cannot_be():
    with pytest.raises(UsageError, match=r"vocab_size must be at least \d+ .*got 20"):
        train_wordpiece(synthetic_texts(), 20)
    with pytest.raises(TypeError, match="texts must be read twice"):
        train_wordpiece(iter(synthetic_texts()), 400)


def test_rare_characters_become_unknown():
    rare = [chr(0x4E00 + i) for i in range(1500)]
    common = ["".join(rare[:500])] * 3
    tokenizer = train_wordpiece([*common, "".join(rare)], 3000)
    assert tokenizer.tokenize(rare[0]) == [rare[0]]
    assert tokenizer.tokenize(rare[-1]) == ["[UNK]"]


def test_saved_tokenizer_loads_as_it_was(trained, directory):
    loaded = load_tokenizer(directory)
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(trained)
    for text in (*synthetic_texts()[:20], "Café [MASK] x!", ""):
        assert loaded(text).input_ids == trained(text).input_ids


@pytest.mark.parametrize("lower_case", [True, False])
def test_tokenizer_json_decides_over_a_silent_configuration(directory, trained, lower_case):
    # this combination is common; the class lower-cases by default
    path = directory / "tokenizer.json"
    state = json.loads(path.read_text())
    state["normalizer"]["lowercase"] = lower_case
    path.write_text(json.dumps(state))
    for configuration in ({"tokenizer_class": "BertTokenizer"}, {}, None):
        if configuration is None:
            (directory / "tokenizer_config.json").unlink()
        else:
            (directory / "tokenizer_config.json").write_text(json.dumps(configuration))
        loaded = load_tokenizer(directory)
        assert loaded.mask_token == "[MASK]"
        assert (loaded.tokenize("BA") == loaded.tokenize("ba")) == lower_case
        same = tokenizer_fingerprint(loaded) == tokenizer_fingerprint(trained)
        assert same != lower_case


@pytest.mark.parametrize("configuration", [None, {"do_lower_case": True}, {"do_lower_case": False}])
@pytest.mark.parametrize("cased", [True, False])
def test_a_directory_with_only_a_vocabulary(tmp_path, cased, configuration):
    words = [*SPECIAL_TOKENS, "the", "##s", "The" if cased else "an"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    # as in the original releases: config.json has no model_type
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    if configuration is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(configuration))
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 8
    lower_case = not cased if configuration is None else configuration["do_lower_case"]
    upper = words.index("the") if lower_case else (7 if cased else 1)
    assert tokenizer("The the").input_ids == [2, upper, words.index("the"), 3]


def test_fingerprint_depends_on_all_that_decides_ids(trained, directory):
    def fingerprint_with(change):
        copy = directory.with_name("changed")
        shutil.copytree(directory, copy)
        state = json.loads((copy / "tokenizer.json").read_text())
        change(state)
        (copy / "tokenizer.json").write_text(json.dumps(state))
        fingerprint = tokenizer_fingerprint(load_tokenizer(copy))
        shutil.rmtree(copy)
        return fingerprint

    def swap_two_tokens(state):
        vocab = state["model"]["vocab"]
        a, b = list(vocab)[-2:]
        vocab[a], vocab[b] = vocab[b], vocab[a]

    def keep_accents(state):
        state["normalizer"]["strip_accents"] = True

    base = tokenizer_fingerprint(trained)
    assert len(base) == 16
    assert fingerprint_with(lambda state: None) == base
    assert fingerprint_with(swap_two_tokens) != base
    assert fingerprint_with(keep_accents) != base
    # padding and truncation do not change ids
    assert (
        fingerprint_with(
            lambda state: state.update(
                truncation={
                    "direction": "Right",
                    "max_length": 8,
                    "strategy": "LongestFirst",
                    "stride": 0,
                }
            )
        )
        == base
    )


def test_word_starts_are_the_tokens_without_the_prefix(trained):
    table = word_start_table(trained)
    assert table.dtype == np.bool_ and table.shape == (len(trained),)
    for token, index in trained.get_vocab().items():
        assert table[index] == (not token.startswith("##")), token
    assert table[:5].all()


def save(directory, model, **options):
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **options).save_pretrained(directory)


def test_what_is_no_wordpiece_tokenizer_is_refused(tmp_path):
    with pytest.raises(UsageError, match="missing: no such directory"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(UsageError, match="no tokenizer there"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="tokenizer.json: not JSON"):
        load_tokenizer(tmp_path)

    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, "a"])}
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "mask")}
    save(tmp_path / "level", models.WordLevel(vocab, unk_token="[UNK]"), **names)
    with pytest.raises(UsageError, match="level: tokenizer.json is a WordLevel model"):
        load_wordpiece(tmp_path / "level")
    assert load_tokenizer(tmp_path / "level").mask_token_id == 4
    save(tmp_path / "good", models.WordPiece(vocab, unk_token="[UNK]"), **names)
    assert load_tokenizer(tmp_path / "good").mask_token_id == 4


@pytest.mark.parametrize("missing", ["[MASK]", "[CLS]", "[SEP]"])
def test_a_vocabulary_without_a_special_token_is_refused(tmp_path, missing):
    tokens = [token for token in [*SPECIAL_TOKENS, "the"] if token != missing]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    name = missing.strip("[]").lower() + "_token"
    with pytest.raises(UsageError, match=rf"the vocabulary has no \[{missing[1:-1]}\] \({name}\)"):
        load_tokenizer(tmp_path)
    vocab = {token: i for i, token in enumerate(tokens)}
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names = {key: value for key, value in names.items() if value != missing}
    save(tmp_path / "json", models.WordPiece(vocab, unk_token="[UNK]"), **names)
    with pytest.raises(UsageError, match=r"json: the vocabulary has no \[[A-Z]+\]"):
        load_tokenizer(tmp_path / "json")


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "RobertaTokenizer", "LlamaTokenizer"])
def test_a_class_that_does_not_read_the_files_is_refused(trained, tmp_path, kind):
    """Such a class would make its own ids, which mean nothing to the model."""
    trained.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": kind}))
    with pytest.raises(UsageError, match=f"says {kind}, which does not read the vocabulary"):
        load_tokenizer(tmp_path)


def test_piece_ids_are_the_tokenizer_s(trained):
    texts = ["The quick [MASK] fox", "", "words " * 300, "Jumps, ov\u00e9r."]
    trained("cut me", truncation=True, padding="max_length", max_length=3)  # leaves its own setting
    got = piece_ids(trained, texts)
    assert got == trained(texts, add_special_tokens=False)["input_ids"] and len(got[2]) == 300
