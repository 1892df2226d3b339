"""The dropout of varlen_attention is exactly that of contract C4."""

import pytest
import torch

from spanbert_fast.ops.dropout import Dropout
from spanbert_fast.reference.dropout import attention_keep_mask, dropout_scale
from spanbert_fast.testing import assert_bitwise_equal
from varlen_attention_cases import SEED, SITE, attention_with, make, run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout_p", [1 / 256, 0.1, 0.5, 250 / 256])
def test_the_mask_is_exactly_the_references(dropout_p, dtype):
    """The mask is recovered from out (lanes of P M), dv, dq and dk, 64 keys or queries at a time.

    If q or k is zero, every probability is 1 / length. If v, dout, k or q is the unit matrix at 64
    tokens, the result is M, or dS = P (r M dP - delta), which is above 0 only where M keeps: with
    v and dout all ones, dP is 64, and delta is below r 64 if anything in the row is dropped.
    """
    lengths, heads, head_dim = [150, 70], 2, 64
    dropout = Dropout(dropout_p, SEED, SITE)
    zeros = torch.zeros(sum(lengths), heads, head_dim, dtype=dtype)
    function = attention_with(dropout_p, lengths)
    for sequence, length in enumerate(lengths):
        start = sum(lengths[:sequence])
        keep = attention_keep_mask(dropout, torch.tensor([sequence]), heads, length)
        keep = keep[0].transpose(0, 1)  # (query, heads, key)
        whole_rows = keep.all(-1, keepdim=True)  # here delta is r 64, and dS says nothing
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
    kept = attention_keep_mask(Dropout(0.1, SEED, SITE), torch.tensor([0]), 1, 1).item()
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
