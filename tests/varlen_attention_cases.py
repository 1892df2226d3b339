"""Shared by the tests of varlen_attention: ragged batches, and the comparison with PyTorch."""

import torch
from torch.nn import functional as F

from spanbert_fast import use_backend
from spanbert_fast.ops.dropout import Dropout
from spanbert_fast.ops.varlen_attention import varlen_attention
from spanbert_fast.testing import assert_no_worse_than

SEED = torch.tensor(2**62 + 12345)
SITE = 3
LENGTHS = {
    "one token": [1],
    "one sequence": [100],
    "ragged": [3, 1, 65, 17, 64, 3],
    "with empty": [0, 5, 0, 5, 9, 0],
    "equal": [16, 16, 16],
    "empty batch": [],
}


def cumulative(lengths):
    return F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0), (1, 0)).to(torch.int32)


def make(lengths, heads, head_dim, dtype):
    # large scores: a wrong scale or a lost maximum shows
    return [(2 * torch.randn(sum(lengths), heads, head_dim)).to(dtype) for _ in range(4)]


def attention_with(dropout_p, lengths):
    cu_seqlens, longest = cumulative(lengths), max(lengths, default=0)
    dropout = Dropout(dropout_p, SEED, SITE)

    def function(q, k, v):
        return varlen_attention(q, k, v, cu_seqlens, longest, dropout=dropout)

    return function


def run(function, qkv, dout, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in qkv]
    out = function(*leaves)
    return out, *torch.autograd.grad(out, leaves, dout.to(dtype))


def rounding_floors(q, k, v, dout, truth, dtype):
    """The rounding errors of an implementation that keeps lse and out instead of probabilities.

    In fp32, exp(S - lse) has the relative error eps * |S|. out is stored in `dtype`, so dS = P (dP
    - dout out) has the absolute error eps * |dout| |out|, and as much again in fp32, since dP and
    dout out are summed in two orders. PyTorch's softmax stores P and has neither error (with one
    token its dq is exactly 0).
    """
    if len(q) == 0:
        return 0.0, 0.0, 0.0, 0.0
    norm = [t.double().norm(dim=-1).max().item() for t in (q, k, v, dout)]
    scale = q.shape[2] ** -0.5
    single = torch.finfo(torch.float32).eps
    relative = single * norm[0] * norm[1] * scale
    stored = (torch.finfo(dtype).eps + single) * norm[2] * norm[3] * scale
    size = [t.abs().max().item() for t in truth]
    largest = [t.double().abs().max().item() for t in (q, k)]
    return (
        relative * size[0],
        relative * size[1] + stored * largest[1],
        relative * size[2] + stored * largest[0],
        relative * size[3],
    )


def check_no_worse_than_pytorch(lengths, heads, head_dim, dtype, dropout_p):
    *qkv, dout = make(lengths, heads, head_dim, dtype)
    function = attention_with(dropout_p, lengths)
    ours = run(function, qkv, dout, dtype)
    with use_backend("reference"):
        peer = run(function, qkv, dout, dtype)
        truth = run(function, qkv, dout, torch.float64)
    floors = rounding_floors(*qkv, dout, truth, dtype)
    names = ("out", "dq", "dk", "dv")
    for name, a, b, c, floor in zip(names, ours, peer, truth, floors, strict=True):
        assert a.dtype == dtype
        assert_no_worse_than(a, b, c, floor=floor, name=name)
