"""Attention of 4,096 packed tokens, 12 heads of 64, beside scaled_dot_product_attention.

The peer gets its own layout, contiguous (batch, heads, seqlen, 64): copies to it are not counted.
Ours reads views of one packed (tokens, 3, heads, 64). Rounds of both alternate, and a ratio is the
median over the pairs. A forward is 4 and a backward 10 tokens x seqlen x 64 x heads operations; the
rate is given beside that of a large matrix product in the same run, which is what bounds it where
there is no matrix unit.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from common import TINY
from torch.nn import functional as F

from spanbert_fast import _extension
from spanbert_fast.ops._common import use_backend
from spanbert_fast.ops.varlen_attention import varlen_attention
from spanbert_fast.testing import assert_no_worse_than

TOKENS, HEADS, HEAD_DIM = (512, 2, 64) if TINY else (4096, 12, 64)
SEED = torch.tensor(2019)
ROUNDS, SLOW_ROUNDS = (2, 1) if TINY else (9, 2)

pytestmark = pytest.mark.skipif(
    _extension._C is None, reason="installed without the compiled extension"
)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def step(attention: Callable, leaves, dout: torch.Tensor, backward: bool):
    """A call of `attention`, with gradients of all leaves or without any."""
    if not backward:
        with torch.no_grad():
            return (attention(*leaves),)
    out = attention(*leaves)
    return out, *torch.autograd.grad(out, leaves, dout)


def packed(cu_seqlens: torch.Tensor, seqlen: int, dropout_p: float) -> Callable:
    return lambda q, k, v: varlen_attention(
        q, k, v, cu_seqlens, seqlen, dropout_p=dropout_p, dropout_seed=SEED
    )


def check_first_sequence(results, qkv: torch.Tensor, dout: torch.Tensor, seqlen, dropout_p) -> None:
    """What was computed for the first sequence, against fp64 and PyTorch in the same dtype."""
    attention = packed(torch.tensor([0, seqlen], dtype=torch.int32), seqlen, dropout_p)

    def run(dtype):
        leaves = [t.to(dtype).detach().requires_grad_() for t in qkv[:seqlen].unbind(1)]
        return step(attention, leaves, dout[:seqlen].to(dtype), len(results) > 1)

    with use_backend("reference"):
        peer, truth = run(qkv.dtype), run(torch.float64)
    for ours, theirs, exact in zip(results, peer, truth, strict=True):
        # 512 terms of a sum, in another order
        floor = 512**0.5 * torch.finfo(torch.float32).eps * exact.abs().max().item()
        assert_no_worse_than(ours[:seqlen], theirs, exact, floor=floor)


def matmul_rate(dtype: torch.dtype) -> float:
    a = torch.randn(1024, 1024, dtype=dtype)
    return 2 * 1024**3 / min(seconds(lambda: a @ a) for _ in range(ROUNDS))


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("seqlen", [128, 512])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("count", [1, 2], ids=["1 thread", "2 threads"])
def test_against_pytorch(benchmark, capsys, request, threads, count, dtype, seqlen, backward):
    threads(count)
    torch.manual_seed(1)
    qkv = torch.randn(TOKENS, 3, HEADS, HEAD_DIM).to(dtype)
    dout = torch.randn(TOKENS, HEADS, HEAD_DIM).to(dtype)
    cu_seqlens = torch.arange(0, TOKENS + 1, seqlen, dtype=torch.int32)
    leaves = [t.detach().requires_grad_() for t in qkv.unbind(1)]

    def dense(t):
        return t.detach().view(-1, seqlen, HEADS, HEAD_DIM).transpose(1, 2).contiguous()

    dense_leaves, dense_dout = [dense(t).requires_grad_() for t in qkv.unbind(1)], dense(dout)
    ours, theirs = {}, {}
    for p in (0.0, 0.1):
        attention = packed(cu_seqlens, seqlen, p)
        check_first_sequence(step(attention, leaves, dout, backward), qkv, dout, seqlen, p)
        ours[p] = lambda attention=attention: step(attention, leaves, dout, backward)
        theirs[p] = lambda p=p: step(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=p),
            dense_leaves, dense_dout, backward,
        )  # fmt: skip
    plain, peer, slow_peer = [], [], []

    def others():
        plain.append(seconds(ours[0.0]))
        peer.append(seconds(theirs[0.0]))
        if len(slow_peer) < SLOW_ROUNDS:
            slow_peer.append(seconds(theirs[0.1]))

    others()  # warms up
    for times in (plain, peer, slow_peer):
        times.clear()
    benchmark.pedantic(ours[0.1], setup=others, rounds=ROUNDS)
    if benchmark.disabled:
        return
    dropped = benchmark.stats.stats.data

    def ratio(numerators, denominators):
        pairs = zip(numerators, denominators, strict=False)
        return statistics.median(a / b for a, b in pairs)

    rate = (14 if backward else 4) * TOKENS * seqlen * HEADS * HEAD_DIM / min(dropped)
    milliseconds = [1e3 * statistics.median(t) for t in (plain, dropped, peer, slow_peer)]
    figures = {
        "sdpa, both without dropout": ratio(peer, plain),
        "sdpa without / ours with": ratio(peer, dropped),
        "sdpa, both with dropout": ratio(slow_peer, dropped),
        "cost of dropout": ratio(dropped, plain),
        "rate / matmul's": rate / matmul_rate(dtype),
    }
    benchmark.extra_info.update(figures)
    with capsys.disabled():
        print(f"\n{request.node.callspec.id}: ours p=0 {milliseconds[0]:.1f} ms, p=.1", end=" ")
        print(f"{milliseconds[1]:.1f} ms; sdpa {milliseconds[2]:.1f}, {milliseconds[3]:.1f} ms")
        print("   ", "; ".join(f"{name} {figure:.2f}" for name, figure in figures.items()))
        print(f"    {rate / 1e9:.0f} GFLOP/s with dropout")
