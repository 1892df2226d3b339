"""varlen_attention: both composites against fp64, with and without dropout, every shape of C6."""

import pytest
import torch
from torch.nn import functional as F

from spanbert_fast.ops import _common
from spanbert_fast.ops._attention_composite import padded_bwd, padded_fwd
from spanbert_fast.ops.varlen_attention import varlen_attention
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than

SEED = torch.tensor(2**62 + 12345)
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

    def function(q, k, v):
        return varlen_attention(
            q, k, v, cu_seqlens, longest, dropout_p=dropout_p, dropout_seed=SEED, dropout_site=3
        )

    return function


def run(function, qkv, dout, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in qkv]
    out = function(*leaves)
    return out, *torch.autograd.grad(out, leaves, dout.to(dtype))


def rounding_floors(q, k, v, dout, truth, dtype):
    """What an implementation that keeps lse and out, and not the probabilities, must round.

    exp(S - lse) is off by eps * |S| in fp32, relatively; out is stored in `dtype`, so dS = P (dP -
    dout out) by eps * |dout| |out| absolutely. PyTorch's softmax stores P and has neither (with
    one token its dq is exactly 0).
    """
    if len(q) == 0:
        return 0.0, 0.0, 0.0, 0.0
    norm = [t.double().norm(dim=-1).max().item() for t in (q, k, v, dout)]
    scale = q.shape[2] ** -0.5
    relative = torch.finfo(torch.float32).eps * norm[0] * norm[1] * scale
    stored = torch.finfo(dtype).eps * norm[2] * norm[3] * scale
    size = [t.abs().max().item() for t in truth]
    largest = [t.double().abs().max().item() for t in (q, k)]
    return (
        relative * size[0],
        relative * size[1] + stored * largest[1],
        relative * size[2] + stored * largest[0],
        relative * size[3],
    )


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_no_worse_than_pytorch(lengths, head_dim, dtype, dropout_p, poisoned_empty):
    *qkv, dout = make(lengths, 2, head_dim, dtype)
    function = attention_with(dropout_p, lengths)
    ours = run(function, qkv, dout, dtype)
    with _common.use_backend("reference"):
        peer = run(function, qkv, dout, dtype)
        truth = run(function, qkv, dout, torch.float64)
    floors = rounding_floors(*qkv, dout, truth, dtype)
    names = ("out", "dq", "dk", "dv")
    for name, a, b, c, floor in zip(names, ours, peer, truth, floors, strict=True):
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_padded_composite_equals_the_reference(lengths, dropout_p, poisoned_empty):
    """The GPU's composite is device-agnostic: here it is held to the truth on the CPU."""
    *qkv, dout = make(lengths, 3, 32, torch.float64)
    with _common.use_backend("reference"):
        out, *gradients = run(attention_with(dropout_p, lengths), qkv, dout, torch.float64)
    threshold = 64 if dropout_p else 0
    last = (cumulative(lengths), max(lengths, default=0), 32**-0.5, SEED, threshold, 3)
    padded_out, lse = padded_fwd(*qkv, *last)
    torch.testing.assert_close(padded_out, out.detach())
    for got, want in zip(padded_bwd(dout, *qkv, padded_out, lse, *last), gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_mask_belongs_to_the_sequence_not_to_the_packing():
    """A sequence's dropout depends on its number, not on where its tokens lie."""
    q, k, v, _ = make([40], 2, 32, torch.float32)
    alone = attention_with(0.5, [40])(q, k, v)
    others = make([7], 2, 32, torch.float32)[:3]
    behind = attention_with(0.5, [40, 7])(
        *(torch.cat(pair) for pair in zip((q, k, v), others, strict=True))
    )
    assert_bitwise_equal(behind[:40].contiguous(), alone)


def test_non_contiguous_input():
    qkv = torch.randn(3, 4, 21, 32).permute(0, 2, 1, 3)  # heads before tokens in memory
    cu_seqlens = cumulative([10, 11])
    assert_bitwise_equal(
        varlen_attention(*qkv, cu_seqlens, 11),
        varlen_attention(*(t.contiguous() for t in qkv), cu_seqlens, 11),
    )


def test_softmax_scale_is_used():
    q, k, v, _ = make([12], 1, 32, torch.float64)
    cu_seqlens = cumulative([12])
    scores = torch.softmax(0.3 * q[:, 0] @ k[:, 0].T, -1)
    torch.testing.assert_close(
        varlen_attention(q, k, v, cu_seqlens, 12, softmax_scale=0.3)[:, 0], scores @ v[:, 0]
    )


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_gradcheck_opcheck_compile(dropout_p):
    lengths = [3, 5, 1]
    q, k, v, _ = (t.requires_grad_() for t in make(lengths, 2, 4, torch.float64))
    function = attention_with(dropout_p, lengths)
    assert torch.autograd.gradcheck(function, (q, k, v))
    threshold = round(256 * dropout_p)
    torch.library.opcheck(
        torch.ops.spanbert_fast.varlen_attention_fwd,
        (q, k, v, cumulative(lengths), 5, 0.5, SEED if threshold else None, threshold, 3),
    )
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(q, k, v), function(q, k, v))


def test_long_sequence_and_autocast():
    q, k, v, _ = make([2048], 1, 32, torch.float32)
    cu_seqlens = cumulative([2048])
    with torch.autocast("cpu", torch.bfloat16):
        assert varlen_attention(q, k, v, cu_seqlens, 2048).dtype == torch.bfloat16
    with _common.use_backend("reference"):
        truth = varlen_attention(q.double(), k.double(), v.double(), cu_seqlens, 2048)
        peer = varlen_attention(q, k, v, cu_seqlens, 2048)
    # softmax over 2,048 keys: a few roundings more or less in the peer
    floor = 1e-5
    assert_no_worse_than(varlen_attention(q, k, v, cu_seqlens, 2048), peer, truth, floor=floor)


def test_bad_input():
    q, k, v, _ = make([6], 1, 32, torch.float32)
    cu_seqlens = cumulative([6])
    with pytest.raises(ValueError, match=r"k must have shape \(6, 1, 32\), got \(5, 1, 32\)"):
        varlen_attention(q, k[:5], v, cu_seqlens, 6)
    with pytest.raises(TypeError, match="v must be torch.float32 as q is, got torch.float64"):
        varlen_attention(q, k, v.double(), cu_seqlens, 6)
    with pytest.raises(TypeError, match="cu_seqlens must be int32, got torch.int64"):
        varlen_attention(q, k, v, cu_seqlens.long(), 6)
    for values, message in (
        ([0, 4, 3, 6], "cu_seqlens must not fall, got 4 then 3 at index 2"),
        ([1, 6], "cu_seqlens must start at 0, got 1"),
        ([0, 5], "cu_seqlens must end at 6, got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            varlen_attention(q, k, v, torch.tensor(values, dtype=torch.int32), 6)
    with pytest.raises(ValueError, match="max_seqlen must be at least the longest length 6, got 5"):
        varlen_attention(q, k, v, cu_seqlens, 5)
