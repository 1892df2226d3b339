"""Batches of about equally many tokens, the same for any number of processes."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from spanbert_fast.errors import DataError, UsageError

# Number of batches that are filled at the same time; it leaves at most 1 % of the budget empty.
_OPEN_BATCHES = 16


class TokenBudgetBatches(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """An endless stream of batches of at most `tokens_per_batch` tokens, cut to `num_batches`.

    Each epoch shuffles the blocks by (seed, epoch) and packs every block into one batch. Batches
    are numbered 0, 1, 2, ... through all epochs, and process `rank` of `world_size` gets the
    numbers rank, rank + world_size, ... So a step of `world_size` processes sees the batches that
    one process sees with `world_size` times the gradient accumulation.

    Pass it to `DataLoader(batch_sampler=...)`. It yields keys (epoch, index), which `BlockDataset`
    takes. Iterating again starts from the beginning.

    Args:
        lengths: (num_blocks,) tokens of each block.
        tokens_per_batch: the budget; at least the longest block.
        num_batches: number of batches of this process.
        seed: of the shuffling.
        rank: the number of this process.
        world_size: number of processes.
        max_sequences: the most blocks of a batch; None for no limit beside the budget.

    Raises:
        UsageError: a block is longer than the budget.
        DataError: there are no blocks.
        ValueError: num_batches, rank, world_size or max_sequences is out of range.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        tokens_per_batch: int,
        num_batches: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        max_sequences: int | None = None,
    ):
        lengths = np.asarray(lengths)
        if len(lengths) == 0:
            raise DataError("there are no blocks to make batches of")
        if lengths.max() > tokens_per_batch:
            raise UsageError(
                f"--tokens-per-batch must hold the longest block of {lengths.max()} tokens, got "
                f"{tokens_per_batch}"
            )
        if num_batches < 0:
            raise ValueError(f"num_batches must not be negative, got {num_batches}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size = {world_size}), got {rank}")
        if max_sequences is not None and max_sequences < 1:
            raise ValueError(f"max_sequences must be at least 1, got {max_sequences}")
        self.lengths = lengths
        self.tokens_per_batch = tokens_per_batch
        self.num_batches = num_batches
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.max_sequences = max_sequences

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        total = self.num_batches * self.world_size
        return islice(self._stream(), self.rank, total, self.world_size)

    def epochs_after(self, num_batches: int) -> float:
        """How many epochs `num_batches` batches of each process are."""
        batches = islice(self._stream(), num_batches * self.world_size)
        return sum(map(len, batches)) / len(self.lengths)

    def _stream(self) -> Iterator[list[tuple[int, int]]]:
        epoch = 0
        while True:
            yield from self._epoch(epoch)
            epoch += 1

    def _in_order(self, order: np.ndarray) -> Iterator[tuple[int, int]]:
        """(index, length) of each block, made in parts: all at once, Python numbers would fill
        memory."""
        for part in np.split(order, range(1 << 16, len(order), 1 << 16)):
            yield from zip(part.tolist(), self.lengths[part].tolist(), strict=True)

    def _epoch(self, epoch: int) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches of an epoch: first fit into a window of open ones; the oldest leaves
        first."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))
        batches: list[list[tuple[int, int]]] = []
        rooms: list[int] = []
        for index, length in self._in_order(order):
            place = next((i for i, room in enumerate(rooms) if room >= length), None)
            if place is None:
                if len(batches) == _OPEN_BATCHES:
                    yield batches.pop(0)
                    rooms.pop(0)
                place = len(batches)
                batches.append([])
                rooms.append(self.tokens_per_batch)
            batches[place].append((epoch, index))
            full = len(batches[place]) == self.max_sequences
            rooms[place] = 0 if full else rooms[place] - length
        yield from batches
