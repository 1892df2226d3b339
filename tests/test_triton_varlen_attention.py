"""The Triton kernels of varlen_attention against fp64, with the reference's dropout masks."""

import pytest
import torch

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from torch.nn import functional as F  # noqa: E402

from spanbert_fast.kernels import varlen_attention_one_program  # noqa: E402
from spanbert_fast.kernels.attention_common import readable, sequence_order  # noqa: E402
from spanbert_fast.kernels.tile_config import Tile, forced_tile  # noqa: E402
from spanbert_fast.kernels.varlen_attention import (  # noqa: E402
    varlen_attention_bwd,
    varlen_attention_fwd,
)
from spanbert_fast.kernels.varlen_attention_one_program import fits_one_program  # noqa: E402
from spanbert_fast.ops._attention_composite import AttentionInputs  # noqa: E402
from spanbert_fast.reference.dropout import Dropout, attention_keep_mask  # noqa: E402
from spanbert_fast.reference.varlen_attention import varlen_attention  # noqa: E402
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than  # noqa: E402

SEED = torch.tensor(-7_123_456_789_012_345, device=DEVICE)
SITE = 5
LENGTHS = {
    "one token": [1],
    "one tile": [3, 1, 0, 64, 17],
    "several tiles": [3, 0, 131],
    "empty sequences": [0, 0],
    "no sequence": [],
}
NAMES = ("out", "dq", "dk", "dv")


def cumulative(lengths):
    sums = F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0), (1, 0))
    return sums.to(DEVICE, torch.int32)


def make(lengths, heads, head_dim, dtype):
    # large scores reveal a wrong scale or a missing maximum
    shape = (sum(lengths), heads, head_dim)
    return [(2 * torch.randn(shape)).to(DEVICE, dtype) for _ in range(4)]


def ours(dout, q, k, v, cu_seqlens, max_seqlen, *, scale=None, threshold=0):
    scale = q.shape[2] ** -0.5 if scale is None else scale
    seed = SEED if threshold else None
    inputs = AttentionInputs(q, k, v, cu_seqlens, max_seqlen, scale, seed, threshold, SITE)
    out, lse = varlen_attention_fwd(inputs)
    return out, *varlen_attention_bwd(dout, inputs, out, lse)


def peer(dout, q, k, v, cu_seqlens, max_seqlen, *, scale=None, threshold=0):
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    dropout = Dropout(threshold / 256, SEED, SITE)
    out = varlen_attention(*leaves, cu_seqlens, max_seqlen, softmax_scale=scale, dropout=dropout)
    return out.detach(), *torch.autograd.grad(out, leaves, dout)


def check(lengths, heads, head_dim, dtype, *, max_seqlen=None, **options):
    *qkv, dout = make(lengths, heads, head_dim, dtype)
    batch = cumulative(lengths), max_seqlen or max(lengths, default=0)
    got = ours(dout, *qkv, *batch, **options)
    like = peer(dout, *qkv, *batch, **options)
    truth = peer(dout.double(), *(t.double() for t in qkv), *batch, **options)
    eps, single = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    for name, a, b, c in zip(NAMES, got, like, truth, strict=True):
        assert a.dtype == dtype and a.shape == c.shape
        # Ours keeps lse and out where PyTorch keeps P, so scores of up to 128 are rounded once more
        # in fp32, and the interpreter truncates to bf16. dS is a difference of terms as large as
        # dP, |dout| |v|, and the rounding of `out` adds to it.
        largest = c.abs().max().item() if c.numel() else 0.0
        floor = (eps + 128 * single) * largest
        if name in ("dq", "dk") and c.numel():
            norms = [t.double().norm(dim=-1).max().item() for t in (dout, qkv[2])]
            factor = qkv[1 if name == "dq" else 0].abs().max().item()
            floor += (eps + single) * norms[0] * norms[1] * factor * head_dim**-0.5
        assert_no_worse_than(a, b, c, floor=floor, name=name)


@pytest.mark.parametrize("threshold", [0, 26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_no_worse_than_pytorch(lengths, dtype, threshold, poisoned_empty):
    check(lengths, 2 if sum(lengths) < 100 else 1, 32, dtype, threshold=threshold)


@pytest.fixture
def one_program(monkeypatch):
    """Short sequences get one program each, however many there are."""
    monkeypatch.setattr(varlen_attention_one_program, "ENOUGH_PROGRAMS", 1)


@pytest.mark.parametrize("threshold", [0, 26])
@pytest.mark.parametrize("lengths", [[3, 0, 131], [65, 1, 70], [150]], ids=str)
def test_one_program_for_a_head(lengths, threshold, one_program, poisoned_empty):
    check(lengths, 1, 32, torch.bfloat16, threshold=threshold)
    check(lengths, 2, 33, torch.bfloat16, threshold=threshold, scale=-0.25)


def test_one_program_has_the_tiled_kernels_masks(monkeypatch):
    """Where they differ, both round only once, so a wrong mask shows."""
    lengths, threshold = [70, 9, 140], 128
    *qkv, dout = make(lengths, 2, 32, torch.float32)
    batch = cumulative(lengths), max(lengths)
    tiled = ours(dout, *qkv, *batch, threshold=threshold)
    monkeypatch.setattr(varlen_attention_one_program, "ENOUGH_PROGRAMS", 1)
    once = ours(dout, *qkv, *batch, threshold=threshold)
    assert_bitwise_equal(ours(dout, *qkv, *batch, threshold=threshold)[1], once[1])
    for a, b in zip(once, tiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_one_program_never_sees_another_sequence(one_program):
    test_a_sequence_never_sees_another([9, 70, 20])


@pytest.mark.parametrize("head_dim", [1, 33, 64, 96, 128])
def test_head_dims(head_dim, poisoned_empty):
    check([20, 5], 1, head_dim, torch.bfloat16, threshold=77)
    check([70], 1, head_dim, torch.float32)


@pytest.mark.parametrize("length", [40, 70])
def test_max_seqlen_may_be_an_upper_bound(length, poisoned_empty):
    check([length, 9], 1, 32, torch.float32, max_seqlen=200)


@pytest.mark.parametrize("scale", [0.0, -0.25, 0.7])
def test_any_scale(scale):
    check([30, 70], 1, 32, torch.float32, scale=scale)


def test_8192_tokens():
    """With large tiles, the interpreter runs fewer programs."""
    tile = Tile({"BLOCK_M": 1024, "BLOCK_N": 1024}, 4)
    if DEVICE == "cuda":
        return check([8192, 3], 1, 64, torch.bfloat16, threshold=26)
    with (
        forced_tile("varlen_attention_fwd", tile),
        forced_tile("attention_dk_dv", tile),
        forced_tile("attention_dq", tile),
    ):
        check([8192, 3], 1, 16, torch.float32)


@pytest.mark.parametrize("length, threshold", [(64, 1), (64, 26), (64, 128), (64, 255), (128, 26)])
def test_masks_are_the_references(length, threshold):
    """With equal probabilities, `out` reveals the forward's mask; dv and dq the backward's."""
    heads, lengths = 2, [9, length]
    total, sequence = sum(lengths), slice(9, None)
    q = torch.zeros(total, heads, length, device=DEVICE)
    one_hot = torch.zeros_like(q)
    one_hot[sequence] = torch.eye(length, device=DEVICE)[:, None]
    ones = torch.ones_like(q)
    batch = cumulative(lengths), length
    dropout = Dropout(threshold / 256, SEED, SITE)
    # (heads, queries, keys) of sequence 1
    keep = attention_keep_mask(dropout, torch.tensor([1], device=DEVICE), heads, length)[0]
    assert 0 < keep.sum() < keep.numel()

    out, _, _, dv = ours(one_hot, q, one_hot, one_hot, *batch, threshold=threshold)
    assert_bitwise_equal(out[sequence].transpose(0, 1) != 0, keep)
    assert_bitwise_equal(dv[sequence].permute(1, 2, 0) != 0, keep)
    # dS = P (M dP - delta) is negative exactly where M is 0, and delta is not
    _, dq, _, _ = ours(ones, q, one_hot, ones, *batch, threshold=threshold)
    some = keep.any(-1, keepdim=True)
    assert_bitwise_equal((dq[sequence].transpose(0, 1) < 0) & some, ~keep & some)


@pytest.mark.parametrize("lengths", [[20, 40], [70, 7]], ids=str)
def test_views_of_one_tensor_are_read_in_place(lengths):
    qkv = torch.randn(sum(lengths), 3, 2, 32, device=DEVICE)
    dout = torch.randn(sum(lengths), 2, 32, device=DEVICE)
    views = qkv.unbind(1)
    batch = cumulative(lengths), max(lengths)
    inputs = AttentionInputs(*views, *batch, 1.0, None, 0, 0)
    for ready, view in zip(readable(inputs)[:3], views, strict=True):
        assert ready.data_ptr() == view.data_ptr() and ready.stride() == view.stride()
    expected = ours(dout, *(t.contiguous() for t in views), *batch, threshold=26)
    for a, b in zip(ours(dout, *views, *batch, threshold=26), expected, strict=True):
        assert_bitwise_equal(a, b)
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in views]
    for a, b in zip(ours(dout, *turned, *batch, threshold=26), expected, strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.parametrize("lengths", [[5, 30, 8], [9, 70, 20]], ids=str)
def test_a_sequence_never_sees_another(lengths):
    *qkv, dout = make(lengths, 1, 32, torch.float32)
    batch = cumulative(lengths), max(lengths)
    middle = slice(lengths[0], lengths[0] + lengths[1])
    clean = ours(dout, *qkv, *batch, threshold=26)
    for tensor in (*qkv, dout):
        tensor[: middle.start] = torch.nan
        tensor[middle.stop :] = torch.inf
    for a, b in zip(ours(dout, *qkv, *batch, threshold=26), clean, strict=True):
        assert_bitwise_equal(a[middle], b[middle])


def test_sequences_without_tokens_are_not_counted_as_programs():
    """Batches of fixed shape contain them; the number of real tokens decides."""
    few, enough = (torch.empty(n * 512, 16, 32, device=DEVICE).half() for n in (15, 16))
    assert [fits_one_program(q, 512) for q in (few, enough)] == [False, True]


def test_heads_may_lie_2_to_the_31_elements_apart():
    """Views of (heads, total, head_dim) have such strides; the memory between is never touched."""
    apart, lengths = 2**30, [70, 9]
    *qkv, dout = make(lengths, 3, 16, torch.float16)
    storage = torch.empty(2 * apart + sum(lengths) * 16, dtype=torch.float16, device=DEVICE)
    far = storage.as_strided(qkv[0].shape, (16, apart, 1))
    batch = cumulative(lengths), max(lengths)
    for threshold in (0, 26):
        expected = ours(dout, *qkv, *batch, threshold=threshold)
        for place in range(3):
            far.copy_(qkv[place])
            views = [far if i == place else t for i, t in enumerate(qkv)]
            for a, b in zip(ours(dout, *views, *batch, threshold=threshold), expected, strict=True):
                assert_bitwise_equal(a, b)


@pytest.mark.parametrize("batch", [1, 3, 64, 150])
def test_longest_sequences_come_first(batch):
    lengths = torch.randint(0, 9, (batch,))
    order = sequence_order(cumulative(lengths.tolist()))
    expected = torch.sort(lengths, descending=True, stable=True).indices
    assert order.tolist() == expected.tolist()
