"""bias_gelu on (4096, 3072), the feed-forward of 4,096 tokens, beside F.gelu(x + bias).

The forward reads x and writes y; the backward reads dy and x and writes dx.
"""

import pytest
import torch
from common import TINY, compare, step
from torch.nn import functional as F

from spanbert_fast import _extension
from spanbert_fast.ops._common import use_backend
from spanbert_fast.ops.bias_gelu import bias_gelu
from spanbert_fast.testing import assert_no_worse_than

TOKENS, FEATURES = (32, 96) if TINY else (4096, 3072)

pytestmark = pytest.mark.skipif(
    _extension._C is None, reason="installed without the compiled extension"
)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("count", [1, 2], ids=["1 thread", "2 threads"])
def test_against_pytorch(benchmark, capsys, request, threads, count, dtype, backward):
    threads(count)
    leaves = [torch.randn(shape).to(dtype) for shape in ((TOKENS, FEATURES), (FEATURES,))]
    leaves = [t.requires_grad_() for t in leaves]
    dy = torch.randn(TOKENS, FEATURES).to(dtype)

    def eager(x, bias):
        return F.gelu(x + bias)

    def run(function):
        return step(function, leaves, dy, backward)

    wide = [t.detach().double().requires_grad_() for t in leaves]
    with use_backend("reference"):
        truth = step(bias_gelu, wide, dy.double(), backward)
    for ours, peer, exact in zip(run(bias_gelu), run(eager), truth, strict=True):
        # one unit in the last place of the largest, where the peer is right by luck
        floor = torch.finfo(dtype).eps * exact.abs().max().item()
        assert_no_worse_than(ours, peer, exact, floor=floor)
    compare(
        benchmark,
        capsys,
        f"bias_gelu {request.node.callspec.id}",
        lambda: run(bias_gelu),
        lambda: run(eager),
        (5 if backward else 2) * dy.nbytes,
    )
