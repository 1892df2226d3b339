"""The Triton kernels of unpad and pad equal indexing bit for bit."""

import pytest
import torch

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from spanbert_fast.kernels.padding import pad_fwd, unpad_fwd  # noqa: E402
from spanbert_fast.testing import assert_bitwise_equal  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tail", [(), (1,), (5,), (2, 3), (1030,)])
def test_bitwise(tail, dtype, poisoned_empty):
    x = (3 * torch.randn(9, *tail)).to(DEVICE, dtype)
    indices = torch.tensor([3, 1, 7, 0, 8], device=DEVICE)
    packed = unpad_fwd(x, indices)
    assert_bitwise_equal(packed, x[indices])
    expected = torch.zeros_like(x)
    expected[indices] = packed
    assert_bitwise_equal(pad_fwd(packed, indices, 9), expected)


def test_complex_numbers():
    x = torch.randn(4, 3, dtype=torch.complex64, device=DEVICE)
    indices = torch.tensor([2, 0], device=DEVICE)
    packed = unpad_fwd(x, indices)
    assert torch.equal(packed, x[indices])
    assert torch.equal(pad_fwd(packed, indices, 4)[indices], packed)


@pytest.mark.parametrize("rows,tokens,width", [(4, 0, 3), (0, 0, 3), (3, 2, 0), (1, 1, 1)])
def test_empty(rows, tokens, width):
    x = torch.randn(rows, width, device=DEVICE)
    indices = torch.arange(tokens, device=DEVICE)
    assert_bitwise_equal(unpad_fwd(x, indices), x[indices])
    padded = pad_fwd(torch.ones(tokens, width, device=DEVICE), indices, rows)
    assert padded.shape == (rows, width) and padded.sum() == tokens * width


def test_an_index_out_of_range_reads_and_writes_nothing():
    x = torch.ones(3, 4, device=DEVICE)
    indices = torch.tensor([-1, 1, 3], device=DEVICE)
    assert unpad_fwd(x, indices)[:, 0].tolist() == [0, 1, 0]
    assert pad_fwd(2 * x, indices, 3)[:, 0].tolist() == [0, 2, 0]


def test_strided():
    x = torch.randn(4, 6, device=DEVICE).t()
    indices = torch.tensor([5, 0], device=DEVICE)
    assert_bitwise_equal(unpad_fwd(x, indices), x[indices])
    assert_bitwise_equal(pad_fwd(x[:2], indices, 6), pad_fwd(x[:2].contiguous(), indices, 6))
