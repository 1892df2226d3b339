"""varlen_attention: kernels and composites against fp64, dropout exactly, every shape of C6."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from isa_cases import CAPABILITIES, run_at_level
from spanbert_fast._extension import _C
from spanbert_fast.ops import _common
from spanbert_fast.ops._attention_composite import (
    grouped_bwd,
    grouped_fwd,
    padded_bwd,
    padded_fwd,
)
from spanbert_fast.ops.varlen_attention import varlen_attention
from spanbert_fast.reference.dropout import attention_keep_mask, dropout_scale, dropout_threshold
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than

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
OF_THE_KERNELS = "(no_worse and (ragged or one) and (64 or 96)) or exactly or any_head or level"


@pytest.fixture
def poisoned(poisoned_empty):
    """What the kernels allocate and do not write is NaN as well."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def cumulative(lengths):
    return F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0), (1, 0)).to(torch.int32)


def make(lengths, heads, head_dim, dtype):
    # large scores: a wrong scale or a lost maximum shows
    return [(2 * torch.randn(sum(lengths), heads, head_dim)).to(dtype) for _ in range(4)]


def attention_with(dropout_p, lengths):
    cu_seqlens, longest = cumulative(lengths), max(lengths, default=0)

    def function(q, k, v):
        return varlen_attention(
            q, k, v, cu_seqlens, longest, dropout_p=dropout_p, dropout_seed=SEED, dropout_site=SITE
        )

    return function


def run(function, qkv, dout, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in qkv]
    out = function(*leaves)
    return out, *torch.autograd.grad(out, leaves, dout.to(dtype))


def rounding_floors(q, k, v, dout, truth, dtype):
    """What an implementation that keeps lse and out, and not the probabilities, must round.

    exp(S - lse) is off by eps * |S| in fp32, relatively; out is stored in `dtype`, so dS = P (dP -
    dout out) by eps * |dout| |out| absolutely, and by as much in fp32 again, where dP and dout out
    are summed in two orders. PyTorch's softmax stores P and has none of it (with one token its dq
    is exactly 0).
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
    with _common.use_backend("reference"):
        peer = run(function, qkv, dout, dtype)
        truth = run(function, qkv, dout, torch.float64)
    floors = rounding_floors(*qkv, dout, truth, dtype)
    names = ("out", "dq", "dk", "dv")
    for name, a, b, c, floor in zip(names, ours, peer, truth, floors, strict=True):
        assert a.dtype == dtype
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_no_worse_than_pytorch(lengths, head_dim, dtype, dropout_p, poisoned):
    check_no_worse_than_pytorch(lengths, 2, head_dim, dtype, dropout_p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [1, 4, 33, 80, 200])
def test_any_head_dim(head_dim, dtype, poisoned):
    check_no_worse_than_pytorch([7, 66, 1], 2, head_dim, dtype, 0.25)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[513, 2], [1024], [2048]], ids=str)
def test_long_sequences(lengths, dtype, dropout_p, poisoned):
    """Beyond 512 keys the softmax goes on with a running maximum; from 2,048 dq comes in parts."""
    check_no_worse_than_pytorch(lengths, 1, 32, dtype, dropout_p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8192_tokens(dtype):
    """Few queries get a gradient, so that the truth needs only their rows of scores."""
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


COMPOSITES = {"grouped": (grouped_fwd, grouped_bwd), "padded": (padded_fwd, padded_bwd)}


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("composite", COMPOSITES)
def test_composites_equal_the_reference(composite, lengths, dropout_p, poisoned_empty):
    """What runs without the extension, and the GPU's, which is device-agnostic: here on the CPU."""
    forward, backward = COMPOSITES[composite]
    *qkv, dout = make(lengths, 3, 32, torch.float64)
    with _common.use_backend("reference"):
        out, *gradients = run(attention_with(dropout_p, lengths), qkv, dout, torch.float64)
    threshold = 64 if dropout_p else 0
    last = (cumulative(lengths), max(lengths, default=0), 32**-0.5, SEED, threshold, SITE)
    got_out, lse = forward(*qkv, *last)
    torch.testing.assert_close(got_out, out.detach())
    for got, want in zip(backward(dout, *qkv, got_out, lse, *last), gradients, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout_p", [1 / 256, 0.1, 0.5, 250 / 256])
def test_the_mask_is_exactly_the_references(dropout_p, dtype):
    """Recovered from out (lanes of P M), dv, dq and dk, 64 keys or queries at a time.

    With q or k zero every probability is 1 / length. A v, dout, k or q that is the unit matrix at
    64 tokens then shows M, or dS = P (r M dP - delta), which is above 0 only where M keeps: with
    v and dout all ones dP is 64, and delta less than r 64 where anything in the row is dropped.
    """
    lengths, heads, head_dim = [150, 70], 2, 64
    threshold = dropout_threshold(dropout_p)
    zeros = torch.zeros(sum(lengths), heads, head_dim, dtype=dtype)
    function = attention_with(dropout_p, lengths)
    for sequence, length in enumerate(lengths):
        start = sum(lengths[:sequence])
        keep = attention_keep_mask(SEED, SITE, torch.tensor([sequence]), heads, length, threshold)
        keep = keep[0].transpose(0, 1)  # (query, heads, key)
        whole_rows = keep.all(-1, keepdim=True)  # where delta is r 64, and dS tells nothing
        own = slice(start, start + length)
        for first in range(0, length, head_dim):
            size = min(head_dim, length - first)
            part = slice(first, first + size)
            unit = zeros.clone()
            for i in range(size):
                unit[start + first + i, :, i] = 1
            ones = torch.ones_like(zeros)
            out, _, _, dv = run(function, (zeros, zeros, unit), unit, dtype)
            assert torch.equal(out[own, :, :size] > 0, keep[..., part])
            assert torch.equal(dv[own, :, :size] > 0, keep[part].permute(2, 1, 0))
            _, dq, _, _ = run(function, (zeros, unit, ones), ones, dtype)
            informative = ~whole_rows.expand_as(keep)
            assert torch.equal(
                (dq[own, :, :size] > 0)[informative[..., part]],
                keep[..., part][informative[..., part]],
            )
            _, _, dk, _ = run(function, (unit, zeros, ones), ones, dtype)
            informative = informative[part].permute(2, 1, 0)
            assert torch.equal(
                (dk[own, :, :size] > 0)[informative], keep[part].permute(2, 1, 0)[informative]
            )


def test_kept_values_are_scaled():
    q = torch.zeros(1, 1, 32)
    out = attention_with(0.1, [1])(q, q, q + 1)
    kept = attention_keep_mask(SEED, SITE, torch.tensor([0]), 1, 1, 26).item()
    assert_bitwise_equal(out, (q + 1) * kept * dropout_scale(26))


def test_mask_belongs_to_the_sequence_not_to_the_packing():
    """A sequence's dropout depends on its number, not on where its tokens lie."""
    q, k, v, _ = make([40], 2, 32, torch.float32)
    alone = attention_with(0.5, [40])(q, k, v)
    others = make([7], 2, 32, torch.float32)[:3]
    behind = attention_with(0.5, [40, 7])(
        *(torch.cat(pair) for pair in zip((q, k, v), others, strict=True))
    )
    assert_bitwise_equal(behind[:40].contiguous(), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype):
    lengths = [2100, 3, 700, 64]  # the first is split among tasks both ways
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
    _, lse = torch.ops.spanbert_fast.varlen_attention_fwd(
        q, k, v, cumulative([600]), 600, 0.3, None, 0, 0
    )
    torch.testing.assert_close(lse, torch.logsumexp(0.3 * q[:, 0] @ k[:, 0].T, -1)[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_shows_and_does_not_stay(dtype):
    """A NaN reaches what it must, and no later call through memory that is used again."""
    *qkv, dout = make([70, 30], 1, 64, dtype)
    function = attention_with(0.0, [70, 30])
    clean = run(function, qkv, dout, dtype)
    for spoilt_tensor in range(3):
        spoilt = [t.clone() for t in qkv]
        spoilt[spoilt_tensor][5, 0, 3] = float("nan")
        # In fp64: PyTorch's bf16 products on a matrix unit give a row's NaN to the row beside it.
        with _common.use_backend("reference"):
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
    assert all(g.isfinite().all() for g in torch.autograd.grad(out, (q, k, v), dout))


@pytest.mark.skipif(_C is None, reason="needs the extension")
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set(capability):
    """PyTorch and the kernels are held to a level."""
    chosen = f"({OF_THE_KERNELS} or bits) and not every"
    files, level = [Path(__file__).name], CAPABILITIES[capability]
    run_at_level(level, files, chosen, at_least=40, ATEN_CPU_CAPABILITY=capability)


@pytest.mark.skipif(
    _C is None or "avx512_bf16" not in Path("/proc/cpuinfo").read_text(),
    reason="the kernels with tile instructions have AVX-512 and bfloat16 ones, too",
)
def test_matrix_unit(tmp_path):
    """The kernels with tile instructions; on a CPU without them, each one is carried out by
    matrix_unit.cpp when the CPU refuses it."""
    library = tmp_path / "matrix_unit.so"
    command = [os.environ.get("CXX", "c++"), "-O3", "-Wall", "-Werror", "-shared", "-fPIC"]
    source = Path(__file__).with_name("matrix_unit.cpp")
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    # the library takes the signal that faulthandler would take
    options = ("-p", "no:faulthandler")
    environment = {"LD_PRELOAD": str(library), "SPANBERT_FAST_ASSUME_AMX": "1"}
    chosen = f"({OF_THE_KERNELS}) and not every"
    run_at_level("amx", [Path(__file__).name], chosen, *options, at_least=40, **environment)


@pytest.mark.skipif(_C is None or sys.platform != "linux", reason="needs the extension, on Linux")
def test_built_with_threads():
    assert _C.build_info()["openmp"]


@pytest.mark.skipif(_C is None, reason="needs the extension")
def test_level_is_what_the_environment_allows():
    order = ["baseline", "avx2", "avx512", "avx512_bf16", "amx"]
    capability = os.environ.get("ATEN_CPU_CAPABILITY", "")
    assert order.index(_C.isa_level()) <= order.index(CAPABILITIES.get(capability, order[-1]))
    if os.environ.get("SPANBERT_FAST_ASSUME_AMX") == "1":
        assert _C.isa_level() == "amx"


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
    for site in (-1, 65536):  # 16 bits of the counter: another one would give a lower one's mask
        with pytest.raises(ValueError, match=rf"dropout_site must be in \[0, 65536\), got {site}"):
            varlen_attention(
                q, k, v, cu_seqlens, 6, dropout_p=0.1, dropout_seed=SEED, dropout_site=site
            )


@pytest.mark.skipif(_C is None, reason="needs the extension")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_op_runs_the_extension(dtype):
    """Bit for bit: PyTorch's own operators round elsewhere."""
    *qkv, dout = make([40, 9], 2, 64, dtype)
    last = (cumulative([40, 9]), 40, 0.125, SEED, 26, SITE)
    ops = torch.ops.spanbert_fast
    out, lse = ops.varlen_attention_fwd(*qkv, *last)
    assert_bitwise_equal(_C.varlen_attention_fwd(*qkv, *last)[0], out)
    assert not torch.equal(grouped_fwd(*qkv, *last)[1], lse)
    got = ops.varlen_attention_bwd(dout, *qkv, out, lse, *last)
    for a, b in zip(_C.varlen_attention_bwd(dout, *qkv, out, lse, *last), got, strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.skipif(_C is None, reason="needs the extension")
def test_the_extension_checks_what_it_gets():
    q, k, v, _ = make([6], 1, 32, torch.float32)
    last = (cumulative([6]), 6, 1.0, None, 0, 0)
    message = "q must be bfloat16, float16 or float32, got Double"
    with pytest.raises(TypeError, match=message):
        _C.varlen_attention_fwd(q.double(), k, v, *last)
    with pytest.raises(ValueError, match=r"k must have shape \[6, 1, 32\], got \[5, 1, 32\]"):
        _C.varlen_attention_fwd(q, k[:5], v, *last)
