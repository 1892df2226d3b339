"""varlen_attention against fp64 and PyTorch in the same dtype, in every shape of C6."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_fast import use_backend
from spanbert_fast._extension import _C
from spanbert_fast.ops._attention_composite import AttentionInputs
from spanbert_fast.ops._register import KERNELS
from spanbert_fast.ops.dropout import Dropout
from spanbert_fast.ops.varlen_attention import varlen_attention
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than
from varlen_attention_cases import (
    LENGTHS,
    SEED,
    SITE,
    attention_with,
    check_no_worse_than_pytorch,
    cumulative,
    make,
    rounding_floors,
    run,
)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_no_worse_than_pytorch(lengths, head_dim, dtype, dropout_p, poisoned_empty):
    check_no_worse_than_pytorch(lengths, 2, head_dim, dtype, dropout_p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [1, 4, 33, 80, 200])
def test_any_head_dim(head_dim, dtype, poisoned_empty):
    check_no_worse_than_pytorch([7, 66, 1], 2, head_dim, dtype, 0.25)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[513, 2], [1024], [2048]], ids=str)
def test_long_sequences(lengths, dtype, dropout_p, poisoned_empty):
    """Beyond 512 keys the softmax keeps a running maximum; from 2,048 on, dq is summed from
    parts."""
    check_no_worse_than_pytorch(lengths, 1, 32, dtype, dropout_p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8192_tokens(dtype):
    """Only a few queries get a gradient, so the truth needs only their rows of scores."""
    length, rows = 8192, torch.tensor([0, 1, 511, 512, 4095, 6000, 8191])
    *qkv, dout = make([length], 1, 64, dtype)
    dout = torch.zeros_like(dout).index_copy(0, rows, dout[rows])
    ours = run(attention_with(0.0, [length]), qkv, dout, dtype)

    def few(q, k, v):
        scores = q[rows, 0] @ k[:, 0].T * 64**-0.5
        return torch.zeros_like(q).index_copy(0, rows, (scores.softmax(-1) @ v[:, 0])[:, None])

    peer, truth = (run(few, qkv, dout, cast) for cast in (dtype, torch.float64))
    floors = rounding_floors(*qkv, dout, truth, dtype)
    ours = (torch.zeros_like(dout).index_copy(0, rows, ours[0][rows]), *ours[1:])
    for name, a, b, c, floor in zip(
        ("out", "dq", "dk", "dv"), ours, peer, truth, floors, strict=True
    ):
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 140), max_size=6),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 70),
    dropout_p=st.sampled_from([0.0, 0.3]),
)
def test_any_shape(lengths, heads, head_dim, dropout_p):
    torch.manual_seed(1)
    check_no_worse_than_pytorch(lengths, heads, head_dim, torch.float32, dropout_p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype):
    lengths = [2100, 3, 700, 64]  # the first sequence is split among tasks by queries and by keys
    *qkv, dout = make(lengths, 2, 32, dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(attention_with(0.1, lengths), qkv, dout, dtype))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_bitwise_equal(b, a)


LAYOUTS = {
    "slice of packed qkv": lambda t: torch.stack([t + 1, t, t + 2], 1)[:, 1],
    "heads first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "head_dim strided": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_non_contiguous_input(layout, dtype):
    lengths = [10, 90]
    *qkv, dout = make(lengths, 4, 64, dtype)
    function = attention_with(0.1, lengths)
    *strided, strided_dout = [LAYOUTS[layout](t) for t in (*qkv, dout)]
    assert not any(t.is_contiguous() for t in (*strided, strided_dout))
    expected = run(function, qkv, dout, dtype)
    for a, b in zip(run(function, strided, strided_dout, dtype), expected, strict=True):
        assert_bitwise_equal(a, b)


def test_expanded_gradient():
    q, k, v, _ = (t.requires_grad_() for t in make([9, 4], 2, 32, torch.float32))
    out = attention_with(0.1, [9, 4])(q, k, v)
    expected = torch.autograd.grad(out, (q, k, v), torch.ones_like(out), retain_graph=True)
    for a, b in zip(torch.autograd.grad(out.sum(), (q, k, v)), expected, strict=True):
        assert_bitwise_equal(a, b)


def test_lse_is_the_log_of_the_denominator():
    q, k, v, _ = make([600], 1, 32, torch.float32)
    forward = KERNELS["varlen_attention_fwd"]
    _, lse = forward(q, k, v, cumulative([600]), 600, 0.3, None, 0, 0)
    torch.testing.assert_close(lse, torch.logsumexp(0.3 * q[:, 0] @ k[:, 0].T, -1)[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_shows_and_does_not_stay(dtype):
    """A NaN reaches the outputs that depend on it, but no later call through reused memory."""
    *qkv, dout = make([70, 30], 1, 64, dtype)
    function = attention_with(0.0, [70, 30])
    clean = run(function, qkv, dout, dtype)
    for spoilt_tensor in range(3):
        spoilt = [t.clone() for t in qkv]
        spoilt[spoilt_tensor][5, 0, 3] = float("nan")
        # In fp64, as PyTorch's bf16 products on a matrix unit spread a row's NaN to its neighbour.
        with use_backend("reference"):
            expected = run(function, spoilt, dout, torch.float64)
        for a, b in zip(run(function, spoilt, dout, dtype), expected, strict=True):
            assert torch.equal(a.isnan(), b.isnan())
    for a, b in zip(run(function, qkv, dout, dtype), clean, strict=True):
        assert_bitwise_equal(a, b)


def test_large_scores_do_not_overflow():
    q, k, v, dout = (100 * t for t in make([90], 1, 64, torch.float32))
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    out = attention_with(0.0, [90])(q, k, v)
    best = (q[:, 0] @ k[:, 0].T).argmax(-1)
    torch.testing.assert_close(out[:, 0], v[best, 0])
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), dout)
    torch.testing.assert_close(dv, torch.zeros_like(v).index_add(0, best, dout))
    # a softmax of 0 and 1 has no gradient: the rest is the rounding of dP, times 100 from k and q
    rounding = torch.finfo(torch.float32).eps * (dout[:, 0] @ v[:, 0].T).abs().max()
    assert max(dq.abs().max(), dk.abs().max()) <= 16 * rounding * max(q.abs().max(), k.abs().max())


def test_softmax_scale_is_used():
    q, k, v, _ = make([12], 1, 32, torch.float64)
    cu_seqlens = cumulative([12])
    scores = torch.softmax(0.3 * q[:, 0] @ k[:, 0].T, -1)
    torch.testing.assert_close(
        varlen_attention(q, k, v, cu_seqlens, 12, softmax_scale=0.3)[:, 0], scores @ v[:, 0]
    )


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_gradcheck_compile(dropout_p):
    lengths = [3, 5, 1]
    q, k, v, _ = (t.requires_grad_() for t in make(lengths, 2, 4, torch.float64))
    function = attention_with(dropout_p, lengths)
    assert torch.autograd.gradcheck(function, (q, k, v))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(q, k, v), function(q, k, v))


def test_autocast_gives_its_dtype():
    q, k, v, _ = make([6], 1, 32, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert varlen_attention(q, k, v, cumulative([6]), 6).dtype == torch.bfloat16


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
    with pytest.raises(ValueError, match=r"dropout.site must be in \[0, 65536\), got -1"):
        varlen_attention(q, k, v, cu_seqlens, 6, dropout=Dropout(0.1, SEED, -1))


@pytest.mark.skipif(_C is None, reason="needs the extension")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_op_runs_the_extension(dtype):
    """PyTorch's own operators round at other places."""
    *qkv, dout = make([40, 9], 2, 64, dtype)
    inputs = AttentionInputs(*qkv, cumulative([40, 9]), 40, 0.125, SEED, 26, SITE)
    forward, backward = KERNELS["varlen_attention_fwd"], KERNELS["varlen_attention_bwd"]
    out, lse = forward.op(*inputs)
    assert not torch.equal(forward.composite(*inputs)[1], lse)
    ours, theirs = (b(dout, *inputs, out, lse) for b in (backward.op, backward.composite))
    assert not any(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.skipif(_C is None, reason="needs the extension")
def test_the_extension_checks_what_it_gets():
    q, k, v, _ = make([6], 1, 32, torch.float32)
    last = (cumulative([6]), 6, 1.0, None, 0, 0)
    op = KERNELS["varlen_attention_fwd"].op
    refused = (ValueError, RuntimeError)  # RuntimeError from PyTorch 2.15 on
    message = "q must be bfloat16, float16 or float32, got torch.float64"
    with pytest.raises(refused, match=message):
        op(q.double(), k, v, *last)
    with pytest.raises(refused, match=r"k must have shape \(6, 1, 32\), got \(5, 1, 32\)"):
        op(q, k[:5], v, *last)
    with pytest.raises(refused, match="v must be torch.float32, got torch.bfloat16"):
        op(q, k, v.bfloat16(), *last)
