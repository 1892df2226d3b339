"""span_boundary_gather of 300 spans, 1,200 targets, width 768, beside the same out of PyTorch.

The forward reads the spans' rows and writes y; the backward reads dy and the spans and writes the
spans' gradient. Places and parameters are small.
"""

import pytest
import torch
from common import TINY, compare, step
from torch.nn import functional as F

from spanbert_fast import _extension
from spanbert_fast.ops.span_boundary_gather import span_boundary_gather
from spanbert_fast.testing import assert_no_worse_than

SPANS, PLACES, HIDDEN = (5, 20, 96) if TINY else (300, 20, 768)

pytestmark = pytest.mark.skipif(
    _extension._C is None, reason="installed without the compiled extension"
)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("count", [1, 2], ids=["1 thread", "2 threads"])
def test_against_pytorch(benchmark, capsys, request, threads, count, dtype, backward):
    threads(count)
    shapes = ((SPANS, HIDDEN), (PLACES, HIDDEN), (HIDDEN,), (HIDDEN,))
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    lengths = torch.arange(SPANS) % 7 + 1  # 4 on average, as spans are
    cu_span_lengths = F.pad(lengths.cumsum(0), (1, 0)).int()
    targets = int(cu_span_lengths[-1])
    span = torch.repeat_interleave(lengths)
    place = torch.arange(targets) - cu_span_lengths[span]
    dy = torch.randn(targets, HIDDEN).to(dtype)

    def ours(spans, places, weight, bias):
        return span_boundary_gather(spans, places, cu_span_lengths, targets, weight, bias)

    def theirs(spans, places, weight, bias):
        z = F.embedding(span, spans) + F.embedding(place, places)
        return F.layer_norm(F.gelu(z), (HIDDEN,), weight, bias, 1e-12)

    def run(function):
        return step(function, leaves, dy, backward)

    wide = [t.detach().double().requires_grad_() for t in leaves]
    truth = step(theirs, wide, dy.double(), backward)
    for result, same_dtype, exact in zip(run(ours), run(theirs), truth, strict=True):
        # one unit in the last place of the largest, where the peer is right by luck
        floor = torch.finfo(dtype).eps * exact.abs().max().item()
        assert_no_worse_than(result, same_dtype, exact, floor=floor)
    rows = dy.nbytes + leaves[0].nbytes
    compare(
        benchmark,
        capsys,
        f"span_boundary_gather {request.node.callspec.id}",
        lambda: run(ours),
        lambda: run(theirs),
        (2 * rows + leaves[0].nbytes) if backward else rows,
    )
