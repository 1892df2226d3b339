"""The Triton kernels of linear_cross_entropy against fp64: groups, tiles, chunks, predictions."""

import pytest
import torch

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from torch.nn import functional as F  # noqa: E402

from spanbert_fast.kernels import linear_cross_entropy as kernels  # noqa: E402
from spanbert_fast.kernels import linear_cross_entropy_backward as backward  # noqa: E402
from spanbert_fast.ops.linear_cross_entropy import LossInputs  # noqa: E402
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than  # noqa: E402

CASES = {  # (group sizes, hidden size, vocabulary)
    "one row": ([1], 8, 5),
    "one group": ([37], 64, 1001),
    "two groups": ([19, 30], 64, 1001),
    "an empty group": ([0, 23], 40, 300),
    "three groups": ([5, 1, 7], 16, 257),
    "no row": ([0, 0], 16, 40),
    "one entry": ([4], 8, 1),
    "tiles that fit": ([128], 64, 512),
}
NAMES = ("losses", "dhidden", "dweight", "dbias")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Several splits and several chunks of the vocabulary, uneven ones."""
    monkeypatch.setattr(kernels, "_COLUMNS_PER_SPLIT", 300)
    monkeypatch.setattr(backward, "_CHUNK_BYTES", 60_000)


def make(group_sizes, hidden_size, vocab_size, dtype):
    rows = sum(group_sizes)
    hidden = torch.randn(rows, hidden_size).to(DEVICE, dtype)
    # scores of about +-8: some rows are certain of the right entry, some of a wrong one
    weight = (8 * hidden_size**-0.5 * torch.randn(vocab_size, hidden_size)).to(DEVICE, dtype)
    bias = torch.randn(len(group_sizes), vocab_size).to(DEVICE, dtype)
    targets = torch.randint(vocab_size, (rows,), device=DEVICE)
    likely = torch.arange(rows, device=DEVICE) % 3 == 0
    scores = hidden.float() @ weight.float().t()
    targets[likely] = scores[likely].argmax(1) if rows else targets[likely]
    return hidden, weight, bias, targets


def ours(dlosses, hidden, weight, bias, targets, group_sizes):
    inputs = LossInputs(hidden, weight, bias, targets, group_sizes, True, 0)
    losses, predictions, lse, kept = kernels.linear_cross_entropy_fwd(inputs)
    assert kept.shape == (len(hidden), 0) and kept.dtype == hidden.dtype
    return (losses, *kernels.linear_cross_entropy_bwd(dlosses, inputs, lse, kept)), predictions


def peer(dlosses, hidden, weight, bias, targets, group_sizes):
    leaves = [t.detach().requires_grad_() for t in (hidden, weight, bias)]
    h, w, b = leaves
    parts = zip(h.split(group_sizes), targets.split(group_sizes), b, strict=True)
    losses = torch.cat(
        [F.cross_entropy(F.linear(x, w, c), t, reduction="none") for x, t, c in parts]
    )
    return losses.detach(), *torch.autograd.grad(losses, leaves, dlosses.to(losses.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_no_worse_than_pytorch(case, dtype, poisoned_empty):
    group_sizes = case[0]
    hidden, weight, bias, targets = make(*case, dtype)
    # each row has its own gradient; some are negative
    dlosses = torch.randn(len(hidden), device=DEVICE)
    got, predictions = ours(dlosses, hidden, weight, bias, targets, group_sizes)
    like = peer(dlosses, hidden, weight, bias, targets, group_sizes)
    wide = [t.double() for t in (hidden, weight, bias)]
    truth = peer(dlosses, *wide, targets, group_sizes)
    assert got[0].dtype == torch.float32 and (got[0] >= 0).all()
    for name, a, b, c in zip(NAMES, got, like, truth, strict=True):
        # The peer may be exact by luck. A loss is a difference of scores up to 32, rounded in fp32;
        # a gradient is rounded once.
        largest = c.abs().max().item() if c.numel() else 0
        floor = 64 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps * largest
        assert_no_worse_than(a, b, c, floor=floor, name=name)
    row_bias = wide[2].repeat_interleave(torch.tensor(group_sizes, device=DEVICE), dim=0)
    scores = wide[0] @ wide[1].t() + row_bias
    chosen = scores.gather(1, predictions[:, None]).squeeze(1)
    if len(hidden):
        torch.testing.assert_close(chosen, scores.amax(1), rtol=0, atol=1e-5)


class Recorded:
    """A kernel, and the grids that it is launched with."""

    def __init__(self, kernel):
        self.kernel, self.grids = kernel, []

    def __getitem__(self, grid):
        self.grids.append(grid)
        return self.kernel[grid]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group_sizes", [[19, 30], [16, 1], [0, 7], [7, 0], [5, 0, 17, 20]])
def test_groups_have_the_bits_that_they_have_alone(group_sizes, dtype, monkeypatch, poisoned_empty):
    """And two of them are one launch, in which no tile has rows of both."""
    hidden, weight, bias, targets = make(group_sizes, 64, 300, dtype)
    dlosses = torch.randn(len(hidden), device=DEVICE)
    recorded = Recorded(kernels._linear_cross_entropy_fwd_kernel)
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "_linear_cross_entropy_fwd_kernel", recorded)
        (losses, _, _, dbias), best = ours(dlosses, hidden, weight, bias, targets, group_sizes)
    assert len(recorded.grids) == (len(group_sizes) + 1) // 2
    if DEVICE == "cpu":  # the interpreter's tiles have 16 rows
        assert sum(grid[0] for grid in recorded.grids) == sum(-(-n // 16) for n in group_sizes)
    start = 0
    for group, size in enumerate(group_sizes):
        rows, start = slice(start, start + size), start + size
        alone = (hidden[rows], weight, bias[group : group + 1], targets[rows], [size])
        (expected, _, _, of_bias), predictions = ours(dlosses[rows], *alone)
        assert_bitwise_equal(losses[rows], expected)
        assert_bitwise_equal(best[rows], predictions)
        assert_bitwise_equal(dbias[group], of_bias[0])


def test_a_wider_weight_and_no_predictions():
    hidden, weight, bias, targets = make([9, 8], 32, 400, torch.bfloat16)
    weight, bias = weight.float(), bias.float()
    inputs = LossInputs(hidden, weight, bias, targets, [9, 8], False, 0)
    losses, predictions, lse, kept = kernels.linear_cross_entropy_fwd(inputs)
    assert predictions.shape == (0,)
    gradients = kernels.linear_cross_entropy_bwd(losses, inputs, lse, kept)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    # weights that bf16 can represent give the same losses bit for bit
    again = kernels.linear_cross_entropy_fwd(
        inputs._replace(weight=weight.bfloat16(), with_predictions=True)
    )
    assert_bitwise_equal(again[0], losses)


def test_the_first_of_equal_scores_wins():
    hidden = torch.ones(3, 16, device=DEVICE)
    weight = torch.zeros(700, 16, device=DEVICE)
    bias = torch.zeros(1, 700, device=DEVICE)
    bias[0, [77, 78, 350, 699]] = 2.0  # in one tile, in two tiles and in two splits
    targets = torch.tensor([77, 0, 699], device=DEVICE)
    (losses, *_), predictions = ours(torch.ones(3).to(hidden), hidden, weight, bias, targets, [3])
    assert predictions.tolist() == [77] * 3
    lse = bias.logsumexp(1)
    torch.testing.assert_close(losses, lse - bias[0, targets])


def test_entries_of_minus_infinity_have_no_probability():
    hidden, weight, bias, targets = make([6], 16, 700, torch.float32)
    bias[0, :400] = -torch.inf  # more than a whole split
    targets = 400 + targets % 300
    dlosses = torch.ones(6, device=DEVICE)
    got, _ = ours(dlosses, hidden, weight, bias, targets, [6])
    for a, b in zip(got, peer(dlosses, hidden, weight, bias, targets, [6]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_target_out_of_range_gives_nan():
    hidden, weight, bias, _ = make([4], 16, 130, torch.float32)
    targets = torch.tensor([0, -1, 130, 100_000], device=DEVICE)
    inputs = LossInputs(hidden, weight, bias, targets, [4], False, 0)
    losses, *_ = kernels.linear_cross_entropy_fwd(inputs)
    assert torch.isfinite(losses).tolist() == [True, False, False, False]


def test_strided_inputs():
    hidden, weight, bias, targets = make([10], 24, 260, torch.float32)
    dlosses = torch.randn(10, device=DEVICE)
    strided = [t.t().contiguous().t() for t in (hidden, weight)]
    got, _ = ours(dlosses, *strided, bias, targets, [10])
    expected, _ = ours(dlosses, hidden, weight, bias, targets, [10])
    assert_bitwise_equal(got[0], expected[0])
    for a, b in zip(got[1:], expected[1:], strict=True):
        # the BLAS may add in another order for another layout
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
