"""bias_gelu against fp64, PyTorch in the same dtype, autograd, compile and AMP."""

import pytest
import torch
from torch.nn import functional as F

from spanbert_fast.ops import _common
from spanbert_fast.ops.bias_gelu import bias_gelu
from spanbert_fast.testing import assert_no_worse_than


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 7), (1, 1), (33, 100), (2, 3, 64)])
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
    with _common.use_backend("reference"):
        truth = run(bias_gelu, torch.float64)
    # The peer may hit the truth by luck at few elements: one unit in the last place of ours.
    floor = 2 * torch.finfo(dtype).eps
    for name, a, b, c in zip(("y", "dx", "dbias"), ours, peer, truth, strict=True):
        assert a.dtype == dtype
        assert_no_worse_than(a, b, c, floor=floor, name=name)


def test_non_contiguous_input_and_mixed_dtypes():
    x = torch.randn(12, 9).t()
    bias = torch.randn(12, dtype=torch.float64)
    y = bias_gelu(x, bias)
    assert y.dtype == torch.float32 and y.is_contiguous()
    torch.testing.assert_close(y, F.gelu(x + bias.float()))


def test_gradcheck_opcheck_compile():
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bias_gelu, (x, bias))
    torch.library.opcheck(torch.ops.spanbert_fast.bias_gelu_fwd, (x, bias))
    compiled = torch.compile(bias_gelu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, bias), bias_gelu(x, bias), rtol=0, atol=0)


def test_autocast_gives_its_dtype():
    with torch.autocast("cpu", torch.bfloat16):
        assert bias_gelu(torch.randn(3, 4), torch.randn(4)).dtype == torch.bfloat16


def test_bad_input():
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        bias_gelu(torch.randn(2, 4), torch.randn(3))
    with pytest.raises(TypeError, match="x must be float16.*got torch.int64"):
        bias_gelu(torch.ones(2, 4, dtype=torch.int64), torch.randn(4))
    with pytest.raises(ValueError, match="backend must be one of kernels, reference, got 'fast'"):
        with _common.use_backend("fast"):
            pass
