"""bias_gelu against fp64, PyTorch in the same dtype, autograd, compile and AMP."""

import pytest
import torch
from torch.nn import functional as F

from spanbert_fast import use_backend
from spanbert_fast._extension import _C
from spanbert_fast.ops.bias_gelu import bias_gelu
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (1, 1), (33, 100), (2, 3, 64), (700, 37)])
def test_no_worse_than_pytorch(shape, dtype, poisoned_empty):
    x = (2 * torch.randn(shape)).to(dtype).requires_grad_()
    bias = torch.randn(shape[-1]).to(dtype).requires_grad_()
    dy = torch.randn(shape).to(dtype)

    def run(function, cast):
        a, b = (t.detach().to(cast).requires_grad_() for t in (x, bias))
        y = function(a, b)
        return y, *torch.autograd.grad(y, (a, b), dy.to(cast))

    ours = run(bias_gelu, dtype)
    peer = run(lambda a, b: F.gelu(a + b), dtype)
    with use_backend("reference"):
        truth = run(bias_gelu, torch.float64)
    # With few elements the peer may be exact by luck. One unit in the last place; in dbias, of sums
    # of up to 700 rows.
    floor = 2 * torch.finfo(dtype).eps * max(1, truth[2].abs().max().item() if shape[-1] else 1)
    for name, a, b, c in zip(("y", "dx", "dbias"), ours, peer, truth, strict=True):
        assert a.dtype == dtype
        assert_no_worse_than(a, b, c, floor=floor, name=name)


def test_non_contiguous_input_and_mixed_dtypes():
    x = torch.randn(12, 9).t()
    bias = torch.randn(12, dtype=torch.float64)
    y = bias_gelu(x, bias)
    assert y.dtype == torch.float32 and y.is_contiguous()
    torch.testing.assert_close(y, F.gelu(x + bias.float()))


@pytest.mark.skipif(_C is None, reason="PyTorch's own operators promise less")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_relative_error_of_the_tails(dtype):
    """The left tail, which falls to 1e-30, keeps its leading digits; the right one is x itself."""
    x = torch.linspace(-9, 11, 20_001).to(dtype)
    zero = torch.zeros_like(x)
    y = bias_gelu(x, zero).double()
    wide = x.double()
    truth = wide * torch.special.erfc(-wide / 2**0.5) / 2
    visible = truth.abs() >= torch.finfo(dtype).tiny
    error = ((y - truth) / truth)[visible & (wide != 0)].abs().max().item()
    # half a unit for the rounding of y; in fp32 the exponent x^2 / 2 = 40 is rounded, too
    assert error <= (8e-6 if dtype == torch.float32 else 0.6 * torch.finfo(dtype).eps)
    far = torch.tensor([[-1e4, -60.0, 60.0, 1e4]]).to(dtype)
    torch.testing.assert_close(
        bias_gelu(far, far.new_zeros(4)), torch.tensor([[0.0, 0.0, 60.0, 1e4]]).to(dtype)
    )


def test_what_is_not_finite_shows():
    x = torch.tensor([[float("nan"), float("inf"), 1.0]], requires_grad=True)
    y = bias_gelu(x, torch.zeros(3))
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(y).tolist() == torch.isfinite(dx).tolist() == [[False, False, True]]


@pytest.mark.skipif(_C is None, reason="PyTorch's own operators promise less")
def test_same_bits_for_any_number_of_threads(each_thread_count):
    x = torch.randn(3000, 65, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(65, requires_grad=True)
    dy = torch.randn(3000, 65).bfloat16()

    def run():
        y = bias_gelu(x, bias)
        return y, *torch.autograd.grad(y, (x, bias), dy)

    each_thread_count(run)


@pytest.mark.skipif(_C is None, reason="PyTorch's own allocator")
def test_results_of_megabytes_share_no_memory():
    """They reuse the memory of results that are gone, and none that is still in use."""
    x, bias = torch.randn(512, 2048), torch.randn(2048)
    expected = bias_gelu(x, bias).clone()
    first = bias_gelu(x, bias)
    address = first.data_ptr()
    others = [bias_gelu(i * x, bias) for i in range(3)]
    assert_bitwise_equal(first, expected)
    assert len({t.data_ptr() for t in (first, *others)}) == 4
    del first, others
    again = [bias_gelu(x, bias) for _ in range(4)]
    assert address in {t.data_ptr() for t in again}
    for y in again:
        assert_bitwise_equal(y, expected)


def test_gradcheck_compile():
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bias_gelu, (x, bias))
    compiled = torch.compile(bias_gelu, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(x, bias), bias_gelu(x, bias))
    x, bias = x.detach(), bias.detach()  # no gradient is needed, as in a frozen model
    assert_bitwise_equal(compiled(x, bias), bias_gelu(x, bias))
    with torch.no_grad():
        assert_bitwise_equal(compiled(x, bias), bias_gelu(x, bias))


def test_autocast_gives_its_dtype():
    with torch.autocast("cpu", torch.bfloat16):
        assert bias_gelu(torch.randn(3, 4), torch.randn(4)).dtype == torch.bfloat16


def test_bad_input():
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        bias_gelu(torch.randn(2, 4), torch.randn(3))
    with pytest.raises(TypeError, match="x must be float16.*got torch.int64"):
        bias_gelu(torch.ones(2, 4, dtype=torch.int64), torch.randn(4))
