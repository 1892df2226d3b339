"""span_boundary_gather against fp64, and against the form that concatenates (contract C2)."""

import pytest
import torch
from torch.nn import functional as F

from span_boundary_gather_cases import LENGTHS, cumulative, make
from spanbert_fast import use_backend
from spanbert_fast.ops.span_boundary_gather import span_boundary_gather
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than


def run(function, tensors, dy, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    y = function(*leaves)
    return y, *torch.autograd.grad(y, leaves, dy.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [1, 100, 768])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_no_worse_than_pytorch(lengths, hidden, dtype, poisoned_empty):
    tensors = make(lengths, hidden, dtype)
    cu_span_lengths, total = cumulative(lengths), sum(lengths)
    dy = torch.randn(total, hidden).to(dtype)

    def ours(spans, places, weight, bias):
        return span_boundary_gather(spans, places, cu_span_lengths, total, weight, bias, eps=1e-5)

    def peer(spans, places, weight, bias):
        span = [s for s, length in enumerate(lengths) for _ in range(length)]
        place = [k for length in lengths for k in range(length)]
        z = spans[torch.tensor(span).long()] + places[torch.tensor(place).long()]
        return F.layer_norm(F.gelu(z), (hidden,), weight, bias, 1e-5)

    got, like = run(ours, tensors, dy, dtype), run(peer, tensors, dy, dtype)
    with use_backend("reference"):
        truth = run(ours, tensors, dy, torch.float64)
    names = ("y", "dspans", "dplaces", "dweight", "dbias")
    for name, a, b, c in zip(names, got, like, truth, strict=True):
        assert a.dtype == dtype
        # The peer may be exact by luck. Sums of up to 33 rows of values up to 8, and one more unit
        # for the rounding of the largest value itself.
        floor = torch.finfo(dtype).eps * (8 + (c.abs().max().item() if c.numel() else 0))
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_concatenated_form_to_rounding(dtype):
    """W1 [x_l; x_r; p_k] + b1 as one product of concatenated rows: forward and all gradients."""
    hidden, size, lengths = 96, 40, [5, 1, 20, 3]
    total, cu_span_lengths = sum(lengths), cumulative(lengths)
    shapes = ((9, hidden), (20, size), (hidden, 2 * hidden + size), (hidden,), (hidden,), (hidden,))
    scales = (1, 1, 0.1, 0.5, 1, 1)
    tensors = [(s * torch.randn(shape)).to(dtype) for s, shape in zip(scales, shapes, strict=True)]
    boundaries = torch.tensor([[0, 3], [3, 5], [5, 8], [0, 3]])  # some boundaries come twice
    dy = torch.randn(total, hidden).to(dtype)

    def split(x, p, w1, b1, weight, bias):
        of_boundaries, of_places = w1.split([2 * hidden, size], dim=1)
        return span_boundary_gather(
            F.linear(x[boundaries].flatten(1), of_boundaries),
            F.linear(p, of_places, b1),
            cu_span_lengths,
            total,
            weight,
            bias,
        )

    def concatenated(x, p, w1, b1, weight, bias):
        rows = [
            torch.cat([x[left], x[right], p[k]])
            for (left, right), length in zip(boundaries.tolist(), lengths, strict=True)
            for k in range(length)
        ]
        z = F.linear(torch.stack(rows), w1, b1)
        return F.layer_norm(F.gelu(z), (hidden,), weight, bias, 1e-12)

    got, like = run(split, tensors, dy, dtype), run(concatenated, tensors, dy, dtype)
    truth = run(concatenated, tensors, dy, torch.float64)
    names = ("y", "dx", "dp", "dw1", "db1", "dweight", "dbias")
    for name, a, b, c in zip(names, got, like, truth, strict=True):
        # A few units of the largest value; more in fp64, where the peer is the truth itself, and
        # only the order of sums of 200 terms differs.
        units = 64 if dtype == torch.float64 else 4
        floor = units * torch.finfo(dtype).eps * c.abs().max().item()
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype, each_thread_count):
    """There are more spans than one task sums, so dplaces adds up several tasks."""
    lengths = (torch.arange(300) * 7 % 21).tolist()
    tensors, total = make(lengths, 100, dtype), sum(lengths)
    dy = torch.randn(total, 100)

    def ours(spans, places, weight, bias):
        return span_boundary_gather(spans, places, cumulative(lengths), total, weight, bias)

    each_thread_count(lambda: run(ours, tensors, dy, dtype))


def test_many_spans_are_summed_in_fp32():
    """1,024 spans add to one place; a sum in bf16 would soon stop growing."""
    count, hidden = 1024, 32
    tensors = make([1] * count, hidden, torch.bfloat16, places=1)
    dy = torch.randn(count, hidden).to(torch.bfloat16).abs()

    def ours(spans, places, weight, bias):
        return span_boundary_gather(
            spans, places, cumulative([1] * count), count, weight, bias, eps=1e-5
        )

    got = run(ours, tensors, dy, torch.bfloat16)
    with use_backend("reference"):
        truth = run(ours, tensors, dy, torch.float64)
    for a, c in zip(got[2:], truth[2:], strict=True):
        # one rounding of the sum, and the kernels' 3e-5 of each term
        error = torch.finfo(torch.bfloat16).eps * c.abs().max().item()
        torch.testing.assert_close(a.double(), c, rtol=0, atol=error)


def test_same_bits_twice_and_non_contiguous():
    lengths = [3, 20, 1]
    spans, places, weight, bias = make(lengths, 24, torch.float32)
    arguments = (cumulative(lengths), 24, weight, bias)
    first = span_boundary_gather(spans, places, *arguments)
    assert_bitwise_equal(span_boundary_gather(spans, places, *arguments), first)
    columns = spans.t().contiguous().t(), places.t().contiguous().t()
    assert_bitwise_equal(span_boundary_gather(*columns, *arguments), first)


def test_gradcheck_compile():
    lengths = [2, 0, 3]
    tensors = [t.requires_grad_() for t in make(lengths, 6, torch.float64, places=4)]
    cu_span_lengths = cumulative(lengths)

    def function(spans, places, weight, bias):
        return span_boundary_gather(spans, places, cu_span_lengths, 5, weight, bias)

    assert torch.autograd.gradcheck(function, tensors)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(*tensors), function(*tensors))


def test_autocast_gives_its_dtype():
    spans, places, weight, bias = make([2], 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = span_boundary_gather(spans, places, cumulative([2]), 2, weight, bias)
    assert y.dtype == torch.bfloat16


def test_bad_input():
    spans, places, weight, bias = make([2, 3], 8, torch.float32, places=4)
    cu_span_lengths = cumulative([2, 3])

    def call(**changed):
        arguments = {
            "spans": spans,
            "places": places,
            "cu_span_lengths": cu_span_lengths,
            "num_targets": 5,
            "weight": weight,
            "bias": bias,
        }
        return span_boundary_gather(**{**arguments, **changed})

    with pytest.raises(ValueError, match=r"spans must have shape \(num_spans, hidden_size\), got"):
        call(spans=spans[0])
    with pytest.raises(ValueError, match=r"places must have shape \(max_span_targets, 8\), got"):
        call(places=places[:, :7])
    with pytest.raises(ValueError, match=r"weight must have shape \(8,\), got \(7,\)"):
        call(weight=weight[:7])
    with pytest.raises(ValueError, match=r"cu_span_lengths must have shape \(3,\), got \(2,\)"):
        call(cu_span_lengths=cu_span_lengths[:2])
    with pytest.raises(TypeError, match="cu_span_lengths must be int32, got torch.int64"):
        call(cu_span_lengths=cu_span_lengths.long())
    with pytest.raises(ValueError, match="cu_span_lengths must end at 6, got 5"):
        call(num_targets=6)
    with pytest.raises(ValueError, match="cu_span_lengths must not fall, got 6 then 5"):
        call(cu_span_lengths=torch.tensor([0, 6, 5], dtype=torch.int32))
    with pytest.raises(ValueError, match="no span more than max_span_targets = 4 targets, got 5"):
        call(cu_span_lengths=torch.tensor([0, 0, 5], dtype=torch.int32))
    with pytest.raises(TypeError, match="places must be float16.*got torch.int64"):
        call(places=places.long())
