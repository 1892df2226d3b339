"""Philox4x32 in Python and in the kernels against Random123's published known answers."""

import pytest
import torch

from spanbert_fast import _extension
from spanbert_fast.reference.philox import philox4x32, split_key

# Random123's kat_vectors: rounds, counter, key, answer. The third input is the digits of pi.
ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
KNOWN = [
    (7, (0,) * 4, (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (7, (ONES,) * 4, (ONES, ONES), (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (7, *PI, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
    (10, (0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (10, (ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (10, *PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "answer"), KNOWN)
def test_known_answers(rounds, counter, key, answer):
    assert philox4x32(counter, key, rounds) == answer
    tensors = philox4x32(
        tuple(torch.tensor([c, c]) for c in counter), tuple(torch.tensor(k) for k in key), rounds
    )
    assert [t.tolist() for t in tensors] == [[word, word] for word in answer]


@pytest.mark.skipif(_extension._C is None, reason="installed without the compiled extension")
@pytest.mark.parametrize(("rounds", "counter", "key", "answer"), KNOWN)
def test_known_answers_compiled(rounds, counter, key, answer):
    compiled = {7: _extension._C.philox4x32_7, 10: _extension._C.philox4x32_10}[rounds]
    assert tuple(compiled(counter, key)) == answer


def test_a_seed_is_two_words():
    assert split_key(0x0123456789ABCDEF) == (0x89ABCDEF, 0x01234567)
    assert split_key(-1) == (ONES, ONES)
    low, high = split_key(torch.tensor([-2, 2**62]))
    assert low.tolist() == [ONES - 1, 0] and high.tolist() == [ONES, 2**30]
