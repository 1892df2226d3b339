"""The memory that CPU kernels keep between steps: its limit, and how it is given back."""

import gc

import pytest
import torch

import spanbert_fast
from spanbert_fast._extension import _C
from spanbert_fast.ops.bias_gelu import bias_gelu

MIB = 1 << 20
LIMIT = 512 * MIB  # as in release_memory's docstring and docs/bounds.md


def result_of(mebibytes: int) -> torch.Tensor:
    """A result of this size, from an op that takes its memory from the store."""
    rows = torch.zeros(1, 1024, dtype=torch.bfloat16).expand(mebibytes * 512, 1024)
    return bias_gelu(rows, torch.ones(1024, dtype=torch.bfloat16))


@pytest.fixture(autouse=True)
def nothing_kept():
    gc.collect()
    spanbert_fast.release_memory()
    yield
    spanbert_fast.release_memory()


@pytest.mark.skipif(_C is None, reason="nothing is kept without the extension")
def test_what_is_kept_is_given_back_once():
    result = result_of(8)
    assert spanbert_fast.release_memory() == 0  # it is in use
    assert (result == result[0, 0]).all()
    del result
    assert spanbert_fast.release_memory() == 8 * MIB
    assert spanbert_fast.release_memory() == 0


@pytest.mark.skipif(_C is None, reason="nothing is kept without the extension")
def test_no_more_is_kept_than_the_limit():
    results = [result_of(96) for _ in range(6)]  # 576 MiB
    results.clear()
    assert spanbert_fast.release_memory() == LIMIT // (96 * MIB) * 96 * MIB


def test_small_results_are_not_kept():
    result_of(1)
    assert spanbert_fast.release_memory() == 0
