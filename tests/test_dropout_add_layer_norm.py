"""dropout_add_layer_norm against fp64 with the same dropout mask, row subsets, compile and AMP."""

import pytest
import torch
from torch.nn import functional as F

from spanbert_fast import use_backend
from spanbert_fast._extension import _C
from spanbert_fast.ops.dropout import Dropout
from spanbert_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm
from spanbert_fast.reference.dropout import hidden_keep_mask
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than, rounding_floor

SEED = torch.tensor(-7_123_456_789_012_345)
CPU = torch.device("cpu")


def make(tokens, hidden, dtype):
    scale = (1.0, 2.0, 0.5, 1.0, 0.3)
    shapes = ((tokens, hidden), (tokens, hidden), (hidden,), (hidden,), (hidden,))
    return [(s * torch.randn(shape)).to(dtype) for s, shape in zip(scale, shapes, strict=True)]


def run(function, tensors, dy, dtype):
    x, residual, weight, bias, x_bias = (t.detach().to(dtype).requires_grad_() for t in tensors)
    y = function(x, residual, weight, bias, x_bias)
    return y, *torch.autograd.grad(y, (x, residual, weight, bias, x_bias), dy.to(dtype))


@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 64), (17, 100), (40, 768), (300, 21), (5, 2)])
def test_no_worse_than_pytorch(shape, dtype, dropout_p, poisoned_empty):
    tensors = make(*shape, dtype)
    dy = torch.randn(shape).to(dtype)
    dropout = Dropout(dropout_p, SEED, 5)

    def ours(x, residual, weight, bias, x_bias):
        return dropout_add_layer_norm(x, residual, weight, bias, x_bias=x_bias, dropout=dropout)

    def peer(x, residual, weight, bias, x_bias):
        z = x + x_bias
        if dropout_p:
            keep = hidden_keep_mask(dropout, *shape, CPU)
            z = torch.where(keep, z * (256 / (256 - round(256 * dropout_p))), 0)
        return F.layer_norm(z + residual, shape[1:], weight, bias, 1e-12)

    got = run(ours, tensors, dy, dtype)
    like = run(peer, tensors, dy, dtype)
    with use_backend("reference"):
        truth = run(ours, tensors, dy, torch.float64)
    names = ("y", "dx", "dresidual", "dweight", "dbias", "dx_bias")
    for name, a, b, c in zip(names, got, like, truth, strict=True):
        # The peer may be exact by luck in sums of up to 40 rows.
        assert_no_worse_than(a, b, c, floor=rounding_floor(a, shape[0]), name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 64), (17, 100), (300, 21)])
def test_residual_in_fp32(shape, dtype, poisoned_empty):
    tensors = make(*shape, dtype)
    tensors[1] = torch.randn(shape)
    dy = torch.randn(shape)
    dropout = Dropout(0.1, SEED, 5)
    keep = hidden_keep_mask(dropout, *shape, CPU)

    def ours(x, residual, weight, bias, x_bias):
        return dropout_add_layer_norm(
            x, residual, weight, bias, x_bias=x_bias, residual_in_fp32=True, dropout=dropout
        )

    def peer(x, residual, weight, bias, x_bias):
        z = torch.where(keep, (x + x_bias) * (256 / 230), 0)
        wide = residual.dtype
        return F.layer_norm(z + residual, shape[1:], weight.to(wide), bias.to(wide), 1e-12)

    def run_as(function, of_x, of_residual):
        leaves = [t.to(of_x).requires_grad_() for t in tensors]
        leaves[1] = tensors[1].to(of_residual).requires_grad_()
        y = function(*leaves)
        return y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))

    got, like = (run_as(f, dtype, torch.float32) for f in (ours, peer))
    with use_backend("reference"):
        truth = run_as(ours, torch.float64, torch.float64)
    names = ("y", "dx", "dresidual", "dweight", "dbias", "dx_bias")
    for name, a, b, c in zip(names, got, like, truth, strict=True):
        assert a.dtype == b.dtype, name
        # as above; if the result is fp32, the peer has rounded x + x_bias to dtype
        assert_no_worse_than(a, b, c, floor=rounding_floor(a, shape[0]), name=name)


@pytest.mark.parametrize("hidden_size", [768, 300, 257, 64])
@pytest.mark.parametrize("threshold", [1, 26, 128, 255])
def test_the_mask_is_the_reference_s(threshold, hidden_size):
    for seed, site, rows in (
        (SEED, 0, None),
        (torch.tensor(2**62 + 1), 65535, torch.tensor([700_000_000, 0, 2**33, 5])),
    ):
        dropout = Dropout(threshold / 256, seed, site, rows)
        tokens = 70 if rows is None else len(rows)
        expected = hidden_keep_mask(dropout, tokens, hidden_size, CPU)

        def function(x, residual, dropout=dropout):
            weight, bias = torch.ones(hidden_size), torch.zeros(hidden_size)
            return dropout_add_layer_norm(x, residual, weight, bias, dropout=dropout)

        # x is all ones: kept elements are above their row's mean, unless all are kept.
        mixed = expected.any(1) & ~expected.all(1)
        above = function(torch.ones(expected.shape), torch.zeros(expected.shape)) > 0
        assert torch.equal(above[mixed], expected[mixed])
        x, residual, dy = (torch.randn(expected.shape, requires_grad=True) for _ in range(3))
        (dx,) = torch.autograd.grad(function(x, residual), x, dy)
        assert torch.equal(dx != 0, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_mean_does_not_cancel_the_variance(dtype):
    x = (1000 + torch.randn(6, 96)).to(dtype)
    residual = torch.zeros_like(x)
    weight, bias = torch.ones(96).to(dtype), torch.zeros(96).to(dtype)
    truth = F.layer_norm(x.double(), (96,), eps=1e-12)
    peer = F.layer_norm(x, (96,), eps=1e-12)
    ours = dropout_add_layer_norm(x, residual, weight, bias)
    # a mean of 1000 has an error of one unit in the last place: 6e-5 of the deviation, 1
    assert_no_worse_than(ours, peer, truth, floor=2e-4 if dtype == torch.float32 else 0.02)


@pytest.mark.skipif(_C is None, reason="PyTorch's own operators promise less")
def test_same_bits_for_any_number_of_threads(each_thread_count):
    tensors = make(1111, 72, torch.bfloat16)
    dy = torch.randn(1111, 72).bfloat16()

    def ours(x, residual, weight, bias, x_bias):
        return dropout_add_layer_norm(
            x, residual, weight, bias, x_bias=x_bias, dropout=Dropout(0.1, SEED)
        )

    each_thread_count(lambda: run(ours, tensors, dy, torch.bfloat16))


def test_parameters_of_a_wider_dtype_get_gradients_of_theirs():
    x, residual, *_ = make(9, 40, torch.bfloat16)
    weight, bias, x_bias = (torch.randn(40, requires_grad=True) for _ in range(3))
    y = dropout_add_layer_norm(x, residual, weight, bias, x_bias=x_bias)
    assert y.dtype == torch.bfloat16
    gradients = torch.autograd.grad(y.float().square().sum(), (weight, bias, x_bias))
    assert [g.dtype for g in gradients] == [torch.float32] * 3
    exact = [t.detach().double().requires_grad_() for t in (weight, bias, x_bias)]
    with use_backend("reference"):
        truth = dropout_add_layer_norm(
            x.double(), residual.double(), exact[0], exact[1], x_bias=exact[2]
        )
    # the loss has the gradient of the rounded y
    expected = torch.autograd.grad(truth, exact, 2 * y.detach().double())
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=2e-2, atol=2e-2)


def test_rows_give_what_the_full_matrix_gives():
    x, residual, weight, bias, x_bias = make(50, 128, torch.float32)
    dropout = Dropout(0.3, SEED, 1)
    full = dropout_add_layer_norm(x, residual, weight, bias, x_bias=x_bias, dropout=dropout)
    rows = torch.tensor([49, 3, 3, 0, 17])
    dropout = dropout._replace(rows=rows)
    some = dropout_add_layer_norm(
        x[rows], residual[rows], weight, bias, x_bias=x_bias, dropout=dropout
    )
    assert_bitwise_equal(some, full[rows])


def test_gradcheck_compile():
    tensors = [t.requires_grad_() for t in make(4, 12, torch.float64)]

    def function(x, residual, weight, bias, x_bias):
        return dropout_add_layer_norm(
            x, residual, weight, bias, x_bias=x_bias, dropout=Dropout(0.25, SEED)
        )

    assert torch.autograd.gradcheck(function, tensors)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(*tensors), function(*tensors))


def test_non_contiguous_and_autocast():
    x, residual, weight, bias, _ = make(16, 16, torch.float32)
    assert_bitwise_equal(
        dropout_add_layer_norm(x.t(), residual.t(), weight, bias),
        dropout_add_layer_norm(x.t().contiguous(), residual.t().contiguous(), weight, bias),
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert dropout_add_layer_norm(x, residual, weight, bias).dtype == torch.bfloat16


def test_bad_input():
    x, residual, weight, bias, _ = make(4, 8, torch.float32)
    with pytest.raises(ValueError, match=r"residual must have shape \(4, 8\), got \(3, 8\)"):
        dropout_add_layer_norm(x, residual[:3], weight, bias)
    dropout = Dropout(0.1, SEED)
    for wrong, error, message in (
        (Dropout(0.1, None), ValueError, "dropout.seed must be a 0-dim int64 tensor, got None"),
        (Dropout(0.1, torch.tensor([1])), ValueError, "dropout.seed must be a 0-dim int64 tensor"),
        (Dropout(0.999, SEED), ValueError, "dropout_p must be 0 or in .* got 0.999"),
        (
            dropout._replace(rows=torch.arange(2)),
            ValueError,
            r"dropout.rows must have shape \(4,\), got \(2,\)",
        ),
        (
            dropout._replace(rows=torch.arange(4).int()),
            TypeError,
            "dropout.rows must be int64, got torch.int32",
        ),
    ):
        with pytest.raises(error, match=message):
            dropout_add_layer_norm(x, residual, weight, bias, dropout=wrong)
    if _C is not None:  # on the CPU, where the check costs no synchronisation
        for wrong in (-1, 2**63 - 1, 2**62):
            numbered = dropout._replace(rows=torch.tensor([0, 1, wrong, 3]))
            with pytest.raises(ValueError, match=f"rows must be from 0 to [0-9]+, got {wrong}$"):
                dropout_add_layer_norm(x, residual, weight, bias, dropout=numbered)
