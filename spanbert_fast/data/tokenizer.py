"""Tokenizers: training a WordPiece one, loading and comparing those of any kind."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from spanbert_fast.data.text_files import pieces
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.meter import metered
from spanbert_fast.schema import (
    OBJECT,
    TEXT,
    TRUTH,
    Rule,
    check,
    digits,
    number,
    object_of,
    optional,
    read_json,
    regular_file,
    whole,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("spanbert_fast")

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_NEEDED = ("cls_token", "sep_token", "mask_token")
_PREFIX = "##"
_MOST_BYTES = 1 << 28  # limit of a file's bytes
_ID = whole(0, (1 << 24) - 1)
_ADDED = Rule(
    "objects with an id in [0, 16777215] and a content",
    lambda x: type(x) is list
    and all(type(a) is dict and _ID.fits(a.get("id")) and TEXT.fits(a.get("content")) for a in x),
)
_VOCABULARY = Rule(
    "an object of tokens with an id in [0, 16777215] each, none twice",
    lambda x: object_of(TEXT, _ID).fits(x) and len({*x.values()}) == len(x),
)
_PIECE = 1 << 16  # characters
_MAX_ALPHABET = 1000  # as in BERT's own vocabularies; rarer characters become [UNK]


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A cased WordPiece tokenizer with BERT's normaliser and special tokens.

    The same texts in the same order give the same vocabulary. The library's trainer breaks ties
    between merges by the pieces' ids, and numbers continuing characters in the order of a hash
    table. Therefore this function itself numbers every character, alone and continuing.

    Args:
        texts: the corpus, which is read twice: a list or a dataset column, not an iterator.
        vocab_size: number of entries with the special tokens; a small corpus may give fewer.

    Raises:
        UsageError: vocab_size is too small for the special tokens and the corpus's characters.
    """
    from transformers import BertTokenizer

    if iter(texts) is texts:
        raise TypeError(f"texts must be read twice, got the iterator {type(texts).__name__}")
    normalizer, pre_tokenizer = BertNormalizer(lowercase=False), BertPreTokenizer()
    total = len(texts) if isinstance(texts, Sized) else None
    alphabet = _alphabet(metered(texts, "characters", total, "documents"), normalizer)
    continuing = [
        _PREFIX + character
        for character in alphabet
        if len(pre_tokenizer.pre_tokenize_str("a" + character)) == 1  # not punctuation
    ]
    first = [*_SPECIAL_TOKENS, *continuing]
    if vocab_size < len(first) + len(alphabet):
        raise UsageError(
            f"vocab_size must be at least {len(first) + len(alphabet)} for the special tokens and "
            f"the {len(alphabet)} characters of this corpus, got {vocab_size}"
        )
    trained = tokenizers.Tokenizer(WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizer
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=first,  # the only list whose ids the trainer keeps
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_PREFIX,
    )
    # the trainer holds hundreds of its inputs at once
    counted = metered(texts, "vocabulary", total, "documents")
    parts = (part for text in counted for part in pieces(text, _PIECE))
    trained.train_from_iterator(parts, trainer)
    vocab = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return BertTokenizer(vocab=dict(vocab), do_lower_case=False)


def _alphabet(texts: Iterable[str], normalizer: BertNormalizer) -> list[str]:
    """The corpus's most frequent characters, in code point order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    frequent = sorted(counts, key=lambda character: (-counts[character], character))
    text = normalizer.normalize_str("".join(frequent[:_MAX_ALPHABET]))
    return sorted(set("".join(text.split())))


def load_wordpiece(directory: str | Path) -> PreTrainedTokenizerBase:
    """As `load_tokenizer`, for callers that need a WordPiece tokenizer.

    Raises:
        UsageError: the tokenizer is of another kind.
    """
    tokenizer = load_tokenizer(directory)
    model = tokenizer.backend_tokenizer.model
    if not isinstance(model, WordPiece):
        kind = type(model).__name__
        raise UsageError(f"{directory}: tokenizer.json is a {kind} model, WordPiece is needed")
    return tokenizer


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer of any kind from local files, without the network.

    Args:
        directory: holds `tokenizer.json`, or only `vocab.txt` as the original releases do. If no
            `tokenizer_config.json` states `do_lower_case`, a vocabulary with capital letters counts
            as cased.

    Raises:
        UsageError: the directory holds no fast tokenizer, or one without the tokens by which
            sequences begin and end, or without a mask token; a WordPiece needs [UNK], too.
        DataError: one of its files is malformed.
    """
    from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

    directory = Path(directory)
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such directory; a tokenizer is needed there")
    try:
        settings = _settings(directory)
        files = _files(directory, settings)
        loader: Any = AutoTokenizer if "tokenizer_class" in settings else BertTokenizer
        if files.stored is not None and "tokenizer_class" not in settings:
            # if no class is named, the model's type decides, if there is a model
            named = (directory / "config.json").is_file()
            loader = AutoTokenizer if named else PreTrainedTokenizerFast
        tokenizer = loader.from_pretrained(str(directory), local_files_only=True, **files.options)
    except (UsageError, DataError):
        raise
    except Exception as error:  # the libraries raise bare Exceptions, too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{directory}: the tokenizer cannot be loaded ({reason})") from error
    kind = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise UsageError(f"{directory}: {kind} is slow, a fast one is needed")
    # a class that does not match the files would ignore them and build a model of its own
    backend, ids = tokenizer.backend_tokenizer, tokenizer.get_vocab()
    model = WordPiece if files.stored is None else type(files.stored.model)
    if not isinstance(backend.model, model) or any(
        ids.get(token) != index for token, index in files.vocab.items()
    ):
        raise UsageError(
            f"{directory}: tokenizer_config.json says {kind}, which does not read the vocabulary "
            "of these files"
        )
    if files.stored is not None:
        for part in ("normalizer", "pre_tokenizer"):
            if repr(getattr(files.stored, part)) != repr(getattr(backend, part)):
                logger.warning(
                    "%s: %s has another %s than tokenizer.json; as in transformers, the class "
                    "counts",
                    directory,
                    kind,
                    part,
                )
    needed = ("unk_token", *_NEEDED) if model is WordPiece else _NEEDED
    for name in needed:
        token = getattr(tokenizer, name)
        # loading adds missing special tokens with ids beyond the embeddings
        if token is None or token not in files.vocab:
            wanted = token or f"[{name.removesuffix('_token').upper()}]"
            raise UsageError(f"{directory}: the vocabulary has no {wanted} ({name})")
    return tokenizer


class _Files(NamedTuple):
    """The settings that the files of a directory hold."""

    vocab: dict[str, int]
    options: dict  # further arguments of `from_pretrained`
    # kind of the model in tokenizer.json; None for a WordPiece
    stored: tokenizers.Tokenizer | None = None


def _settings(directory: Path) -> dict:
    """The content of tokenizer_config.json; the other settings files are only checked."""
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if (directory / name).exists():
            check(directory / name, read_json(directory / name, _MOST_BYTES), {})
    path = directory / "tokenizer_config.json"
    if not path.exists():
        return {}
    rules = {
        "tokenizer_class": optional(TEXT),
        "do_lower_case": TRUTH,
        "model_max_length": number(1, 1e31),  # the library writes about 10**30 for no limit
        "added_tokens_decoder": object_of(digits((1 << 24) - 1), OBJECT),
    }
    return check(path, read_json(path, _MOST_BYTES), rules, all_of_them=False)


def _files(directory: Path, settings: dict) -> _Files:
    if (directory / "tokenizer.json").exists():
        path = directory / "tokenizer.json"
        content = check(path, read_json(path, _MOST_BYTES), {"model": OBJECT})
        check(path, content, {"added_tokens": _ADDED}, all_of_them=False)
        if content["model"].get("type") in ("WordPiece", "BPE", "WordLevel"):
            check(path, content["model"], {"vocab": _VOCABULARY})
        stored = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        vocab = stored.get_vocab(with_added_tokens=True)
        options: dict[str, bool | None] = {}
        if not isinstance(stored.model, WordPiece):
            return _Files(vocab, options, stored)
        if isinstance(stored.normalizer, BertNormalizer):
            # transformers rebuilds the normaliser from these, not from tokenizer.json
            options = {
                "do_lower_case": stored.normalizer.lowercase,
                "strip_accents": stored.normalizer.strip_accents,
                "tokenize_chinese_chars": stored.normalizer.handle_chinese_chars,
            }
        return _Files(vocab, options)
    if (directory / "vocab.txt").exists():
        size = regular_file(directory / "vocab.txt").stat().st_size
        if size > _MOST_BYTES:
            raise DataError(f"{directory}/vocab.txt: must have at most {_MOST_BYTES:,} bytes")
        lines = (directory / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        vocab = {token: index for index, token in enumerate(lines)}
        cased = any(token != token.lower() for token in vocab if not token.startswith("["))
        return _Files(vocab, {"do_lower_case": settings.get("do_lower_case", not cased)})
    raise UsageError(f"{directory}: no tokenizer there (neither tokenizer.json nor vocab.txt)")


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash, in 16 hexadecimal digits, of all that decides the ids of a text: the vocabulary, the
    normaliser, the pre-tokenizer and the added tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    deciding = {key: state[key] for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    text = json.dumps(deciding, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id plus 1. This is more than `len(tokenizer)` if ids are left out, as for a
    vocab.txt that has a line twice."""
    return max(tokenizer.get_vocab().values()) + 1


def piece_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, neither cut nor with special tokens. Takes half the time of calling the
    tokenizer, which also computes offsets."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return [e.ids for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def check_fits(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, where: str | Path, new: Sequence[str] = ()
) -> None:
    """Raise UsageError if an id of the tokenizer has no row in a model's vocabulary.

    Args:
        vocab_size: number of rows of the model.
        where: the model's name, for the message.
        new: tokens for which rows will be added.
    """
    ids = tokenizer.get_vocab()
    token = max(ids.keys() - {*new}, key=ids.__getitem__)
    if ids[token] >= vocab_size:
        raise UsageError(
            f"{where} has a vocabulary of {vocab_size}, in which the tokenizer's {token!r} with "
            f"the id {ids[token]} has no place"
        )
