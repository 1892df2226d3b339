"""Where words begin among the tokens of any fast tokenizer."""

import dataclasses
import re
import unicodedata

import numpy as np
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerBase

from spanbert_fast.data.tokenizer import vocabulary_size
from spanbert_fast.values import SPACES, WORDS

_BYTE_LEVEL_SPACE, _METASPACE = SPACES
# the kind of characters that never begin a word: bytes that are no character, and marks
_INSIDE = 0
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # SentencePiece's spelling of a byte of a rare character


@dataclasses.dataclass(frozen=True)
class WordStarts:
    """Tells from the ids alone whether each token of a text begins a word.

    A WordPiece begins one unless it has the prefix ## of a continuation. A token of a
    SentencePiece model (Metaspace) begins one where it begins with a space. So does one of a
    byte-level BPE, where a word also begins at every change between letters, digits and other
    characters, as in its pre-tokenizer (which also cuts at combining marks, and not within "'t").

    The first token of a sequence always begins a word, and so does a token after a special one.

    Attributes:
        table: bool (vocabulary_size,), tokens that begin a word wherever they stand.
        first, last: uint8 (vocabulary_size,), the kind of each token's first and last character;
            None where a change of kind begins no word.
    """

    table: np.ndarray
    first: np.ndarray | None = None
    last: np.ndarray | None = None

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, words: str = "tokenizer"
    ) -> "WordStarts | None":
        """None if the tokenizer is slow, or marks words in none of these ways.

        Args:
            words: "tokenizer" for the words as above. For languages without spaces, "tokens": each
                token is a word; or "characters": so it is unless it begins within a character (with
                one of its later bytes, or with a combining mark that is not spelled in bytes).

        Raises:
            ValueError: words is none of these.
        """
        if words not in WORDS:
            wanted = " or ".join(f'"{name}"' for name in WORDS)
            raise ValueError(f"words must be {wanted}, got {words!r}")
        backend = getattr(tokenizer, "backend_tokenizer", None)
        # the part that marks words may be inside a sequence of parts
        pre_tokenizer = repr(getattr(backend, "pre_tokenizer", None))
        if words == "tokens":
            return cls(np.ones(vocabulary_size(tokenizer), dtype=bool))
        if words == "characters":
            return cls(_begin_characters(tokenizer, "ByteLevel" in pre_tokenizer))
        if backend is None:
            return None
        if isinstance(backend.model, WordPiece):
            return cls(word_start_table(tokenizer))
        if "ByteLevel" in pre_tokenizer:
            return cls._of_bytes(tokenizer)
        # SentencePiece's own BPE has spaces replaced by a normaliser
        if "Metaspace" in pre_tokenizer or _METASPACE in repr(backend.normalizer):
            return cls(_begin_with(tokenizer, _METASPACE))
        return None

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """bool (len(ids),): whether each token begins a word."""
        starts = self.table[ids]
        if self.first is not None and self.last is not None and len(ids) > 1:
            first, last = self.first[ids[1:]], self.last[ids[:-1]]
            starts[1:] |= (first != last) & (first != _INSIDE) & (last != _INSIDE)
        return starts

    @classmethod
    def _of_bytes(cls, tokenizer: PreTrainedTokenizerBase) -> "WordStarts":
        byte_of = _bytes_of_characters()
        first, last = (np.zeros(vocabulary_size(tokenizer), dtype=np.uint8) for _ in range(2))
        for token, index in tokenizer.get_vocab().items():
            spelled = bytes(byte_of.get(character, 0) for character in token)
            text = spelled.decode("utf-8", errors="replace").lstrip()
            if text:
                first[index], last[index] = _kind(text[0]), _kind(text[-1])
        return cls(_begin_with(tokenizer, _BYTE_LEVEL_SPACE), first, last)


def word_start_table(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """bool (vocabulary_size,): whether a token begins a word, that is, has no prefix ##."""
    prefix = tokenizer.backend_tokenizer.model.continuing_subword_prefix
    starts = np.ones(vocabulary_size(tokenizer), dtype=bool)
    for token, index in tokenizer.get_vocab().items():
        starts[index] = not token.startswith(prefix)
    return starts


def _begin_with(tokenizer: PreTrainedTokenizerBase, mark: str) -> np.ndarray:
    starts = np.zeros(vocabulary_size(tokenizer), dtype=bool)
    for token, index in tokenizer.get_vocab().items():
        starts[index] = token.startswith(mark)
    return starts


def _begin_characters(tokenizer: PreTrainedTokenizerBase, is_byte_level: bool) -> np.ndarray:
    starts = np.ones(vocabulary_size(tokenizer), dtype=bool)
    byte_of = _bytes_of_characters() if is_byte_level else {}
    for token, index in tokenizer.get_vocab().items():
        if is_byte_level:
            spelled = bytes(byte_of.get(character, 0) for character in token)
        elif found := _BYTE.fullmatch(token):
            spelled = bytes.fromhex(found[1])
        else:
            spelled = token.removeprefix("##").encode(errors="replace")
        text = spelled.decode(errors="replace")
        is_later_byte = spelled[:1] and 0x80 <= spelled[0] < 0xC0
        is_mark = text and unicodedata.category(text[0])[0] == "M"
        starts[index] = not (is_later_byte or is_mark)
    return starts


def _kind(character: str) -> int:
    category = unicodedata.category(character)
    if character == "\ufffd" or category[0] == "M":
        return _INSIDE
    return {"L": 1, "N": 2}.get(category[0], 3)


def _bytes_of_characters() -> dict[str, int]:
    """The byte for which each character of a byte-level token stands: itself where it is printable
    and no space, and characters from 256 on for the others, in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
