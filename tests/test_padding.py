"""unpad and pad copy bits; each is the inverse and the backward of the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_fast import use_backend
from spanbert_fast._extension import _C
from spanbert_fast.ops._implementations import implementations
from spanbert_fast.ops._register import KERNELS
from spanbert_fast.ops.padding import pad, take_tokens, unpad, unpad_indices
from spanbert_fast.testing import assert_bitwise_equal

MASKS = {
    "right": [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]],
    "left and holes": [[0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 0]],
    "empty sequences": [[0, 0], [1, 0], [0, 0]],
    "all real": [[1, 1, 1]],
    "length 1": [[1]],
    "no token": [[0, 0, 0], [0, 0, 0]],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("tail", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_bitwise_against_boolean_indexing(mask, tail, dtype, poisoned_empty):
    mask = torch.tensor(mask)
    x = (3 * torch.randn(*mask.shape, *tail)).to(dtype)
    packed, indices, cu_seqlens, max_seqlen = unpad(x, mask)
    assert_bitwise_equal(packed, x[mask.bool()])
    assert_bitwise_equal(indices, mask.flatten().nonzero().squeeze(1))
    assert cu_seqlens.dtype == torch.int32
    assert cu_seqlens.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert max_seqlen == mask.sum(1).max() and isinstance(max_seqlen, int)
    expected = x.clone()
    expected[~mask.bool()] = 0
    assert_bitwise_equal(pad(packed, indices, *mask.shape), expected)
    with use_backend("reference"):
        theirs = unpad(x, mask)
        assert theirs.max_seqlen == max_seqlen
        assert_bitwise_equal(theirs.packed, packed)
        assert_bitwise_equal(theirs.indices, indices)
        assert_bitwise_equal(theirs.cu_seqlens, cu_seqlens)
        assert_bitwise_equal(take_tokens(x, indices), packed)
        assert_bitwise_equal(pad(packed, indices, *mask.shape), expected)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_empty_batches(shape):
    packed, indices, cu_seqlens, max_seqlen = unpad(torch.randn(*shape, 2), torch.ones(shape))
    assert packed.shape == (0, 2) and max_seqlen == 0
    assert cu_seqlens.tolist() == [0] * (shape[0] + 1)
    assert pad(packed, indices, *shape).shape == (*shape, 2)


@pytest.mark.skipif(_C is None, reason="PyTorch's own operators")
def test_the_extension_has_both_ops():
    found = {
        entry.name for entry in implementations() if (entry.op, entry.device) == ("padding", "cpu")
    }
    assert found == {"C++"}


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_same_bits_for_any_number_of_threads(order, each_thread_count, poisoned_empty):
    """There are enough rows for several threads, in runs of all lengths and one by one."""
    x = torch.randn(6, 500, 64)
    indices = torch.randperm(3000)[:2000]
    if order == "sorted":
        indices = indices.sort().values
    padded = torch.zeros(3000, 64)
    padded[indices] = x.flatten(0, 1)[indices]

    def run():
        packed = take_tokens(x, indices)
        assert_bitwise_equal(packed, x.flatten(0, 1)[indices])
        assert_bitwise_equal(pad(packed, indices, 6, 500), padded.view(6, 500, 64))
        return packed, pad(packed, indices, 6, 500)

    each_thread_count(run)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_round_trip_of_any_mask(data):
    batch, seqlen = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 9))
    bits = data.draw(st.lists(st.booleans(), min_size=batch * seqlen, max_size=batch * seqlen))
    mask = torch.tensor(bits, dtype=torch.bool).view(batch, seqlen)
    x = torch.arange(1, batch * seqlen + 1).view(batch, seqlen)
    packed, indices, cu_seqlens, max_seqlen = unpad(x, mask)
    assert torch.equal(pad(packed, indices, batch, seqlen), x * mask)
    assert torch.equal(cu_seqlens.diff(), mask.sum(1))
    assert max_seqlen == max(mask.sum(1).tolist(), default=0)


def test_gradients_are_gathers_and_scatters():
    mask = torch.tensor([[1, 1, 0], [0, 1, 0]])
    x = torch.randn(2, 3, 4, requires_grad=True)
    packed, indices, *_ = unpad(x, mask)
    dpacked = torch.randn(3, 4)
    (dx,) = torch.autograd.grad(packed, x, dpacked)
    assert_bitwise_equal(dx, pad(dpacked, indices, 2, 3))
    rows = torch.randn(3, 4, requires_grad=True)
    dpadded = torch.randn(2, 3, 4)
    (drows,) = torch.autograd.grad(pad(rows, indices, 2, 3), rows, dpadded)
    assert_bitwise_equal(drows, dpadded[mask.bool()])


def test_gradcheck_compile():
    indices = torch.tensor([5, 0, 3])
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(take_tokens, (x, indices))
    assert torch.autograd.gradcheck(pad, (rows, indices, 2, 3))
    assert torch.autograd.gradgradcheck(pad, (rows, indices, 2, 3))

    def there_and_back(x, indices):
        return pad(take_tokens(x, indices), indices, 2, 3)

    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(x, indices), there_and_back(x, indices))


def test_non_contiguous_and_mask_dtypes():
    x = torch.randn(4, 3, 2).transpose(0, 1)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    for kind in (mask, mask.bool(), mask.float(), 7 * mask.int()):
        assert_bitwise_equal(unpad(x, kind).packed, x[mask.bool()])
    packed, indices, *_ = unpad(x, mask)
    assert_bitwise_equal(
        pad(packed.t().contiguous().t(), indices, 3, 4), pad(packed, indices, 3, 4)
    )


@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_bad_input(backend):
    x, mask = torch.randn(2, 3, 4), torch.ones(2, 3)
    indices = torch.arange(6)
    with use_backend(backend):
        with pytest.raises(ValueError, match=r"attention_mask must have shape \(2, 3\), got \(2,"):
            unpad(x, torch.ones(2, 4))
        with pytest.raises(ValueError, match=r"x must have shape \(batch, seqlen, .*, got \(6,\)"):
            unpad(torch.randn(6), mask)
        with pytest.raises(ValueError, match=r"x must have shape \(batch, seqlen, .*, got \(6,\)"):
            take_tokens(torch.randn(6), indices)
        with pytest.raises(ValueError, match=r"indices must have shape \(5,\), got \(6,\)"):
            pad(torch.randn(5, 4), indices, 2, 3)
        with pytest.raises(ValueError, match=r"x must have shape \(total_tokens, .*, got \(\)"):
            pad(torch.tensor(1.0), indices, 2, 3)
        with pytest.raises(TypeError, match="indices must be int64, got torch.int32"):
            pad(torch.randn(6, 4), indices.int(), 2, 3)
        with pytest.raises(ValueError, match=r"attention_mask must have shape \(batch, seqlen\)"):
            unpad_indices(torch.ones(3))


def test_an_index_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"indices must be in \[0, 6\), got 6"):
        pad(torch.randn(2, 4), torch.tensor([6, 0]), 2, 3)
    with pytest.raises(ValueError, match=r"indices must be in \[0, 6\), got -1"):
        take_tokens(torch.randn(2, 3, 4), torch.tensor([0, -1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_index_that_comes_twice_is_refused(dtype):
    """A token in two places would need the sum of two gradients, which pad does not compute."""
    twice = torch.tensor([3, 0, 3])
    with pytest.raises(ValueError, match="indices must be distinct, got 3 twice"):
        pad(torch.randn(3, 4, dtype=dtype), twice, 2, 3)
    x = torch.randn(2, 3, 4, dtype=dtype, requires_grad=True)
    taken = take_tokens(x, twice)
    assert_bitwise_equal(taken, x.flatten(0, 1)[twice])
    with pytest.raises(ValueError, match="indices must be distinct, got 3 twice"):
        taken.sum().backward()


@pytest.mark.parametrize("implementation", ["op", "composite"])
def test_the_ops_themselves_refuse_bad_input(implementation):
    """A caller of torch.ops, without the public functions, gets the same errors."""
    refused = (ValueError, RuntimeError)  # RuntimeError from PyTorch 2.15 on
    x = torch.randn(3, 4)
    unpad_fwd, pad_fwd = (getattr(KERNELS[f"{op}_fwd"], implementation) for op in ("unpad", "pad"))
    with pytest.raises(refused, match=r"indices must be in \[0, 3\), got -2"):
        unpad_fwd(x, torch.tensor([5, -2, 0]))
    with pytest.raises(refused, match=r"indices must be in \[0, 6\), got 7"):
        pad_fwd(x, torch.tensor([5, 7, 1]), 6)
    with pytest.raises(refused, match="indices must be distinct, got 5 twice"):
        pad_fwd(x, torch.tensor([5, 1, 5]), 6)
