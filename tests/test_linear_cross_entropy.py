"""linear_cross_entropy against fp64: groups, tiles, per-row gradients, predictions, memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from spanbert_fast import use_backend
from spanbert_fast.ops import linear_cross_entropy as op
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than

CASES = {  # group sizes, hidden size, vocabulary
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
    """Tiles so small that the test's sizes are cut, unevenly, in both directions."""
    monkeypatch.setattr(op, "_TILE_ROWS", 16)
    monkeypatch.setattr(op, "_TILE_ELEMENTS", 16 * 128)
    monkeypatch.setattr(op, "_TILE_COLUMNS", 100)
    # of 1,001 columns the compiled forward keeps 256 to 768 for its backward, of fewer all
    monkeypatch.setattr(op, "_KEPT_BYTES", 60_000)


def make(group_sizes, hidden_size, vocab_size, dtype):
    rows = sum(group_sizes)
    hidden = torch.randn(rows, hidden_size).to(dtype)
    # scores of about +-8: some rows are sure of the right entry, some of a wrong one
    weight = (8 * hidden_size**-0.5 * torch.randn(vocab_size, hidden_size)).to(dtype)
    bias = torch.randn(len(group_sizes), vocab_size).to(dtype)
    targets = torch.randint(vocab_size, (rows,))
    likely = torch.arange(rows) % 3 == 0
    scores = hidden.float() @ weight.float().t()
    targets[likely] = scores[likely].argmax(1) if likely.any() else targets[likely]
    return hidden, weight, bias, targets


def run(function, tensors, dlosses, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    losses = function(*leaves)
    return losses, *torch.autograd.grad(losses, leaves, dlosses.to(losses.dtype))


def peer(group_sizes, targets):
    """PyTorch's own: the scores of each group, whole."""

    def function(hidden, weight, bias):
        parts = zip(hidden.split(group_sizes), targets.split(group_sizes), bias, strict=True)
        losses = [F.cross_entropy(F.linear(h, weight, b), t, reduction="none") for h, t, b in parts]
        return torch.cat(losses)

    return function


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_no_worse_than_pytorch(case, dtype, small_tiles, poisoned_empty):
    group_sizes, _, vocab_size = case
    *tensors, targets = make(*case, dtype)
    dlosses = torch.randn(sum(group_sizes))  # each row its own, some negative

    def ours(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, bias, targets, group_sizes=group_sizes).losses

    got = run(ours, tensors, dlosses, dtype)
    like = run(peer(group_sizes, targets), tensors, dlosses, dtype)
    truth = run(peer(group_sizes, targets), tensors, dlosses, torch.float64)
    assert got[0].dtype == torch.float32 and (got[0] >= 0).all()
    names = ("losses", "dhidden", "dweight", "dbias")
    for name, a, b, c in zip(names, got, like, truth, strict=True):
        # A peer may be exact by luck. A loss is a difference of scores up to 32, rounded in fp32
        # (bf16 and fp16 products round them first, in the peer too); a gradient is rounded once.
        largest = c.abs().max().item() if c.numel() else 0
        floor = 64 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps * largest
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_vocabulary(dtype, poisoned_empty):
    """28,996 columns, of which a part is kept; two groups that share no bias; an fp32 weight."""
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
        # as above; here a sum in fp32 is over 28,996 terms
        floor = 64 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps * c.abs().max().item()
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype, each_thread_count, monkeypatch):
    monkeypatch.setattr(op, "_KEPT_BYTES", 1_000_000)  # a part of the columns
    group_sizes = [330, 170]
    *tensors, targets = make(group_sizes, 96, 3001, dtype)
    dlosses = torch.randn(500)

    def ours(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, bias, targets, group_sizes=group_sizes).losses

    each_thread_count(lambda: run(ours, tensors, dlosses, dtype))
    one_task = make([9], 32, 100, dtype)

    def small(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, bias[0], one_task[3]).losses

    each_thread_count(lambda: run(small, one_task[:3], torch.randn(9) * 0 + 1, dtype))


def test_what_is_kept_changes_no_loss(monkeypatch):
    """Nothing, a part or all of the columns: the same bits forward, gradients to rounding."""
    *tensors, targets = make([70], 32, 1001, torch.float32)
    dlosses = torch.randn(70)

    def ours(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, bias[0], targets).losses

    results = []
    for kept_bytes in (0, 4 * 70 * 300, 4 * 70 * 1001):
        monkeypatch.setattr(op, "_KEPT_BYTES", kept_bytes)
        results.append(run(ours, tensors, dlosses, torch.float32))
    with torch.no_grad():
        assert_bitwise_equal(ours(*tensors), results[0][0].detach())
    for other in results[1:]:
        assert_bitwise_equal(other[0].detach(), results[0][0].detach())
        for a, b in zip(other[1:], results[0][1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_two_backwards_of_one_graph_agree():
    *tensors, targets = make([30], 16, 600, torch.float32)
    leaves = [t.requires_grad_() for t in tensors]
    losses = linear_cross_entropy(leaves[0], leaves[1], leaves[2][0], targets).losses
    first = torch.autograd.grad(losses.sum(), leaves, retain_graph=True)
    for a, b in zip(torch.autograd.grad(losses.sum(), leaves), first, strict=True):
        assert_bitwise_equal(a, b)


def test_entries_that_a_bias_of_minus_infinity_forbids(poisoned_empty):
    """Forbidden entries, whole tiles of them too, have no share in a loss or a gradient."""
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


def test_the_answer_does_not_depend_on_the_tiles(monkeypatch):
    group_sizes = [60, 41]
    *tensors, targets = make(group_sizes, 32, 1003, torch.float64)
    dlosses = torch.randn(101, dtype=torch.float64)

    def ours(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, bias, targets, group_sizes=group_sizes).losses

    whole = run(ours, tensors, dlosses, torch.float64)
    for rows, columns in ((1, 64), (7, 1003), (1000, 1)):
        monkeypatch.setattr(op, "_TILE_ROWS", rows)
        monkeypatch.setattr(op, "_TILE_COLUMNS", columns)
        monkeypatch.setattr(op, "_TILE_ELEMENTS", rows * columns)
        for a, b in zip(run(ours, tensors, dlosses, torch.float64), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_certainty_and_huge_scores_stay_finite():
    hidden = torch.tensor([[1.0], [1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[3e4], [-3e4], [0.0]], requires_grad=True)
    losses = linear_cross_entropy(hidden, weight, torch.zeros(3), torch.tensor([0, 1, 1])).losses
    assert losses.tolist() == [0.0, 6e4, 0.0]
    losses.sum().backward()
    assert torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all()


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
    # scores up to 32 in bf16 are off by up to 1/16 each
    torch.testing.assert_close(losses, exact, rtol=0, atol=0.25)
    # without bf16 units the compiled op makes the products in fp32, faster and more exactly
    rounds = op._C is None or op._HAS_BF16_PRODUCTS
    assert ((losses - exact).abs().max() > 1e-3) == rounds, "products in the wrong dtype"


def test_a_bf16_weight_gradient_is_summed_in_fp32(monkeypatch):
    """1,024 tiles that each add 1/256 to the same gradient: a sum in bf16 stops growing at 1."""
    monkeypatch.setattr(op, "_TILE_ROWS", 1)
    rows = 1024
    hidden = torch.ones(rows, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(rows, dtype=torch.int64)
    losses = linear_cross_entropy(hidden, weight, bias, targets).losses
    (losses.sum() / 128).backward()
    # each row: (softmax - onehot) / 128 = -+ 1/256
    assert weight.grad.flatten().tolist() == [-4, 4]
    assert bias.grad.tolist() == [-4, 4]


def peak_bytes(function):
    """Most memory alive at once inside `function` beyond what was there, by PyTorch's allocator."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def test_memory_beside_the_gradients_is_bounded():
    rows, hidden_size, vocab_size = 1200, 64, 28_996
    hidden, weight, bias, targets = make([700, 500], hidden_size, vocab_size, torch.float32)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]

    def step(function):
        return lambda: torch.autograd.grad(function().sum(), leaves)

    ours = peak_bytes(
        step(lambda: linear_cross_entropy(*leaves, targets, group_sizes=[700, 500]).losses)
    )
    theirs = peak_bytes(step(lambda: peer([700, 500], targets)(*leaves)))
    gradients = sum(leaf.nbytes for leaf in leaves)
    scores = 4 * rows * vocab_size
    assert theirs > scores, "the meter does not see the peer's scores"
    assert ours - gradients < 64e6, f"{(ours - gradients) / 1e6:.0f} MB beside the gradients"


# Grows a process's peak by one joint forward and backward; prints by how much beyond the gradients.
GROWTH = """
import sys, torch
from pathlib import Path
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def growth(rows, vocab_size):
    hidden = torch.randn(rows, 768, dtype=torch.bfloat16, requires_grad=True)
    weight = (0.02 * torch.randn(vocab_size, 768)).requires_grad_()
    bias = torch.zeros(2, vocab_size, requires_grad=True)
    targets = torch.randint(vocab_size, (rows,))
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = status("VmRSS")
    losses = linear_cross_entropy(
        hidden, weight, bias, targets, group_sizes=[rows // 2, rows - rows // 2]
    ).losses
    gradients = torch.autograd.grad(losses.sum(), (hidden, weight, bias))
    return status("VmHWM") - before - sum(gradient.nbytes for gradient in gradients)

torch.set_num_threads(2)
growth(8, 1000)  # loads code, and leaves no memory that the next one could take for its gradients
print(growth(1200, 28996))
"""


@pytest.mark.skipif(op._C is None, reason="needs the extension")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_resident_memory_beside_the_gradients_is_bounded():
    """The whole process, its libraries' own memory too, at the size of a training step."""
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    growth = int(done.stdout)
    assert growth < 64e6, f"{growth / 1e6:.0f} MB beside the gradients"
    # what a part of the scores takes is seen; all of them in fp32 would take 139 MB
    assert growth > 20e6, "the meter sees nothing"


def test_gradcheck_opcheck_compile(small_tiles):
    group_sizes = [5, 3]
    hidden, weight, bias, targets = make(group_sizes, 4, 130, torch.float64)
    tensors = [t.requires_grad_() for t in (hidden, weight, bias)]

    def function(hidden, weight, bias):
        return linear_cross_entropy(
            hidden, weight, bias, targets, group_sizes=group_sizes, return_predictions=True
        )

    assert torch.autograd.gradcheck(lambda *t: function(*t).losses, tensors)
    for with_predictions in (False, True):
        torch.library.opcheck(
            torch.ops.spanbert_fast.linear_cross_entropy_fwd,
            (*tensors, targets, group_sizes, with_predictions, 0),
        )
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*tensors), function(*tensors), strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.skipif(op._C is None, reason="needs the extension")
def test_opcheck_compile_of_the_kernels():
    """The fp32 inputs go to the extension; those in the test above are for PyTorch's operators."""
    group_sizes = [5, 3]
    hidden, weight, bias, targets = make(group_sizes, 4, 300, torch.float32)
    tensors = [t.requires_grad_() for t in (hidden, weight, bias)]
    for kept_columns in (0, 256, 300):
        torch.library.opcheck(
            torch.ops.spanbert_fast.linear_cross_entropy_fwd,
            (*tensors, targets, group_sizes, True, kept_columns),
        )

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
    if op._C is not None:
        with pytest.raises(ValueError, match="kept_columns must be a multiple of 256 .* got 7"):
            op._linear_cross_entropy_fwd(hidden, weight, bias, targets, [5, 4], False, 7)
    for wrong in (50, -1, -100):
        with pytest.raises(ValueError, match=rf"targets must be in \[0, 50\), got {wrong}"):
            linear_cross_entropy(hidden, weight, bias[0], torch.full_like(targets, wrong))
