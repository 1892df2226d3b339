"""linear on any CPU: PyTorch's own, and the path for CPUs whose 16-bit products are slow."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from spanbert_fast import use_backend
from spanbert_fast.ops import _precision
from spanbert_fast.ops import linear as op
from spanbert_fast.ops.linear import linear
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than

HALVES = [torch.bfloat16, torch.float16]
NAMES = ("y", "dx", "dweight", "dbias")


@pytest.fixture
def wide(monkeypatch):
    """Pretend a CPU without units for 16-bit products."""
    monkeypatch.setattr(_precision, "_SLOW_PRODUCTS", tuple(HALVES))


def make(shape, out_features, dtype):
    shapes = (shape, (out_features, shape[-1]), (out_features,))
    return [torch.randn(s).to(dtype) for s in shapes]


def run(function, tensors, dy):
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))


def assert_within_c5(ours, peer, truth, dtype):
    for name, a, b, c in zip(NAMES, ours, peer, truth, strict=False):
        # The peer may be exact by luck: one rounding of the largest value, and fp32 sums of up to
        # 130 products of that size.
        largest = c.abs().max().item() if c.numel() else 0.0
        floor = (torch.finfo(dtype).eps + 16 * torch.finfo(torch.float32).eps) * largest
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (130, 67), (2, 5, 64), (64,)])
def test_no_worse_than_pytorch(shape, dtype, wide):
    tensors = make(shape, 33, dtype)
    dy = torch.randn(*shape[:-1], 33).to(dtype)
    ours = run(linear, tensors, dy)
    assert all(t.dtype == dtype for t in ours)
    truth = run(F.linear, [t.double() for t in tensors], dy)
    assert_within_c5(ours, run(F.linear, tensors, dy), truth, dtype)
    without = run(linear, tensors[:2], dy)
    truth = run(F.linear, [t.double() for t in tensors[:2]], dy)
    assert_within_c5(without, run(F.linear, tensors[:2], dy), truth, dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_each_result_is_rounded_once(dtype, wide):
    """Sums in the dtype itself would stop growing at 256 in bf16 and at 2,048 in fp16."""
    x, weight, bias = torch.ones(3000, 4), torch.ones(2, 4), torch.zeros(2)
    tensors = [t.to(dtype) for t in (x, weight, bias)]
    _, _, dweight, dbias = run(linear, tensors, torch.ones(3000, 2).to(dtype))
    rounded = torch.tensor(3000.0).to(dtype)
    assert (dweight == rounded).all() and (dbias == rounded).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("given", HALVES + [torch.float32])
def test_autocast_takes_any_dtype_and_gives_gradients_of_each(given, dtype, wide):
    """Inputs have autocast's dtype or fp32, and parameters fp32; each gets its gradient's dtype."""
    x, weight, bias = make((40, 64), 33, torch.float32)
    tensors = [x.to(given), weight, bias]
    dy = torch.randn(40, 33).to(dtype)

    def under_autocast(function):
        def run_it(*leaves):
            with torch.autocast("cpu", dtype):
                return function(*leaves)

        return run(run_it, tensors, dy)

    ours, peer = under_autocast(linear), under_autocast(F.linear)
    assert [t.dtype for t in ours] == [t.dtype for t in peer]
    assert [t.dtype for t in ours] == [dtype, given, torch.float32, torch.float32]
    truth = run(F.linear, [t.double() for t in tensors], dy)
    assert_within_c5(ours, peer, truth, dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_compiles_without_a_break(dtype, wide):
    tensors, dy = make((6, 8), 5, dtype), torch.randn(6, 5).to(dtype)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(compiled, tensors, dy), run(linear, tensors, dy), strict=True):
        assert_bitwise_equal(a, b)
    with torch.autocast("cpu", dtype):
        single = [t.float() for t in tensors]
        for a, b in zip(run(compiled, single, dy), run(linear, single, dy), strict=True):
            assert_bitwise_equal(a, b)


def test_only_what_needs_a_gradient_is_computed(wide):
    x, weight, bias = make((6, 8), 5, torch.bfloat16)
    product = 2 * 6 * 8 * 5
    for needed, products in (((0,), 1), ((1,), 1), ((2,), 0), ((0, 1, 2), 2)):
        leaves = [t.detach().requires_grad_(k in needed) for k, t in enumerate((x, weight, bias))]
        y = linear(*leaves)
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        assert counter.get_total_flops() == products * product, needed
        assert [leaf.grad is not None for leaf in leaves] == [k in needed for k in range(3)]


def test_second_derivatives(wide):
    """They equal those of F.linear, for a penalty on dx, which is a function of the weight."""
    x, weight, bias = make((6, 8), 5, torch.bfloat16)

    def penalty_gradient(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
        y = function(*leaves)
        (dx,) = torch.autograd.grad(y.sin().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaves[:2])

    ours, theirs = (penalty_gradient(f, torch.bfloat16) for f in (linear, F.linear))
    for a, b, c in zip(ours, theirs, penalty_gradient(F.linear, torch.float64), strict=True):
        # the peer may be exact by luck: some roundings of the largest value
        floor = 2 * torch.finfo(torch.bfloat16).eps * c.abs().max().item()
        assert_no_worse_than(a, b, c, floor=floor)


def test_views_and_expanded_gradients(wide):
    x, weight, bias = make((9, 7), 5, torch.bfloat16)
    dy = torch.randn(5, 9).bfloat16()
    views = [x.t().contiguous().t(), weight.t().contiguous().t(), bias[:1].expand(5)]
    copies = [t.contiguous() for t in views]
    results = run(linear, views, dy.t()), run(linear, copies, dy.t().contiguous())
    for a, b in zip(*results, strict=True):
        # other strides may change the order of fp32 sums, and so a rounding to bf16
        torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-5)
    leaf = x.clone().requires_grad_()
    linear(leaf, weight).sum().backward()  # dy is one element, expanded
    torch.testing.assert_close(leaf.grad, weight.sum(0).expand(9, 7), rtol=2**-6, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_elsewhere_it_is_pytorchs(dtype, monkeypatch):
    monkeypatch.setattr(_precision, "_SLOW_PRODUCTS", (torch.float16,))
    tensors, dy = make((6, 8), 5, dtype), torch.randn(6, 5).to(dtype)
    for a, b in zip(run(linear, tensors, dy), run(F.linear, tensors, dy), strict=True):
        assert_bitwise_equal(a, b)
    monkeypatch.setattr(op, "_WideLinear", None)  # no gradient is asked for
    linear(*tensors)
    with use_backend("reference"):
        linear(*(t.half() for t in tensors))


def test_what_products_are_made_in():
    cpu = torch.device("cpu")
    assert _precision.product_dtype(torch.float16, cpu) == torch.float32
    assert _precision.product_dtype(torch.float16, torch.device("meta")) == torch.float16
    for dtype in (torch.float32, torch.float64):
        assert _precision.product_dtype(dtype, cpu) == dtype


def test_bad_input(wide):
    x, weight, bias = make((6, 8), 5, torch.bfloat16)
    with pytest.raises(TypeError, match="weight must be torch.bfloat16 as x is, got torch.float32"):
        linear(x, weight.float(), bias)
    with pytest.raises(TypeError, match="bias must be torch.bfloat16 as x is, got torch.float16"):
        linear(x, weight, bias.half())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x[:, :7], weight, bias)
