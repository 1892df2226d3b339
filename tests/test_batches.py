"""Batches by token budget lose and repeat no block, and do not depend on the number of ranks."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_fast.data.batches import TokenBudgetBatches
from spanbert_fast.errors import DataError, UsageError

LENGTHS = np.random.default_rng(0).integers(3, 129, 700)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=80),
    budget=st.integers(40, 200),
    seed=st.integers(0, 100),
)
def test_each_epoch_has_every_block_once_within_the_budget(lengths, budget, seed):
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for batch in TokenBudgetBatches(lengths, budget, 10**9, seed):
        epochs = {epoch for epoch, _ in batch}
        assert len(epochs) == 1  # all blocks of a batch are from one epoch
        if 3 in epochs:
            break
        assert 0 < sum(lengths[index] for _, index in batch) <= budget
        seen[epochs.pop()].extend(index for _, index in batch)
    for indices in seen.values():
        assert sorted(indices) == list(range(len(lengths)))


def test_epochs_and_seeds_have_their_own_order():
    def order(seed):
        stream = TokenBudgetBatches(LENGTHS, 1024, 500, seed)
        keys = [key for batch in stream for key in batch]
        return [[index for e, index in keys if e == epoch] for epoch in (0, 1)]

    first, second = order(0), order(1)
    orders = [*first, *second]
    assert all(sorted(indices) == list(range(len(LENGTHS))) for indices in orders)
    assert len({tuple(indices) for indices in orders}) == 4
    assert order(0) == first


def test_little_of_the_budget_is_lost():
    for budget in (512, 4096):
        batches = [batch for batch in TokenBudgetBatches(LENGTHS, budget, 400) if batch[0][0] == 0]
        # the fewest batches that can hold the epoch, plus 2 % and a last, partial one
        least = LENGTHS.sum() / budget
        assert len(batches) <= 1.02 * least + 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_stream_of_one_process(world_size):
    steps = 50
    whole = list(TokenBudgetBatches(LENGTHS, 512, steps * world_size, 4))
    ranks = [
        list(TokenBudgetBatches(LENGTHS, 512, steps, 4, rank, world_size))
        for rank in range(world_size)
    ]
    assert all(len(batches) == steps for batches in ranks)
    assert [batch for step in zip(*ranks, strict=True) for batch in step] == whole


def test_num_batches_cuts_the_stream_and_iterating_starts_again():
    batches = TokenBudgetBatches(LENGTHS, 1024, 300, 2)
    assert len(batches) == 300
    first = list(batches)
    assert len(first) == 300 and first == list(batches)
    assert list(TokenBudgetBatches(LENGTHS, 1024, 7, 2)) == first[:7]
    assert list(TokenBudgetBatches(LENGTHS, 1024, 0, 2)) == []


def test_epochs_after():
    batches = TokenBudgetBatches(LENGTHS, 1024, 300)
    assert batches.epochs_after(0) == 0.0
    one_epoch = sum(batch[0][0] == 0 for batch in batches)
    assert batches.epochs_after(one_epoch) == 1.0
    assert batches.epochs_after(10) == sum(map(len, islice(batches, 10))) / len(LENGTHS)
    assert TokenBudgetBatches(LENGTHS, 1024, 5, 0, 1, 2).epochs_after(5) == batches.epochs_after(10)


def test_bad_arguments_are_refused():
    with pytest.raises(UsageError, match="--tokens-per-batch must hold .* 128 tokens, got 127"):
        TokenBudgetBatches(LENGTHS, 127, 10)
    TokenBudgetBatches(LENGTHS, 128, 10)
    with pytest.raises(DataError, match="no blocks"):
        TokenBudgetBatches([], 128, 10)
    with pytest.raises(ValueError, match="num_batches must not be negative, got -1"):
        TokenBudgetBatches(LENGTHS, 128, -1)
    with pytest.raises(ValueError, match=r"rank must be in \[0, world_size = 2\), got 2"):
        TokenBudgetBatches(LENGTHS, 128, 10, rank=2, world_size=2)
