"""The tiles of linear_cross_entropy change no result and bound the memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from linear_cross_entropy_cases import make, peer, run
from spanbert_fast._extension import _C
from spanbert_fast.ops import linear_cross_entropy as op
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.testing import assert_bitwise_equal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype, each_thread_count, monkeypatch):
    monkeypatch.setattr(op, "_SCORE_BYTES", 1_000_000)  # some of the columns
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
    """Keeping none, some or all columns gives the same losses bit for bit, and gradients to
    rounding."""
    *tensors, targets = make([70], 32, 1001, torch.float32)
    dlosses = torch.randn(70)

    def ours(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, bias[0], targets).losses

    results = []
    for kept_bytes in (0, 4 * 70 * 300, 4 * 70 * 1001):
        monkeypatch.setattr(op, "_SCORE_BYTES", kept_bytes)
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


def test_a_bf16_weight_gradient_is_summed_in_fp32(monkeypatch):
    """1,024 tiles each add 1/256 to the same gradient; a sum in bf16 would stop growing at 1."""
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
    """Peak of the memory that `function` allocates, as PyTorch's allocator counts it."""
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


# 38 MB of kept scores, 8 MB for a tile in fp32, and what a machine's libraries keep for
# their products (64 MB in all with AVX-512). All scores would take 70 MB in bf16, 139 MB in fp32,
# beside the tiles and libraries.
RESIDENT_BYTES = 80e6

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


@pytest.mark.skipif(_C is None, reason="needs the extension")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_resident_memory_beside_the_gradients_is_bounded():
    """The whole process, its libraries' own memory too, at the size of a training step.

    If the machine is short of memory, pages that it took away come back during the call and count
    as growth. So the least of three processes counts.
    """
    growth = sys.maxsize
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        growth = min(growth, int(done.stdout))
        if growth < RESIDENT_BYTES:
            break
    assert growth < RESIDENT_BYTES, f"{growth / 1e6:.0f} MB beside the gradients"
    assert growth > 20e6, "the meter sees nothing"
