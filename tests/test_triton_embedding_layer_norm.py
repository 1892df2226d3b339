"""The Triton kernels of embedding_layer_norm against fp64, with the reference's dropout masks."""

import pytest
import torch

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from torch.nn import functional as F  # noqa: E402

from spanbert_fast.kernels import column_sums  # noqa: E402
from spanbert_fast.kernels.embedding_layer_norm import (  # noqa: E402
    embedding_layer_norm_bwd,
    embedding_layer_norm_fwd,
)
from spanbert_fast.ops.embedding_layer_norm import EmbeddingInputs  # noqa: E402
from spanbert_fast.reference.dropout import Dropout, hidden_keep_mask  # noqa: E402
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than  # noqa: E402

SEED = torch.tensor(2**62 + 12_345, device=DEVICE)
NAMES = ("y", "drows", "dposition", "dtoken_type", "dweight", "dbias")


def make(tokens, hidden, dtype, words=30):
    shapes = ((words, hidden), (20, hidden), (2, hidden), (hidden,), (hidden,))
    tables = [torch.randn(shape).to(DEVICE, dtype) for shape in shapes]
    ids = [torch.randint(n, (tokens,), device=DEVICE) for n in (words, 20, 2)]
    return ids, tables


def ours(dy, ids, tables, *, embeds=None, threshold=0, padding_idx=-1, out_dtype=None):
    word, position, token_type, weight, bias = tables
    inputs = EmbeddingInputs(
        word if embeds is None else embeds, ids[0] if embeds is None else None,
        position, ids[1], token_type, ids[2], weight, bias,
        SEED if threshold else None, threshold, 7, padding_idx, 1e-12, out_dtype or word.dtype,
    )  # fmt: skip
    y, *statistics = embedding_layer_norm_fwd(inputs)
    return y, *embedding_layer_norm_bwd(dy, inputs, *statistics)


def peer(dy, ids, tables, *, embeds=None, threshold=0, padding_idx=None, out_dtype=None):
    word, position, token_type, weight, bias = (t.detach().requires_grad_() for t in tables)
    rows = word if embeds is None else embeds.detach().requires_grad_()
    z = F.embedding(ids[0], word, padding_idx=padding_idx) if embeds is None else rows
    z = z + F.embedding(ids[1], position) + F.embedding(ids[2], token_type)
    wide = out_dtype or z.dtype
    y = F.layer_norm(z.to(wide), (z.shape[1],), weight.to(wide), bias.to(wide), 1e-12)
    if threshold:
        keep = hidden_keep_mask(Dropout(threshold / 256, SEED, 7), *z.shape, z.device)
        y = torch.where(keep, y * (256 / (256 - threshold)), 0)
    leaves = (rows, position, token_type, weight, bias)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def double(tensors):
    return [t.double() for t in tensors]


def check(got, like, truth):
    for name, a, b, c in zip(NAMES, got, like, truth, strict=True):
        assert a.dtype == b.dtype, name
        # The peer's sums may be exact by luck: a few units of the largest value.
        largest = max(1, c.abs().max().item()) if c.numel() else 1
        assert_no_worse_than(a, b, c, floor=4 * torch.finfo(a.dtype).eps * largest, name=name)


@pytest.mark.parametrize("threshold", [0, 26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 64), (23, 100), (9, 768), (40, 3)])
def test_no_worse_than_pytorch(shape, dtype, threshold, poisoned_empty):
    ids, tables = make(*shape, dtype)
    dy = torch.randn(shape).to(DEVICE, dtype)
    got = ours(dy, ids, tables, threshold=threshold)
    like = peer(dy, ids, tables, threshold=threshold)
    check(got, like, peer(dy.double(), ids, double(tables), threshold=threshold))


def test_more_tokens_than_parts(monkeypatch, poisoned_empty):
    """Each program takes several tokens, the last one fewer."""
    monkeypatch.setattr(column_sums, "_MAX_PARTS", 4)
    ids, tables = make(18, 40, torch.float32)
    dy = torch.randn(18, 40, device=DEVICE)
    got = ours(dy, ids, tables, threshold=26)
    like = peer(dy, ids, tables, threshold=26)
    check(got, like, peer(dy.double(), ids, double(tables), threshold=26))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_embeds_and_an_fp32_result(dtype, poisoned_empty):
    ids, tables = make(13, 100, dtype)
    embeds = torch.randn(13, 100).to(DEVICE, dtype)
    dy = torch.randn(13, 100, device=DEVICE)
    options = {"threshold": 26, "out_dtype": torch.float32}
    got = ours(dy, ids, tables, embeds=embeds, **options)
    like = peer(dy, ids, tables, embeds=embeds, **options)
    truth = peer(dy.double(), ids, double(tables), embeds=embeds.double(), threshold=26)
    check(got, like, truth)


@pytest.mark.parametrize("hidden", [768, 300, 256])
def test_the_mask_is_the_reference_s(hidden):
    ids, tables = make(6, hidden, torch.float32)
    dy = torch.ones(6, hidden, device=DEVICE)
    y, *_ = ours(dy, ids, tables, threshold=100)
    keep = hidden_keep_mask(Dropout(100 / 256, SEED, 7), 6, hidden, y.device)
    assert torch.equal(y != 0, keep)


def test_padding_idx_gets_no_gradient_and_unused_rows_get_zero():
    ids, tables = make(50, 16, torch.float32, words=90)
    ids[0][::3] = 4
    dy = torch.randn(50, 16, device=DEVICE)
    _, dword, *_ = ours(dy, ids, tables, padding_idx=4)
    used = torch.zeros(90, dtype=torch.bool, device=DEVICE)
    used[ids[0]] = True
    used[4] = False
    assert torch.equal(dword.any(1), used)


def test_an_id_out_of_range_gives_nan_in_its_row():
    for which in range(3):
        ids, tables = make(4, 12, torch.float32)
        ids[which][1], ids[which][2] = -1, 1000
        y, *gradients = ours(torch.ones(4, 12, device=DEVICE), ids, tables)
        assert torch.isfinite(y).all(1).tolist() == [True, False, False, True]
        assert [g.shape for g in gradients] == [t.shape for t in tables]


def test_same_bits_with_strided_inputs():
    ids, tables = make(9, 16, torch.float32)
    dy = torch.randn(16, 9, device=DEVICE).t()
    strided = [t.t().contiguous().t() if t.dim() == 2 else t for t in tables]
    for a, b in zip(ours(dy, ids, strided), ours(dy.contiguous(), ids, tables), strict=True):
        assert_bitwise_equal(a, b)
