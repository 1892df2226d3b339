"""Tokenises the lines of a corpus, and marks where words begin."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import chain
from typing import NamedTuple

import numpy as np
import tokenizers
from transformers import PreTrainedTokenizerBase

from spanbert_fast.data.finished_shards import joined_digest, text_digest
from spanbert_fast.data.shards import token_dtype
from spanbert_fast.data.text_files import lines_of, pieces
from spanbert_fast.data.tokenizer import vocabulary_size
from spanbert_fast.data.words import WordStarts
from spanbert_fast.meter import metered

# the fixed memory of an encoding, in characters of text that would need as much
_OWN_CHARACTERS = 16
_PIECE = 1 << 16  # characters that are tokenised at once; a longer line is cut at blanks


class Lines(NamedTuple):
    """Consecutive pieces of lines of the corpus, none of them empty."""

    tokens: np.ndarray  # (num_tokens,)
    word_starts: np.ndarray  # bool (num_tokens,)
    lengths: np.ndarray  # int64 (num_pieces,), in tokens
    lines: np.ndarray  # int64 (num_pieces,), the number of each piece's line in the corpus
    documents: np.ndarray  # int64 (num_pieces,), the number of each piece's document


class Rows:
    """The documents after the first `skip`, with their numbers in the corpus. Their digests are
    kept until a shard takes them."""

    def __init__(self, documents: Iterable[Mapping[str, str]], skip: int, progress: bool):
        self._documents, self._skip, self._progress = documents, skip, progress
        self._first = skip  # the first document that no shard has taken
        self._digests: list[bytes] = []

    def __iter__(self) -> Iterator[tuple[int, str]]:
        documents = self._documents
        total = len(documents) if isinstance(documents, Sized) else None
        if self._progress:
            documents = metered(documents, "tokenise", total, "documents")
        for number, row in enumerate(documents):
            if number >= self._skip:
                self._digests.append(text_digest(row["text"]))
                yield number, row["text"]

    def taken_until(self, end: int | None) -> tuple[int, str]:
        """(number, common digest) of the documents since the end of the last call."""
        count = len(self._digests) if end is None else end - self._first
        taken, self._digests = self._digests[:count], self._digests[count:]
        self._first += count
        return count, joined_digest(taken)


def encode_lines(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, batch_characters: int, words: str
) -> Iterator[Lines]:
    """The tokens of the corpus, in batches of about `batch_characters`.

    Words are taken from the ids where these show them (`WordStarts`), else from the tokenizer's own
    split of the text.
    """
    # a copy with other settings: no truncation, and "[MASK]" in a text is plain text
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    dtype = token_dtype(vocabulary_size(tokenizer))
    starts_of = WordStarts.of(tokenizer, words)
    encode_batch = backend.encode_batch if starts_of is None else backend.encode_batch_fast

    def encode(parts: list[str], owners: list[tuple[int, int]]) -> Lines:
        encodings = encode_batch(parts, add_special_tokens=False)
        lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        tokens = np.fromiter(ids, dtype, count=lengths.sum())
        if starts_of is None:
            word_ids = chain.from_iterable(encoding.word_ids for encoding in encodings)
            numbers = np.fromiter(word_ids, np.int64, count=len(tokens))
            word_starts = np.diff(numbers, prepend=-1) != 0
        else:
            word_starts = starts_of(tokens)
        lines, documents = np.array(owners, np.int64).reshape(-1, 2)[lengths > 0].T
        lengths = lengths[lengths > 0]
        word_starts[np.cumsum(lengths) - lengths] = True
        return Lines(tokens, word_starts, lengths, lines, documents)

    parts: list[str] = []
    owners: list[tuple[int, int]] = []
    characters = line_number = 0
    for number, text in rows:
        for line in lines_of(text):
            for part in pieces(line, _PIECE):
                parts.append(part)
                owners.append((line_number, number))
                characters += len(part) + _OWN_CHARACTERS
                if characters >= batch_characters:
                    yield encode(parts, owners)
                    parts, owners, characters = [], [], 0
            line_number += 1
    yield encode(parts, owners)
