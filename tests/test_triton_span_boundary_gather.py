"""The Triton kernels of span_boundary_gather against fp64: segments, empty spans, many spans."""

import pytest
import torch

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from torch.nn import functional as F  # noqa: E402

from span_boundary_gather_cases import LENGTHS, cumulative  # noqa: E402
from span_boundary_gather_cases import make as inputs_of  # noqa: E402
from spanbert_fast.kernels import column_sums  # noqa: E402
from spanbert_fast.kernels.span_boundary_gather import (  # noqa: E402
    span_boundary_gather_bwd,
    span_boundary_gather_fwd,
)
from spanbert_fast.ops.span_boundary_gather import GatherInputs  # noqa: E402
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than  # noqa: E402


def make(lengths, hidden, dtype, places=20):
    """Random [spans, places, weight, bias, dy]."""
    dy = 2 * torch.randn(sum(lengths), hidden)
    return [
        tensor.to(DEVICE, dtype)
        for tensor in (*inputs_of(lengths, hidden, torch.float32, places), dy)
    ]


def ours(lengths, spans, places, weight, bias, dy):
    inputs = GatherInputs(spans, places, cumulative(lengths, DEVICE), len(dy), weight, bias, 1e-5)
    y, *statistics = span_boundary_gather_fwd(inputs)
    return y, *span_boundary_gather_bwd(dy, inputs, *statistics)


def peer(lengths, *tensors):
    *leaves, dy = (t.detach().requires_grad_() for t in tensors)
    spans, places, weight, bias = leaves
    span = [s for s, length in enumerate(lengths) for _ in range(length)]
    place = [k for length in lengths for k in range(length)]
    z = spans[torch.tensor(span).long()] + places[torch.tensor(place).long()]
    y = F.layer_norm(F.gelu(z), (z.shape[1],), weight, bias, 1e-5)
    return y.detach(), *torch.autograd.grad(y, leaves, dy.detach())


def check(lengths, tensors, dtype):
    got, like = ours(lengths, *tensors), peer(lengths, *tensors)
    truth = peer(lengths, *(t.double() for t in tensors))
    names = ("y", "dspans", "dplaces", "dweight", "dbias")
    for name, a, b, c in zip(names, got, like, truth, strict=True):
        assert a.dtype == dtype
        # The peer may be exact by luck. Sums of up to 33 rows of values up to 8, and one more unit
        # for the rounding of the largest value itself.
        floor = torch.finfo(dtype).eps * (8 + (c.abs().max().item() if c.numel() else 0))
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [1, 100, 300])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_no_worse_than_pytorch(lengths, hidden, dtype, poisoned_empty):
    check(lengths, make(lengths, hidden, dtype), dtype)


def test_more_spans_than_parts(monkeypatch, poisoned_empty):
    """Each program takes several spans, the last one fewer; there are two tiles of spans."""
    monkeypatch.setattr(column_sums, "_MAX_PARTS", 8)
    lengths = (torch.arange(45) * 7 % 6).tolist()
    check(lengths, make(lengths, 20, torch.float32), torch.float32)


def test_lengths_that_do_not_fit_touch_nothing_outside(poisoned_empty):
    """Values are not checked on a GPU: some targets are past the end, some places do not exist."""
    spans, places, weight, bias, dy = make([2, 2], 12, torch.float32, places=3)
    too_long = torch.tensor([0, 9, 12], dtype=torch.int32, device=DEVICE)
    inputs = GatherInputs(spans, places, too_long, 4, weight, bias, 1e-5)
    y, *statistics = span_boundary_gather_fwd(inputs)
    assert torch.isfinite(y[:3]).all()
    span_boundary_gather_bwd(dy, inputs, *statistics)


def test_strided_inputs_and_wider_parameters():
    lengths = [3, 5, 1]
    spans, places, _, _, dy = make(lengths, 24, torch.bfloat16)
    weight, bias = (torch.randn(24, device=DEVICE) for _ in range(2))
    columns = [t.t().contiguous().t() for t in (spans, places)]
    got = ours(lengths, *columns, weight, bias, dy.t().contiguous().t())
    same = ours(lengths, spans, places, weight, bias, dy)
    for a, b in zip(got, same, strict=True):
        assert_bitwise_equal(a, b)
    assert [t.dtype for t in got] == [torch.bfloat16] * 3 + [torch.float32] * 2
