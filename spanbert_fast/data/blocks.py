"""Blocks of a prepared corpus. A block is one training example."""

import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch

from spanbert_fast.data.shards import Shard
from spanbert_fast.errors import DataError, UsageError

_SPECIAL_TOKENS = 2  # [CLS] and [SEP] around a block
# From this many documents on, whole documents are held out.
_MIN_DOCUMENTS_TO_SPLIT = 20


class BlockDataset(torch.utils.data.Dataset):
    """Single-sequence blocks `[CLS] tokens [SEP]`, as in the pre-training of SpanBERT.

    Whole lines of one document are packed greedily up to `max_seq_length - 2` tokens; longer lines
    are cut. With probability `short_seq_prob`, the target length of a block is drawn uniformly from
    [2, max_seq_length - 2]. Every token of the corpus is in exactly one block. The blocks depend on
    the corpus and the seed, but not on how the corpus is cut into shards.

    Only indices are in memory, 8 bytes a block, or 12 after `split`. Tokens are read from the
    mapped shards on access.

    Args:
        shards: in the order of the corpus (`open_shards`).
        cls_token_id: first token of every block.
        sep_token_id: last token of every block.
        max_seq_length: tokens of the longest block, [CLS] and [SEP] included; at least 3.
        short_seq_prob: probability of a shorter target length.
        seed: of the target lengths.

    Attributes:
        lengths: int32 (num_blocks,), tokens of each block, [CLS] and [SEP] included.
        vocab_size: every id is below this.

    Raises:
        UsageError: max_seq_length or short_seq_prob is out of range.
        DataError: there is no block.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        cls_token_id: int,
        sep_token_id: int,
        max_seq_length: int = 512,
        short_seq_prob: float = 0.1,
        seed: int = 0,
    ):
        if max_seq_length <= _SPECIAL_TOKENS:
            raise UsageError(f"max_seq_length must be at least 3, got {max_seq_length}")
        if not 0.0 <= short_seq_prob <= 1.0:
            raise UsageError(f"short_seq_prob must be in [0, 1], got {short_seq_prob}")
        if not shards:
            raise DataError("the corpus is empty: no shards")
        self.shards = tuple(shards)
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id
        self.max_seq_length = max_seq_length
        self.vocab_size = max(shard.vocab_size for shard in self.shards)

        rng = np.random.default_rng(seed)
        starts, lengths = [], []
        largest = max(shard.num_tokens for shard in self.shards)
        for shard in self.shards:
            ends = _cut(shard, max_seq_length - _SPECIAL_TOKENS, short_seq_prob, rng)
            # within a shard, blocks follow each other without a gap
            starts.append(np.concatenate(([0], ends[:-1])).astype(_index_dtype(largest)))
            lengths.append((np.diff(ends, prepend=0) + _SPECIAL_TOKENS).astype(np.int32))
        # prefix sums over the corpus: they tell in which shard a block lies
        self._shard_ends = list(accumulate(map(len, starts)))
        self._starts = np.concatenate(starts)
        self.lengths = np.concatenate(lengths)
        # numbers of this part's blocks in the corpus; None for all
        self._numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, np.ndarray | int]:
        """A block; the key is its index, or (epoch, index).

        Returns:
            input_ids: int64 (length,).
            word_starts: bool (length,); True at [CLS], [SEP] and the first token between them, even
                if its word began in the block before.
            example_id: the block's number in the corpus, which a split does not change.
            epoch: the key's epoch, or 0.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        length = int(self.lengths[index])
        input_ids = np.empty(length, dtype=np.int64)
        input_ids[0], input_ids[-1] = self.cls_token_id, self.sep_token_id
        input_ids[1:-1] = self._tokens(index)
        word_starts = np.ones(length, dtype=bool)
        shard, start = self._shard_of(index), int(self._starts[index])
        word_starts[2:-1] = shard.word_starts(start, length - _SPECIAL_TOKENS)[1:]
        return {
            "input_ids": input_ids,
            "word_starts": word_starts,
            "example_id": self._number(index),
            "epoch": int(epoch),
        }

    def _number(self, index: int) -> int:
        """The number of a block in the corpus."""
        return range(len(self))[index] if self._numbers is None else int(self._numbers[index])

    def _shard_of(self, index: int) -> Shard:
        return self.shards[bisect.bisect_right(self._shard_ends, self._number(index))]

    def _tokens(self, index: int) -> np.ndarray:
        """The block's own tokens, a view of the mapped file."""
        start = int(self._starts[index])
        end = start + int(self.lengths[index]) - _SPECIAL_TOKENS
        return self._shard_of(index).tokens[start:end]

    def documents(self) -> np.ndarray:
        """int64 (num_blocks,): the number of each block's document in the corpus, ascending."""
        numbers = np.arange(len(self)) if self._numbers is None else self._numbers
        shards = np.searchsorted(self._shard_ends, numbers, side="right")
        found = np.empty(len(self), dtype=np.int64)
        before = 0
        for number, shard in enumerate(self.shards):
            first, last = np.searchsorted(shards, (number, number + 1))
            ends = shard.line_offsets[shard.document_offsets[1:]]
            starts = self._starts[first:last]
            found[first:last] = before + np.searchsorted(ends, starts, side="right")
            before += shard.num_documents
        return found

    def split(self, fraction: float, seed: int = 0) -> "tuple[BlockDataset, BlockDataset]":
        """(the rest, held out): hold out a random part with at most `fraction` of the tokens.

        With 20 documents or more, whole documents are held out; with fewer, blocks. At least one
        document or block is held out, however small `fraction` is.

        Raises:
            UsageError: fraction is not in (0, 1).
            DataError: the corpus is a single block.
        """
        if not 0.0 < fraction < 1.0:
            raise UsageError(f"fraction must be in (0, 1), got {fraction}")
        if len(self) < 2:
            raise DataError(
                f"{self.shards[0].path.parent}: a corpus of {len(self)} block is too small to hold "
                "out a part of it"
            )
        units = np.cumsum(np.diff(self.documents(), prepend=-1) > 0) - 1
        if units[-1] + 1 < _MIN_DOCUMENTS_TO_SPLIT:
            units = np.arange(len(self))
        sizes = np.bincount(units, weights=self.lengths).astype(np.int64)
        held_out = _choose(sizes, fraction, np.random.default_rng(seed))[units]
        return self._subset(~held_out), self._subset(held_out)

    def _subset(self, chosen: np.ndarray) -> "BlockDataset":
        subset = object.__new__(BlockDataset)
        subset.__dict__.update(self.__dict__)
        subset._starts, subset.lengths = self._starts[chosen], self.lengths[chosen]
        if self._numbers is None:
            subset._numbers = np.flatnonzero(chosen).astype(_index_dtype(len(self)))
        else:
            subset._numbers = self._numbers[chosen]
        return subset

    def unigram_counts(self) -> np.ndarray:
        """int64 (vocab_size,): how often the blocks have each token, without special tokens."""
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for tokens in self._in_pieces():
            counts += np.bincount(tokens, minlength=self.vocab_size)
        return counts

    def _in_pieces(self) -> Iterator[np.ndarray]:
        """All tokens, in large parts: each bincount costs time for the whole vocabulary."""
        if self._numbers is None:  # every token of the corpus is in exactly one block
            for shard in self.shards:
                yield from np.split(shard.tokens, range(1 << 22, shard.num_tokens, 1 << 22))
            return
        for first in range(0, len(self), 4096):
            indices = range(first, min(first + 4096, len(self)))
            yield np.concatenate([self._tokens(index) for index in indices])


def _index_dtype(end: int) -> type[np.unsignedinteger]:
    """The dtype of indices below `end`."""
    return np.uint32 if end <= 1 << 32 else np.uint64


def _cut(
    shard: Shard, max_tokens: int, short_seq_prob: float, rng: np.random.Generator
) -> np.ndarray:
    """int64 (num_blocks,): where each block ends in the shard's tokens."""
    ends: list[int] = []
    for document in range(shard.num_documents):
        first, last = shard.document_offsets[document : document + 2]
        lines = shard.line_offsets[first + 1 : last + 1].tolist()
        start = ends[-1] if ends else 0
        ends.extend(_block_ends(start, lines, max_tokens, short_seq_prob, rng))
    return np.array(ends, dtype=np.int64)


def _block_ends(
    start: int,
    line_ends: list[int],
    max_tokens: int,
    short_seq_prob: float,
    rng: np.random.Generator,
) -> Iterator[int]:
    """Where the blocks of one document end; `start` is its first token."""
    line = 0
    while start < line_ends[-1]:
        target = max_tokens
        if short_seq_prob and rng.random() < short_seq_prob:
            target = int(rng.integers(min(2, max_tokens), max_tokens + 1))
        # as many whole lines as fit; if the first one does not, cut it at the target
        line = bisect.bisect_right(line_ends, start + target, lo=line)
        fits = line > 0 and line_ends[line - 1] > start
        start = line_ends[line - 1] if fits else start + target
        yield start


def _choose(sizes: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """bool, one per unit: choose units in random order while they fit into fraction * sum."""
    room = fraction * sizes.sum()
    smallest = sizes.min()
    chosen = np.zeros(len(sizes), dtype=bool)
    for unit in map(int, rng.permutation(len(sizes))):
        if room < smallest:
            break
        if sizes[unit] <= room:
            chosen[unit] = True
            room -= sizes[unit]
    if not chosen.any():
        chosen[sizes.argmin()] = True
    return chosen
