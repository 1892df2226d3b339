"""The Triton kernels of bias_gelu against fp64, on a GPU or in the interpreter."""

import pytest
import torch

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from torch.nn import functional as F  # noqa: E402

from spanbert_fast.kernels.bias_gelu import bias_gelu_bwd, bias_gelu_fwd  # noqa: E402
from spanbert_fast.kernels.column_sums import column_sums, split_rows  # noqa: E402
from spanbert_fast.ops.bias_gelu import BiasGeluInputs  # noqa: E402
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than  # noqa: E402


def peer(dy, x, bias):
    x, bias = (t.detach().requires_grad_() for t in (x, bias))
    y = F.gelu(x + bias)
    return y.detach(), *torch.autograd.grad(y, (x, bias), dy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 0), (17, 100), (2, 3, 1030), (5,), (70, 33)])
def test_no_worse_than_pytorch(shape, dtype, poisoned_empty):
    x = (2 * torch.randn(shape)).to(DEVICE, dtype)
    bias = torch.randn(shape[-1]).to(DEVICE, dtype)
    dy = torch.randn(shape).to(DEVICE, dtype)
    inputs = BiasGeluInputs(x, bias)
    ours = bias_gelu_fwd(inputs), *bias_gelu_bwd(dy, inputs)
    like, truth = peer(dy, x, bias), peer(dy.double(), x.double(), bias.double())
    # With few elements the peer may be exact by luck. One unit in the last place; in dbias, of sums
    # of up to 70 rows.
    largest = truth[2].abs().max().item() if truth[2].numel() else 1
    floor = 2 * torch.finfo(dtype).eps * max(1, largest)
    for name, a, b, c in zip(("y", "dx", "dbias"), ours, like, truth, strict=True):
        assert a.dtype == dtype
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_relative_error_of_the_tails(dtype):
    """The left tail, which falls to 1e-30, keeps its leading digits; the right one is x itself."""
    x = torch.linspace(-9, 11, 2001, device=DEVICE).to(dtype)
    y = bias_gelu_fwd(BiasGeluInputs(x, torch.zeros_like(x))).double()
    wide = x.double()
    truth = wide * torch.special.erfc(-wide / 2**0.5) / 2
    visible = truth.abs() >= torch.finfo(dtype).tiny
    error = ((y - truth) / truth)[visible & (wide != 0)].abs().max().item()
    # half a unit for the rounding of y, or one, as the interpreter truncates to bf16; in fp32 the
    # exponent x^2 / 2 = 40 is rounded, too
    unit = 1.0 if (DEVICE, dtype) == ("cpu", torch.bfloat16) else 0.6
    assert error <= (8e-6 if dtype == torch.float32 else unit * torch.finfo(dtype).eps)


def test_what_is_not_finite_shows_and_stays_in_its_column():
    x = torch.tensor([[float("nan"), float("inf"), 1.0], [0.0, 1.0, 2.0]], device=DEVICE)
    inputs = BiasGeluInputs(x, torch.zeros(3, device=DEVICE))
    y = bias_gelu_fwd(inputs)
    dx, dbias = bias_gelu_bwd(torch.ones_like(x), inputs)
    assert torch.isfinite(y).tolist() == [[False, False, True], [True] * 3]
    assert torch.isfinite(dx).tolist() == [[False, False, True], [True] * 3]
    assert torch.isfinite(dbias).tolist() == [False, False, True]


def test_wider_bias_and_strided_input():
    x = torch.randn(12, 9, device=DEVICE).bfloat16().t()
    bias = torch.randn(12, device=DEVICE)
    inputs = BiasGeluInputs(x, bias)
    y = bias_gelu_fwd(inputs)
    assert y.dtype == torch.bfloat16 and y.is_contiguous()
    assert_bitwise_equal(y, bias_gelu_fwd(inputs._replace(x=x.contiguous())))
    dx, dbias = bias_gelu_bwd(x, inputs)
    assert dx.dtype == torch.bfloat16 and dbias.dtype == torch.float32
    # the bias's gradient sums values before their rounding
    z = (x.double() + bias.double()).requires_grad_()
    (dz,) = torch.autograd.grad(F.gelu(z), z, x.double())
    torch.testing.assert_close(dbias.double(), dz.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 511, 512, 513, 1030, 100_000])
@pytest.mark.parametrize("multiple", [1, 4])
def test_parts_cover_all_rows_and_none_is_empty(rows, multiple):
    parts, steps = split_rows(rows, multiple)
    assert parts <= 512
    assert parts * steps * multiple >= rows
    assert rows == parts == 0 or (parts - 1) * steps * multiple < rows


@pytest.mark.parametrize("shape", [(0, 5), (1, 33), (130, 40), (64, 1)])
def test_column_sums(shape):
    """Several at once, each in a dtype of its own, fill their outputs and nothing else."""
    dtypes = (torch.float32, torch.bfloat16, torch.float32)
    # whole numbers up to 256: sums are exact in bf16, too
    partial = torch.randint(-1, 2, (3, *shape), device=DEVICE).float()
    for count in (1, 2, 3):
        outs = [torch.full((shape[1],), float("nan"), dtype=t, device=DEVICE) for t in dtypes]
        column_sums(partial[:count], *outs[:count])
        for out, sums in zip(outs[:count], partial.sum(1), strict=False):
            assert torch.equal(out.float(), sums)
        assert all(out.isnan().all() for out in outs[count:])
