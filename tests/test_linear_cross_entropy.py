"""linear_cross_entropy against fp64: groups, per-row gradients, predictions, extreme values."""

import pytest
import torch
from torch.nn import functional as F

from linear_cross_entropy_cases import make, peer, run
from spanbert_fast import use_backend
from spanbert_fast._extension import _C
from spanbert_fast.ops import linear_cross_entropy as op
from spanbert_fast.ops._precision import product_dtype
from spanbert_fast.ops._register import KERNELS
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than

CASES = {  # (group sizes, hidden size, vocabulary)
    "one row": ([1], 8, 5),
    "one group": ([37], 64, 1001),
    "two groups": ([19, 30], 64, 1001),
    "an empty group": ([0, 23], 32, 300),
    "three groups": ([5, 1, 7], 16, 257),
    "no row": ([0, 0], 16, 40),
    "one entry": ([4], 8, 1),
    "a group over 4,096 rows": ([3, 4100, 2], 8, 270),
}


@pytest.fixture
def small_tiles(monkeypatch):
    """Small tiles, which cut the test's sizes unevenly in both directions."""
    monkeypatch.setattr(op, "_TILE_ROWS", 16)
    monkeypatch.setattr(op, "_TILE_ELEMENTS", 16 * 128)
    monkeypatch.setattr(op, "_TILE_COLUMNS", 100)
    # the compiled forward keeps 256 to 768 of 1,001 columns for its backward, and all of fewer
    monkeypatch.setattr(op, "_SCORE_BYTES", 60_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_no_worse_than_pytorch(case, dtype, small_tiles, poisoned_empty):
    group_sizes, _, vocab_size = case
    *tensors, targets = make(*case, dtype)
    dlosses = torch.randn(sum(group_sizes))  # each row has its own gradient; some are negative

    def ours(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, bias, targets, group_sizes=group_sizes).losses

    got = run(ours, tensors, dlosses, dtype)
    like = run(peer(group_sizes, targets), tensors, dlosses, dtype)
    truth = run(peer(group_sizes, targets), tensors, dlosses, torch.float64)
    assert got[0].dtype == torch.float32 and (got[0] >= 0).all()
    names = ("losses", "dhidden", "dweight", "dbias")
    for name, a, b, c in zip(names, got, like, truth, strict=True):
        # The peer may be exact by luck. A loss is a difference of scores up to 32, rounded in fp32
        # (bf16 and fp16 products round scores first, in the peer, too); a gradient is rounded once.
        largest = c.abs().max().item() if c.numel() else 0
        floor = 64 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps * largest
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_vocabulary(dtype, poisoned_empty):
    """28,996 columns, some of them kept; two groups with different biases; an fp32 weight."""
    group_sizes, vocab_size = [300, 240], 28_996
    hidden, weight, bias, targets = make(group_sizes, 40, vocab_size, dtype)
    weight, bias = weight.float(), bias.float()
    dlosses = torch.rand(540) / 540

    def ours(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, bias, targets, group_sizes=group_sizes).losses

    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    losses = ours(*leaves)
    got = losses, *torch.autograd.grad(losses, leaves, dlosses)
    for gradient, leaf in zip(got[1:], leaves, strict=True):
        assert gradient.dtype == leaf.dtype
    like = run(peer(group_sizes, targets), leaves, dlosses, dtype)
    truth = run(peer(group_sizes, targets), leaves, dlosses, torch.float64)
    names = ("losses", "dhidden", "dweight", "dbias")
    for name, a, b, c in zip(names, got, like, truth, strict=True):
        # as above, with fp32 sums of 28,996 terms
        floor = 64 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps * c.abs().max().item()
        assert_no_worse_than(a, b, c, floor=floor, name=name)


def test_entries_that_a_bias_of_minus_infinity_forbids(poisoned_empty):
    """Forbidden entries, even whole tiles, take no part in losses and gradients."""
    hidden, weight, bias, targets = make([12], 16, 900, torch.float32)
    forbidden = torch.arange(900) >= 300
    bias[0, forbidden] = -torch.inf
    targets = targets % 300
    leaves = [t.requires_grad_() for t in (hidden, weight)]
    losses = linear_cross_entropy(*leaves, bias[0], targets).losses
    exact = F.cross_entropy(hidden @ weight[:300].t() + bias[0, :300], targets, reduction="none")
    torch.testing.assert_close(losses, exact, rtol=1e-5, atol=1e-5)
    dhidden, dweight = torch.autograd.grad(losses.sum(), leaves)
    expected = torch.autograd.grad(exact.sum(), leaves)
    torch.testing.assert_close(dhidden, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dweight, expected[1], rtol=1e-5, atol=1e-5)


def test_a_nan_stays_in_its_row():
    hidden, weight, bias, targets = make([6], 16, 600, torch.float32)
    hidden[2, 3] = torch.nan
    got = linear_cross_entropy(hidden, weight, bias[0], targets, return_predictions=True)
    assert got.losses.isnan().tolist() == [False, False, True, False, False, False]
    assert (got.predictions >= 0).all() and (got.predictions < 600).all()


def test_one_bias_is_one_group():
    hidden, weight, bias, targets = make([21], 16, 300, torch.float32)
    one = linear_cross_entropy(hidden, weight, bias[0], targets)
    assert one.predictions is None
    assert_bitwise_equal(
        one.losses, linear_cross_entropy(hidden, weight, bias, targets, group_sizes=[21]).losses
    )


def test_predictions_are_argmax_with_the_first_of_equals(small_tiles):
    group_sizes = [19, 14]
    hidden, weight, bias, targets = make(group_sizes, 32, 700, torch.float32)
    scores = torch.cat(
        [h @ weight.t() + b for h, b in zip(hidden.split(group_sizes), bias, strict=True)]
    )
    got = linear_cross_entropy(
        hidden, weight, bias, targets, group_sizes=group_sizes, return_predictions=True
    )
    assert_bitwise_equal(got.predictions, scores.argmax(1))
    equal = torch.zeros(5, 8), torch.zeros(700, 8), torch.zeros(700), torch.arange(5)
    assert linear_cross_entropy(*equal, return_predictions=True).predictions.tolist() == [0] * 5


def test_certainty_and_huge_scores_stay_finite():
    hidden = torch.tensor([[1.0], [1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[3e4], [-3e4], [0.0]], requires_grad=True)
    losses = linear_cross_entropy(hidden, weight, torch.zeros(3), torch.tensor([0, 1, 1])).losses
    assert losses.tolist() == [0.0, 6e4, 0.0]
    losses.sum().backward()
    # rows 0 and 2 are certain and right; row 1 is certain of column 0, but its target is column 1
    for got, slope in ((hidden.grad, [0.0, 6e4, 0.0]), (weight.grad, [1.0, -1.0, 0.0])):
        torch.testing.assert_close(got, torch.tensor(slope)[:, None], rtol=1e-6, atol=1e-20)


def test_autocast_rounds_products_and_keeps_the_weight_gradient_in_fp32():
    hidden, weight, bias, targets = make([40], 64, 900, torch.float32)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias[0].clone())]
    with torch.autocast("cpu", torch.bfloat16):
        losses = linear_cross_entropy(*leaves, targets).losses
    assert losses.dtype == torch.float32
    dhidden, dweight, dbias = torch.autograd.grad(losses.mean(), leaves)
    for gradient, leaf in zip((dhidden, dweight, dbias), leaves, strict=True):
        assert gradient.dtype == leaf.dtype
    exact = F.cross_entropy(hidden @ weight.t() + bias[0], targets, reduction="none")
    # each bf16 score up to 32 has an error of up to 1/16
    torch.testing.assert_close(losses, exact, rtol=0, atol=0.25)
    # without bf16 units the compiled op uses fp32 products, which are faster and more exact
    rounds = _C is None or product_dtype(torch.bfloat16, hidden.device) == torch.bfloat16
    assert ((losses - exact).abs().max() > 1e-3) == rounds, "products in the wrong dtype"


def test_gradcheck_compile(small_tiles):
    group_sizes = [5, 3]
    hidden, weight, bias, targets = make(group_sizes, 4, 130, torch.float64)
    tensors = [t.requires_grad_() for t in (hidden, weight, bias)]

    def function(hidden, weight, bias):
        return linear_cross_entropy(
            hidden, weight, bias, targets, group_sizes=group_sizes, return_predictions=True
        )

    assert torch.autograd.gradcheck(lambda *t: function(*t).losses, tensors)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*tensors), function(*tensors), strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.skipif(_C is None, reason="needs the extension")
def test_compile_of_the_kernels():
    """fp32 inputs run the extension; the inputs of the test above run PyTorch's operators."""
    group_sizes = [5, 3]
    *tensors, targets = make(group_sizes, 4, 300, torch.float32)

    def function(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, bias, targets, group_sizes=group_sizes).losses

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    dlosses = torch.randn(8)
    for a, b in zip(
        run(compiled, tensors, dlosses, torch.float32),
        run(function, tensors, dlosses, torch.float32),
        strict=True,
    ):
        assert_bitwise_equal(a.detach(), b.detach())


def test_reference_gives_the_same():
    hidden, weight, bias, targets = make([9, 4], 8, 50, torch.float64)
    arguments = {"group_sizes": [9, 4], "return_predictions": True}
    ours = linear_cross_entropy(hidden, weight, bias, targets, **arguments)
    with use_backend("reference"):
        theirs = linear_cross_entropy(hidden, weight, bias, targets, **arguments)
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-12, atol=1e-12)
    assert_bitwise_equal(ours.predictions, theirs.predictions)


def test_non_contiguous_input():
    hidden, weight, bias, targets = make([9], 8, 50, torch.float32)
    expected = linear_cross_entropy(hidden, weight, bias[0], targets).losses
    columns = hidden.t().contiguous().t(), weight.t().contiguous().t()
    torch.testing.assert_close(
        linear_cross_entropy(*columns, bias[0], targets).losses, expected, rtol=1e-6, atol=1e-6
    )


def test_bad_input():
    hidden, weight, bias, targets = make([5, 4], 8, 50, torch.float32)
    with pytest.raises(ValueError, match=r"weight must have .*vocab_size, 8\), got \(50, 7\)"):
        linear_cross_entropy(hidden, weight[:, :7], bias, targets, group_sizes=[5, 4])
    with pytest.raises(ValueError, match=r"bias must have shape \(50,\), got \(2, 50\)"):
        linear_cross_entropy(hidden, weight, bias, targets)
    with pytest.raises(ValueError, match=r"bias must have shape \(3, 50\), got \(2, 50\)"):
        linear_cross_entropy(hidden, weight, bias, targets, group_sizes=[5, 4, 0])
    with pytest.raises(ValueError, match=r"group_sizes must .* sum to 9 rows, got \(5, 5\)"):
        linear_cross_entropy(hidden, weight, bias, targets, group_sizes=[5, 5])
    with pytest.raises(ValueError, match=r"group_sizes must not be negative .* got \(10, -1\)"):
        linear_cross_entropy(hidden, weight, bias, targets, group_sizes=[10, -1])
    with pytest.raises(ValueError, match=r"targets must have shape \(9,\), got \(8,\)"):
        linear_cross_entropy(hidden, weight, bias[0], targets[:8])
    with pytest.raises(TypeError, match="targets must be int64, got torch.int32"):
        linear_cross_entropy(hidden, weight, bias[0], targets.int())
    if _C is not None:
        forward = KERNELS["linear_cross_entropy_fwd"]
        with pytest.raises(ValueError, match="saved_columns must be a multiple of 256 .* got 7"):
            forward(hidden, weight, bias, targets, [5, 4], False, 7)
    # the composites are called without the checks at the door; this size took them minutes
    inputs = (hidden.double(), weight.double(), bias.double(), targets, [2**31 - 1, 0], False, 0)
    lse, saved = hidden.new_zeros((2, 9)).double(), hidden.new_empty((9, 0)).double()
    with pytest.raises(ValueError, match="group_sizes must .* sum to 9 rows"):
        KERNELS["linear_cross_entropy_fwd"](*inputs)
    with pytest.raises(ValueError, match="group_sizes must .* sum to 9 rows"):
        KERNELS["linear_cross_entropy_bwd"](lse[0], *inputs, lse, saved)
    for wrong in (50, -1, -100):
        with pytest.raises(ValueError, match=rf"targets must be in \[0, 50\), got {wrong}"):
            linear_cross_entropy(hidden, weight, bias[0], torch.full_like(targets, wrong))
