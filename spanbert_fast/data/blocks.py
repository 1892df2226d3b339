"""Blocks of a prepared corpus: what one training example is made of."""

import bisect
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from spanbert_fast.data.shards import Shard
from spanbert_fast.errors import DataError, UsageError

_SPECIAL_TOKENS = 2  # [CLS] and [SEP] around a block
# From this many documents on, whole documents are held out.
_MIN_DOCUMENTS_TO_SPLIT = 20


class BlockDataset(torch.utils.data.Dataset):
    """Single-sequence blocks `[CLS] tokens [SEP]`, as BERT's and SpanBERT's pre-training has them.

    Whole lines of one document are packed greedily up to `max_seq_length - 2` tokens; a line longer
    than that is cut. With probability `short_seq_prob` a block's target length is drawn uniformly
    from [2, max_seq_length - 2] instead. Every token of the corpus is in exactly one block. The
    blocks are a function of the corpus and the seed, not of how the corpus was cut into shards.

    Only indices are held; tokens are read from the mapped shards on access.

    Args:
        shards: in the order of the corpus (`open_shards`).
        cls_token_id: first token of every block.
        sep_token_id: last token of every block.
        max_seq_length: tokens of the longest block, [CLS] and [SEP] included; at least 3.
        short_seq_prob: probability of a shorter target length.
        seed: of the target lengths.

    Attributes:
        lengths: int64 (num_blocks,), tokens of each block, [CLS] and [SEP] included.
        vocab_size: every id is below it.

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
        cuts, documents, counts = [], [], []
        first_document = 0
        for shard in self.shards:
            block_ends, block_documents = _cut(
                shard, max_seq_length - _SPECIAL_TOKENS, short_seq_prob, rng
            )
            cuts.append(block_ends)
            documents.append(block_documents + first_document)
            counts.append(len(block_ends))
            first_document += shard.num_documents
        ends = np.concatenate(cuts)
        # within a shard blocks follow each other without a gap
        starts = np.concatenate([np.concatenate(([0], cut[:-1])) for cut in cuts])
        self._shard = np.repeat(np.arange(len(self.shards), dtype=np.int32), counts)
        self._start = starts
        self._document = np.concatenate(documents)
        self._example_id = np.arange(len(ends))
        self.lengths = ends - starts + _SPECIAL_TOKENS

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, np.ndarray | int]:
        """The block `index`, asked for as `index` or as (epoch, index).

        Returns:
            input_ids: int64 (length,).
            word_starts: bool (length,); True at [CLS], [SEP] and the first token between them,
                which has no more of its word before it.
            example_id: the block's number in the corpus, the same after a split.
            epoch: as in the key, 0 where it has none.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        length = int(self.lengths[index])
        input_ids = np.empty(length, dtype=np.int64)
        input_ids[0], input_ids[-1] = self.cls_token_id, self.sep_token_id
        input_ids[1:-1] = self._tokens(index)
        word_starts = np.ones(length, dtype=bool)
        shard, start = self.shards[self._shard[index]], int(self._start[index])
        word_starts[2:-1] = shard.word_starts(start, length - _SPECIAL_TOKENS)[1:]
        return {
            "input_ids": input_ids,
            "word_starts": word_starts,
            "example_id": int(self._example_id[index]),
            "epoch": int(epoch),
        }

    def _tokens(self, index: int) -> np.ndarray:
        """The block's own tokens, a view of the mapped file."""
        start = int(self._start[index])
        end = start + int(self.lengths[index]) - _SPECIAL_TOKENS
        return self.shards[self._shard[index]].tokens[start:end]

    def split(self, fraction: float, seed: int = 0) -> "tuple[BlockDataset, BlockDataset]":
        """(the rest, held out): a random part with at most `fraction` of the tokens is held out.

        Whole documents are held out where there are 20 or more, blocks where there are fewer. At
        least one document or block is held out, however small `fraction` is.

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
        units = np.unique(self._document, return_inverse=True)[1]
        if units.max() + 1 < _MIN_DOCUMENTS_TO_SPLIT:
            units = np.arange(len(self))
        sizes = np.bincount(units, weights=self.lengths).astype(np.int64)
        held_out = _choose(sizes, fraction, np.random.default_rng(seed))[units]
        return self._subset(~held_out), self._subset(held_out)

    def _subset(self, chosen: np.ndarray) -> "BlockDataset":
        subset = object.__new__(BlockDataset)
        subset.__dict__.update(self.__dict__)
        for name in ("_shard", "_start", "_document", "_example_id", "lengths"):
            setattr(subset, name, getattr(self, name)[chosen])
        return subset

    def unigram_counts(self) -> np.ndarray:
        """int64 (vocab_size,): how often each token is in the blocks, special tokens left out."""
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for first in range(0, len(self), 4096):  # a bincount per block would cost its vocabulary
            indices = range(first, min(first + 4096, len(self)))
            tokens = np.concatenate([self._tokens(index) for index in indices])
            counts += np.bincount(tokens, minlength=self.vocab_size)
        return counts


def _cut(
    shard: Shard, max_tokens: int, short_seq_prob: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """int64 (num_blocks,) twice: where each block ends in the shard's tokens, and its document."""
    ends: list[int] = []
    counts = []
    for lines in np.split(shard.line_offsets[1:], shard.document_offsets[1:-1]):
        start = int(shard.line_offsets[0]) if not ends else ends[-1]
        blocks_before = len(ends)
        ends.extend(_block_ends(start, lines.tolist(), max_tokens, short_seq_prob, rng))
        counts.append(len(ends) - blocks_before)
    documents = np.repeat(np.arange(shard.num_documents), counts)
    return np.array(ends, dtype=np.int64), documents


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
        # whole lines as long as they fit; at least up to the target where the first one doesn't
        line = bisect.bisect_right(line_ends, start + target, lo=line)
        fits = line > 0 and line_ends[line - 1] > start
        start = line_ends[line - 1] if fits else start + target
        yield start


def _choose(sizes: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """bool, one per unit: units in random order, each taken if it fits in fraction * sum."""
    room = fraction * sizes.sum()
    smallest = sizes.min()
    chosen = np.zeros(len(sizes), dtype=bool)
    for unit in rng.permutation(len(sizes)).tolist():
        if room < smallest:
            break
        if sizes[unit] <= room:
            chosen[unit] = True
            room -= sizes[unit]
    if not chosen.any():
        chosen[sizes.argmin()] = True
    return chosen
