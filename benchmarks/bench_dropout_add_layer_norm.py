"""dropout_add_layer_norm on (4096, 768) beside F.layer_norm(F.dropout(x + x_bias) + residual).

The forward reads x and the residual and writes y; the backward reads dy and both again and writes
both gradients.
"""

import pytest
import torch
from common import TINY, compare, step
from torch.nn import functional as F

from spanbert_fast import _extension
from spanbert_fast.ops._common import use_backend
from spanbert_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm
from spanbert_fast.testing import assert_no_worse_than

TOKENS, HIDDEN = (32, 96) if TINY else (4096, 768)
SEED = torch.tensor(2019)

pytestmark = pytest.mark.skipif(
    _extension._C is None, reason="installed without the compiled extension"
)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.1], ids=["p=0", "p=.1"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("count", [1, 2], ids=["1 thread", "2 threads"])
def test_against_pytorch(benchmark, capsys, request, threads, count, dtype, dropout_p, backward):
    threads(count)
    shapes = ((TOKENS, HIDDEN), (TOKENS, HIDDEN), (HIDDEN,), (HIDDEN,), (HIDDEN,))
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    dy = torch.randn(TOKENS, HIDDEN).to(dtype)

    def ours(x, residual, weight, bias, x_bias):
        return dropout_add_layer_norm(
            x, residual, weight, bias, x_bias=x_bias, dropout_p=dropout_p, dropout_seed=SEED
        )

    def theirs(x, residual, weight, bias, x_bias):
        z = F.dropout(x + x_bias, dropout_p) + residual
        return F.layer_norm(z, (HIDDEN,), weight, bias, 1e-12)

    def run(function):
        return step(function, leaves, dy, backward)

    results = run(ours)
    with use_backend("reference"):  # PyTorch's own operators with the same mask
        peer = run(ours)
        wide = [t.detach().double().requires_grad_() for t in leaves]
        truth = step(ours, wide, dy.double(), backward)
    for result, same_dtype, exact in zip(results, peer, truth, strict=True):
        # one unit in the last place of the largest, where the peer is right by luck
        floor = torch.finfo(dtype).eps * exact.abs().max().item()
        assert_no_worse_than(result, same_dtype, exact, floor=floor)
    compare(
        benchmark,
        capsys,
        f"dropout_add_layer_norm {request.node.callspec.id}",
        lambda: run(ours),
        lambda: run(theirs),
        (8 if backward else 3) * dy.nbytes,
    )
