"""linear_cross_entropy of 1,000 rows over 28,996 entries beside F.cross_entropy(F.linear(...)).

In bf16, in fp32, and as in training: an fp32 weight under bf16 autocast. Products take nearly all
of the time, so beside the two stands what the products alone take: one forward, three for both.
"""

import functools

import pytest
import torch
from common import TINY, compare, seconds, step
from torch.nn import functional as F

from spanbert_fast import _extension
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.testing import assert_no_worse_than

ROWS, HIDDEN, VOCAB = (20, 96, 500) if TINY else (1000, 768, 28_996)

pytestmark = pytest.mark.skipif(
    _extension._C is None, reason="installed without the compiled extension"
)


@functools.cache
def case(dtype: torch.dtype, parameter_dtype: torch.dtype) -> tuple:
    """(leaves, targets, dlosses, the exact losses and gradients)."""
    torch.manual_seed(20191010)
    hidden = torch.randn(ROWS, HIDDEN).to(dtype).requires_grad_()
    weight = (0.05 * torch.randn(VOCAB, HIDDEN)).to(parameter_dtype).requires_grad_()
    bias = (0.1 * torch.randn(VOCAB)).to(parameter_dtype).requires_grad_()
    leaves, targets = (hidden, weight, bias), torch.randint(VOCAB, (ROWS,))
    dlosses = torch.full((ROWS,), 1 / ROWS)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    truth = step(functools.partial(theirs, targets), wide, dlosses.double(), backward=True)
    return leaves, targets, dlosses, [t.detach() for t in truth]


def theirs(targets, hidden, weight, bias):
    losses = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
    return losses.to(torch.promote_types(losses.dtype, torch.float32))


def ours(targets, hidden, weight, bias):
    return linear_cross_entropy(hidden, weight, bias, targets).losses


def products(hidden: torch.Tensor, weight: torch.Tensor, backward: bool) -> float:
    """Seconds of the products alone, on scores that are there already; the best of five rounds."""
    hidden, weight = hidden.detach(), weight.detach().to(hidden.dtype)
    scores = torch.zeros(ROWS, VOCAB, dtype=hidden.dtype)
    outputs = torch.empty_like(hidden), torch.empty_like(weight)

    def run():
        torch.mm(hidden, weight.t(), out=scores)
        if backward:
            torch.mm(scores, weight, out=outputs[0])
            torch.mm(scores.t(), hidden, out=outputs[1])

    run()
    return min(seconds(run) for _ in range(5))


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("kind", ["bf16", "autocast", "fp32"])
@pytest.mark.parametrize("count", [1, 2], ids=["1 thread", "2 threads"])
def test_against_pytorch(benchmark, capsys, request, threads, count, kind, backward):
    threads(count)
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    leaves, targets, dlosses, truth = case(dtype, dtype if kind == "bf16" else torch.float32)

    def run(function):
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            return step(functools.partial(function, targets), leaves, dlosses, backward)

    for result, same_dtype, exact in zip(run(ours), run(theirs), truth, strict=False):
        # one unit in the last place of the largest, where the peer is right by luck
        floor = torch.finfo(dtype).eps * exact.abs().max().item()
        assert_no_worse_than(result, same_dtype, exact, floor=floor)
    gradients = sum(leaf.nbytes for leaf in leaves)
    compare(
        benchmark,
        capsys,
        f"linear_cross_entropy {request.node.callspec.id}",
        lambda: run(ours),
        lambda: run(theirs),
        (3 if backward else 1) * gradients,
    )
    if not benchmark.disabled:
        alone = products(leaves[0], leaves[1], backward)
        best = benchmark.stats.stats.min
        benchmark.extra_info["products_ms"] = 1e3 * alone
        with capsys.disabled():
            print(
                f"    products alone {1e3 * alone:.0f} ms, best round {best / alone:.2f} times that"
            )
