"""Where words begin among the tokens of any fast tokenizer."""

import dataclasses
import unicodedata

import numpy as np
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerBase

from spanbert_fast.data.tokenizer import vocabulary_size, word_start_table

_BYTE_LEVEL_SPACE, _METASPACE = "\u0120", "\u2581"  # Ġ and ▁, as which tokens spell a space
_INSIDE = 0  # the kind of what belongs to any word: bytes that are no character, marks


@dataclasses.dataclass(frozen=True)
class WordStarts:
    """Whether each token of a text begins a word, from the ids alone.

    A WordPiece begins one unless it has the prefix of what continues a word. A token of a
    SentencePiece model (Metaspace) begins one where it begins with a space. So does one of a
    byte-level BPE, and beside it every change between letters, digits and other characters, as in
    its pre-tokenizer (which also cuts at combining marks, and not within "'t").

    The first token of a sequence begins a word whatever this says, and so does one behind a special
    token.

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
        cls, tokenizer: PreTrainedTokenizerBase, every_token: bool = False
    ) -> "WordStarts | None":
        """None where the tokenizer is slow, or marks words in none of these ways.

        Args:
            every_token: each token is a word of its own, for languages without spaces.
        """
        if every_token:
            return cls(np.ones(vocabulary_size(tokenizer), dtype=bool))
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        if isinstance(backend.model, WordPiece):
            return cls(word_start_table(tokenizer))
        pre_tokenizer = repr(backend.pre_tokenizer)  # a sequence may hold the one that marks words
        if "ByteLevel" in pre_tokenizer:
            return cls._of_bytes(tokenizer)
        if "Metaspace" in pre_tokenizer:
            return cls(_begin_with(tokenizer, _METASPACE))
        return None

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """bool, as many as there are ids."""
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


def _begin_with(tokenizer: PreTrainedTokenizerBase, mark: str) -> np.ndarray:
    starts = np.zeros(vocabulary_size(tokenizer), dtype=bool)
    for token, index in tokenizer.get_vocab().items():
        starts[index] = token.startswith(mark)
    return starts


def _kind(character: str) -> int:
    category = unicodedata.category(character)
    if character == "\ufffd" or category[0] == "M":
        return _INSIDE
    return {"L": 1, "N": 2}.get(category[0], 3)


def _bytes_of_characters() -> dict[str, int]:
    """What byte each character of a byte-level token spells: itself where it is printable and no
    space, and characters from 256 on for the others, in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
