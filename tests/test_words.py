"""Where words begin, for the three kinds of tokenizers, and masked text in any script."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import PreTrainedTokenizerFast

from spanbert_fast import DataCollatorForSpanMasking
from spanbert_fast.data.tokenizer import train_wordpiece
from spanbert_fast.data.words import WordStarts

TEXTS = (
    "The engine masks whole words, not parts of them; it began in 2019 (or 2020)!",
    "النص العربي لا يتغير أبدًا",
    "中文没有空格，也要遮盖。",
    "ภาษาไทยไม่เว้นวรรคระหว่างคำ",
    "हिन्दी में संयुक्त अक्षर होते हैं",
    "Émile a dit: 👩🏽‍💻 et e\u0301tait là 🎉",
)
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def byte_level():
    made = tokenizers.Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return wrapped(made)


def sentence_piece():
    made = tokenizers.Tokenizer(Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return wrapped(made)


def wrapped(made):
    names = ("bos", "pad", "eos", "unk", "mask")
    tokens = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=made, **tokens)


KINDS = {
    "byte-level": byte_level,
    "sentence piece": sentence_piece,
    "word piece": lambda: train_wordpiece(list(TEXTS), 300),
}


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_the_pre_tokenizers(kind):
    """Against the words that the tokenizer itself counts, which needs the text."""
    tokenizer = KINDS[kind]()
    starts_of = WordStarts.of(tokenizer)
    for text in (TEXTS[0], "a  b", "x", "go (at 7am)"):
        encoded = tokenizer(text, add_special_tokens=False)
        words = np.array(encoded.word_ids())
        expected = np.append(True, words[1:] != words[:-1])
        got = starts_of(np.array(encoded.input_ids))
        got[0] = True
        assert got.tolist() == expected.tolist(), tokenizer.convert_ids_to_tokens(encoded.input_ids)


@pytest.mark.parametrize("words", ["tokenizer", "tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back_from_its_masks(kind, words):
    """Every script: targets put back give the ids, and the ids the text; no special token is
    masked, and none is drawn."""
    tokenizer = KINDS[kind]()
    collator = DataCollatorForSpanMasking(tokenizer, seed=3, words=words)
    assert not set(collator.random_token_pool.tolist()) & {*tokenizer.all_special_ids}
    first = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    for text in TEXTS:
        ids = [first, *tokenizer(text, add_special_tokens=False).input_ids]
        batch = collator([{"input_ids": ids}])
        masked = batch["input_ids"].clone()
        positions = batch["mlm_positions"]
        assert len(positions) > 0 and 0 not in positions
        masked[positions] = batch["mlm_targets"]
        assert masked.tolist() == ids
        if kind == "byte-level":
            assert tokenizer.decode(masked[1:]) == text


def test_what_marks_no_words_needs_them_in_the_examples():
    made = tokenizers.Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = BpeTrainer(vocab_size=100, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(["ab cd"], trainer)
    tokenizer = wrapped(made)
    example = {"input_ids": [0, 5, 6, 7]}
    with pytest.raises(ValueError, match="where the tokenizer does not mark words"):
        DataCollatorForSpanMasking(tokenizer)([example])
    assert len(DataCollatorForSpanMasking(tokenizer, words="tokens")([example])["mlm_positions"])
    with pytest.raises(ValueError, match="words must be .tokenizer. or .tokens., got 'letters'"):
        DataCollatorForSpanMasking(tokenizer, words="letters")
