"""The composite of varlen_attention, of PyTorch operators, equals the reference, also in
autocast."""

import pytest
import torch

from spanbert_fast import use_backend
from spanbert_fast.ops import _attention_composite
from spanbert_fast.ops._attention_composite import (
    AttentionInputs,
    grouped_bwd,
    grouped_fwd,
    padded_bwd,
    padded_fwd,
)
from spanbert_fast.ops._register import KERNELS
from spanbert_fast.testing import assert_bitwise_equal
from varlen_attention_cases import LENGTHS, SEED, SITE, attention_with, cumulative, make, run

COMPOSITES = {"grouped": (grouped_fwd, grouped_bwd), "padded": (padded_fwd, padded_bwd)}


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("composite", COMPOSITES)
def test_composites_equal_the_reference(composite, lengths, dropout_p, poisoned_empty):
    """Both composites run on the CPU here: the one without the extension, and the GPU's."""
    forward, backward = COMPOSITES[composite]
    *qkv, dout = make(lengths, 3, 32, torch.float64)
    with use_backend("reference"):
        out, *gradients = run(attention_with(dropout_p, lengths), qkv, dout, torch.float64)
    flat = (SEED, 64 if dropout_p else 0, SITE)
    inputs = AttentionInputs(*qkv, cumulative(lengths), max(lengths, default=0), 32**-0.5, *flat)
    got_out, lse = forward(inputs)
    torch.testing.assert_close(got_out, out.detach())
    for got, want in zip(backward(dout, inputs, got_out, lse), gradients, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("composite", COMPOSITES)
def test_autocast_changes_no_bit(composite, dtype, monkeypatch):
    """Scores are sums in fp32. Autocast would round them to bf16: by 0.06 at a score of 10."""
    for name, function in zip(("grouped_fwd", "grouped_bwd"), COMPOSITES[composite], strict=True):
        monkeypatch.setattr(_attention_composite, name, function)  # the one that runs on the CPU
    forward, backward = (KERNELS[f"varlen_attention_{way}"].composite for way in ("fwd", "bwd"))
    *qkv, dout = make([9, 1, 17], 2, 32, dtype)
    inputs = AttentionInputs(*qkv, cumulative([9, 1, 17]), 17, 32**-0.5, SEED, 26, SITE)

    def run():
        out, lse = forward(*inputs)
        return out, lse, *backward(dout, *inputs, out, lse)

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        found = run()
    for ours, theirs in zip(found, expected, strict=True):
        assert_bitwise_equal(ours, theirs)
