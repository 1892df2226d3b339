"""The Triton kernels of dropout_add_layer_norm against fp64, with the reference's dropout masks."""

import pytest
import torch

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from torch.nn import functional as F  # noqa: E402

from spanbert_fast.kernels import column_sums  # noqa: E402
from spanbert_fast.kernels.dropout_add_layer_norm import (  # noqa: E402
    dropout_add_layer_norm_bwd,
    dropout_add_layer_norm_fwd,
)
from spanbert_fast.ops.dropout_add_layer_norm import NormInputs  # noqa: E402
from spanbert_fast.reference.dropout import Dropout, hidden_keep_mask  # noqa: E402
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than  # noqa: E402

SEED = torch.tensor(-7_123_456_789_012_345, device=DEVICE)
NAMES = ("y", "dx", "dresidual", "dweight", "dbias", "dx_bias")


def make(tokens, hidden, dtype):
    scale = (1.0, 2.0, 0.5, 1.0, 0.3)
    shapes = ((tokens, hidden), (tokens, hidden), (hidden,), (hidden,), (hidden,))
    pairs = zip(scale, shapes, strict=True)
    return [(s * torch.randn(shape)).to(DEVICE, dtype) for s, shape in pairs]


def ours(dy, tensors, *, rows=None, threshold=0, site=0, eps=1e-12):
    seed = SEED if threshold else None
    x, residual, weight, bias, x_bias = tensors
    inputs = NormInputs(x, residual, weight, bias, x_bias, seed, rows, threshold, site, eps)
    y, *statistics = dropout_add_layer_norm_fwd(inputs)
    return y, *dropout_add_layer_norm_bwd(dy, inputs, *statistics)


def peer(dy, tensors, *, threshold=0, site=0):
    leaves = [t.detach().requires_grad_() for t in tensors]
    x, residual, weight, bias, x_bias = leaves
    z = x + x_bias
    if threshold:
        keep = hidden_keep_mask(Dropout(threshold / 256, SEED, site), *x.shape, x.device)
        z = torch.where(keep, z * (256 / (256 - threshold)), 0)
    wide = residual.dtype
    y = F.layer_norm(z + residual, x.shape[1:], weight.to(wide), bias.to(wide), 1e-12)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


@pytest.mark.parametrize("threshold", [0, 26, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 64), (17, 100), (9, 768), (40, 21), (3, 2)])
def test_no_worse_than_pytorch(shape, dtype, threshold, poisoned_empty):
    tensors, dy = make(*shape, dtype), torch.randn(shape).to(DEVICE, dtype)
    got = ours(dy, tensors, threshold=threshold, site=5)
    like = peer(dy, tensors, threshold=threshold, site=5)
    truth = peer(dy.double(), [t.double() for t in tensors], threshold=threshold, site=5)
    for name, a, b, c in zip(NAMES, got, like, truth, strict=True):
        assert a.dtype == dtype
        # The peer may be exact by luck in sums of up to 40 rows.
        assert_no_worse_than(a, b, c, floor=8 * torch.finfo(dtype).eps, name=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_residual_in_fp32(dtype, poisoned_empty):
    tensors = make(11, 300, dtype)
    tensors[1] = torch.randn(11, 300, device=DEVICE)
    dy = torch.randn(11, 300, device=DEVICE)
    got, like = ours(dy, tensors, threshold=26), peer(dy, tensors, threshold=26)
    truth = peer(dy.double(), [t.double() for t in tensors], threshold=26)
    for name, a, b, c in zip(NAMES, got, like, truth, strict=True):
        assert a.dtype == b.dtype, name
        assert_no_worse_than(a, b, c, floor=8 * torch.finfo(a.dtype).eps, name=name)


@pytest.mark.parametrize("hidden", [768, 300, 257, 64, 256])
@pytest.mark.parametrize("threshold", [1, 26, 255])
def test_the_mask_is_the_reference_s(threshold, hidden):
    rows = torch.tensor([700_000_000, 0, 2**33, 5, 1], device=DEVICE)
    dropout = Dropout(threshold / 256, SEED, 65535, rows)
    expected = hidden_keep_mask(dropout, 5, hidden, rows.device)
    x, residual, weight, bias, _ = make(5, hidden, torch.float32)
    tensors = x, residual, weight, bias, None
    dy = torch.randn(5, hidden, device=DEVICE)
    y, dx, *_ = ours(dy, tensors, rows=rows, threshold=threshold, site=65535)
    assert torch.equal(dx != 0, expected)
    without = residual + torch.where(expected, x * (256 / (256 - threshold)), 0)
    torch.testing.assert_close(y, F.layer_norm(without, (hidden,), weight, bias, 1e-12))


def test_no_x_bias_gives_an_empty_gradient():
    tensors = make(4, 40, torch.float32)
    dy = torch.randn(4, 40, device=DEVICE)
    zero = ours(dy, [*tensors[:4], torch.zeros(40, device=DEVICE)])
    none = ours(dy, [*tensors[:4], None])
    assert none[5].shape == (0,)
    for a, b in zip(none[:5], zero[:5], strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_mean_does_not_cancel_the_variance(dtype):
    x = (1000 + torch.randn(6, 96)).to(DEVICE, dtype)
    one, zero = torch.ones(96).to(x), torch.zeros(96).to(x)
    inputs = NormInputs(x, torch.zeros_like(x), one, zero, None, None, None, 0, 0, 1e-12)
    y, *_ = dropout_add_layer_norm_fwd(inputs)
    truth = F.layer_norm(x.double(), (96,), eps=1e-12)
    like = F.layer_norm(x, (96,), eps=1e-12)
    # a mean of 1000 has an error of one unit in the last place: 6e-5 of the deviation, 1
    assert_no_worse_than(y, like, truth, floor=2e-4 if dtype == torch.float32 else 0.02)


def test_more_rows_than_parts_and_a_wide_row(monkeypatch, poisoned_empty):
    """Each program takes several rows, the last one fewer; rows have 8,192 columns."""
    monkeypatch.setattr(column_sums, "_MAX_PARTS", 4)
    for shape in ((18, 6), (2, 8192)):
        tensors, dy = make(*shape, torch.float32), torch.randn(shape, device=DEVICE)
        got, like = ours(dy, tensors, threshold=26), peer(dy, tensors, threshold=26)
        truth = peer(dy.double(), [t.double() for t in tensors], threshold=26)
        for name, a, b, c in zip(NAMES, got, like, truth, strict=True):
            # one unit of the largest value: sums of up to 18 rows
            floor = 8 * torch.finfo(torch.float32).eps * max(1, c.abs().max().item())
            assert_no_worse_than(a, b, c, floor=floor, name=name)


def test_strided_inputs_and_wider_parameters():
    x, residual, *_ = make(16, 16, torch.bfloat16)
    weight, bias, x_bias = (torch.randn(16, device=DEVICE) for _ in range(3))
    tensors = x.t(), residual.t(), weight, bias, x_bias
    got = ours(x.t(), tensors, threshold=26)
    same = ours(x.t().contiguous(), [t.contiguous() for t in tensors], threshold=26)
    for a, b in zip(got, same, strict=True):
        assert_bitwise_equal(a, b)
    assert [t.dtype for t in got] == [torch.bfloat16] * 3 + [torch.float32] * 3
