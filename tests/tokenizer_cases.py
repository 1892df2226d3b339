"""Small tokenizers of every kind, trained on text in many scripts."""

import json

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import PreTrainedTokenizerFast

from spanbert_fast.data.tokenizer import train_wordpiece

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
    # which words become tokens differs from one training to the next
    state = json.loads(made.to_str())
    known = {token for token, _ in state["model"]["vocab"]}
    state["model"]["vocab"] += [[t, -4.0] for t in ("\u2581words", "words") if t not in known]
    return wrapped(tokenizers.Tokenizer.from_str(json.dumps(state)))


def sentence_piece_bpe():
    """Spaces are replaced by a normaliser, rare characters are spelled in bytes."""
    made = tokenizers.Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIAL, *spelled], limit_alphabet=60, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    # bytes are tokens of the model, and nothing special in a text
    state = json.loads(made.to_str())
    state["added_tokens"] = [a for a in state["added_tokens"] if a["content"] in SPECIAL]
    return wrapped(tokenizers.Tokenizer.from_str(json.dumps(state)))


def unmarked():
    """A BPE whose tokens do not show where words begin."""
    made = tokenizers.Tokenizer(BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(TEXTS, BpeTrainer(special_tokens=SPECIAL, show_progress=False))
    return wrapped(made)


def wrapped(made):
    """As transformers' tokenizer, with RoBERTa's special tokens."""
    begin, _, end, *_ = (made.token_to_id(token) for token in SPECIAL)
    made.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    names = ("bos", "pad", "eos", "unk", "mask")
    tokens = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token="<s>", sep_token="</s>", **tokens
    )


# those whose tokens show the words that the pre-tokenizer finds
KINDS = {
    "byte-level": byte_level,
    "sentence piece": sentence_piece,
    "word piece": lambda: train_wordpiece(list(TEXTS), 300),
}
ALL_KINDS = {**KINDS, "sentence piece BPE": sentence_piece_bpe, "unmarked": unmarked}
