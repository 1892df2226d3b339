"""span_representation against fp64: spans of any length and order, gradients, bad input."""

import pytest
import torch

from spanbert_fast.ops.span_representation import span_representation
from spanbert_fast.reference.span_representation import span_representation as reference
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than

NAMES = ("y", "dfirsts", "dlasts", "dinner", "dlogits")
SPANS = {
    "one row": ([3], [3]),
    "all rows": ([0], [36]),
    "crossing, nested, twice, in any order": ([9, 0, 5, 5, 5, 30], [12, 36, 5, 20, 20, 36]),
    "none": ([], []),
}


def make(widths, dtype, rows=37):
    a, b, c = widths
    shapes = ((rows, a), (rows, b), (rows, c), (rows,))
    return [torch.randn(shape).to(dtype) for shape in shapes]


def run(function, tensors, starts, ends, dy, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    firsts, lasts, inner, logits = leaves if len(leaves) == 4 else (*leaves, None, None)
    y = function(firsts, lasts, starts, ends, inner=inner, logits=logits)
    return y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("widths", [(1, 1, 1), (40, 24, 100)])
@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
def test_no_worse_than_pytorch(spans, widths, dtype, poisoned_empty):
    starts, ends = (torch.tensor(index, dtype=torch.int64) for index in spans)
    tensors = make(widths, dtype)
    dy = torch.randn(len(starts), sum(widths)).to(dtype)
    arguments = (tensors, starts, ends, dy)
    got, truth = (
        run(span_representation, *arguments, dtype), run(reference, *arguments, torch.double)
    )  # fmt: skip
    like = run(reference, *arguments, dtype)
    assert_bitwise_equal(got[0][:, : sum(widths[:2])], like[0][:, : sum(widths[:2])])
    for name, a, b, c in zip(NAMES, got, like, truth, strict=True):
        assert a.dtype == dtype
        # values of up to 4 in sums of six; a 16-bit kernel's weights have an error of 3e-6
        floor = torch.finfo(dtype).eps * (4 + (c.abs().max().item() if c.numel() else 0))
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_boundaries_alone(dtype, poisoned_empty):
    starts, ends = torch.tensor([4, 0, 4]), torch.tensor([4, 9, 30])
    tensors, dy = make((5, 40, 1), dtype)[:2], torch.randn(3, 45).to(dtype)
    got = run(span_representation, tensors, starts, ends, dy, dtype)
    truth = run(reference, tensors, starts, ends, dy, torch.double)
    assert_bitwise_equal(got[0], truth[0].to(dtype))
    for a, c in zip(got[1:], truth[1:], strict=True):
        torch.testing.assert_close(a, c.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype, each_thread_count):
    starts = torch.randint(0, 300, (500,))
    ends = (starts + torch.randint(0, 30, (500,))).clamp(max=299)
    tensors, dy = make((64, 64, 64), dtype, rows=300), torch.randn(500, 192)
    each_thread_count(lambda: run(span_representation, tensors, starts, ends, dy, dtype))


def test_large_logits_and_far_ones():
    """The softmax subtracts its largest logit, so large logits do not overflow."""
    tensors = make((2, 2, 3), torch.float32)
    starts, ends = torch.tensor([0, 20]), torch.tensor([9, 29])
    firsts, lasts, inner, logits = tensors
    first = span_representation(firsts, lasts, starts, ends, inner=inner, logits=logits)
    moved = span_representation(firsts, lasts, starts, ends, inner=inner, logits=logits + 4096)
    torch.testing.assert_close(moved, first, rtol=0, atol=2e-3)
    sure = torch.full((37,), -1e4)
    sure[[5, 22]] = 1e4
    y = span_representation(firsts, lasts, starts, ends, inner=inner, logits=sure)
    assert_bitwise_equal(y[:, 4:], inner[[5, 22]])


def test_non_contiguous_autocast_gradcheck_compile():
    tensors = make((3, 4, 5), torch.float32, rows=8)
    starts, ends = torch.tensor([6, 1, 0]), torch.tensor([7, 4, 0])

    def function(firsts, lasts, inner, logits):
        return span_representation(firsts, lasts, starts, ends, inner=inner, logits=logits)

    first = function(*tensors)
    assert_bitwise_equal(function(*(t.t().contiguous().t() for t in tensors)), first)
    with torch.autocast("cpu", torch.bfloat16):
        assert function(*tensors).dtype == torch.bfloat16
    wide = [t.double().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(function, wide)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), first)


def test_bad_input():
    firsts, lasts, inner, logits = make((3, 4, 5), torch.float32)
    starts, ends = torch.tensor([1, 2]), torch.tensor([3, 2])

    def call(firsts=firsts, lasts=lasts, starts=starts, ends=ends, inner=inner, logits=logits):
        return span_representation(firsts, lasts, starts, ends, inner=inner, logits=logits)

    with pytest.raises(ValueError, match=r"lasts must have shape \(37, features\), got \(36, 4\)"):
        call(lasts=lasts[1:])
    with pytest.raises(ValueError, match="inner and logits must be given together, got no logits"):
        call(logits=None)
    with pytest.raises(ValueError, match=r"ends must be in \[0, 37\), got 37"):
        call(ends=torch.tensor([3, 37]))
    with pytest.raises(ValueError, match="starts must be <= ends, got 4 and 3 at span 0"):
        call(starts=torch.tensor([4, 2]))
    with pytest.raises(TypeError, match="starts must be"):
        call(starts=starts.int())
