"""The layers of spanbert_fast.nn one by one: shapes, dropout, row subsets, checkpointing, names."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from spanbert_fast import use_backend
from spanbert_fast.nn import (
    DropoutAddLayerNorm,
    NormOptions,
    PackedSelfAttention,
    Packing,
    TransformerLayer,
)
from spanbert_fast.ops.dropout import DropoutPlan
from spanbert_fast.testing import assert_bitwise_equal

HIDDEN, HEADS, INNER = 32, 4, 64
LENGTHS = [13, 1, 20, 7]
PLAN = DropoutPlan(torch.tensor(987654321))
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def cumulative(lengths):
    return F.pad(torch.tensor(lengths).long().cumsum(0), (1, 0)).to(torch.int32)


def make_layer(attention_dropout=0.0, dropout=0.0, **options):
    norm = NormOptions(dropout)
    return TransformerLayer(
        HIDDEN, HEADS, INNER, attention_dropout=attention_dropout, norm=norm, **options
    )


def make_packing(lengths):
    return Packing.of_packed(cumulative(lengths), max(lengths, default=0), sum(lengths))


def draw_large(module, std=0.3):
    """At BERT's own 0.02 a wrong softmax scale would move the output by 2e-5 only."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module


@pytest.mark.parametrize("lengths", [[], [1], [0, 5, 0], [1, 1, 1]])
def test_edge_lengths(lengths):
    layer = draw_large(make_layer(0.1, 0.1).double())
    x = torch.randn(sum(lengths), HIDDEN, dtype=torch.float64, requires_grad=True)
    y = layer(x, make_packing(lengths), plan=PLAN)
    assert_bitwise_equal(layer(x, cu_seqlens=cumulative(lengths), plan=PLAN), y)
    assert y.shape == x.shape
    y.sum().backward()
    copy = x.detach().clone().requires_grad_()
    with use_backend("reference"):
        expected = layer(copy, make_packing(lengths), plan=PLAN)
        expected.sum().backward()
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(x.grad, copy.grad, **CLOSE)
    assert x.grad.any(1).all(), "every row has a part in its sequence's outputs"
    seqlen = max(lengths, default=0)
    padded = torch.randn(len(lengths), seqlen, HIDDEN, dtype=torch.float64)
    mask = torch.arange(seqlen) < torch.tensor(lengths).view(-1, 1)
    assert layer(padded, attention_mask=mask).shape == padded.shape


def test_some_rows_are_what_all_rows_have_with_dropout_too():
    layer = draw_large(make_layer(0.2, 0.3, layer_index=3).double())
    x = torch.randn(sum(LENGTHS), HIDDEN, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([40, 0, 13, 13, 7])
    full = layer(x, make_packing(LENGTHS), plan=PLAN)
    some = layer(x, make_packing(LENGTHS), rows=rows, plan=PLAN)
    torch.testing.assert_close(some, full[rows], **CLOSE)
    dy = torch.randn_like(some)
    leaves = [x, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(some, leaves, dy), torch.autograd.grad(full[rows], leaves, dy), **CLOSE
    )


def test_dropout_is_the_seeds_and_differs_between_places():
    layer = make_layer(0.5, 0.5)
    x = torch.randn(sum(LENGTHS), HIDDEN)
    arguments = (x, make_packing(LENGTHS))
    assert_bitwise_equal(layer(*arguments, plan=PLAN), layer(*arguments, plan=PLAN))
    assert not torch.equal(layer(*arguments), layer(*arguments))
    torch.manual_seed(3)
    first = layer(*arguments)
    torch.manual_seed(3)
    assert_bitwise_equal(layer(*arguments), first)

    sites = []  # which site each mask of two layers is asked for
    for index in range(2):
        layer.layer_index = index
        for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm):
            norm.register_forward_pre_hook(
                lambda module, args, kwargs: sites.append(kwargs["dropout"].site), with_kwargs=True
            )
        layer(*arguments)
        for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm):
            norm._forward_pre_hooks.clear()
    assert sites == [0, 1, 2, 3]

    layer.eval()
    assert_bitwise_equal(layer(*arguments), layer(*arguments))
    assert_bitwise_equal(layer(*arguments), layer(*arguments, plan=PLAN))


def test_dropout_reaches_attention_and_both_outputs():
    x = torch.randn(sum(LENGTHS), HIDDEN)
    calm, packing = draw_large(make_layer()), make_packing(LENGTHS)
    expected = calm(x, packing, plan=PLAN)
    for attention, after_attention, after_inner in ((0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)):
        layer = TransformerLayer(HIDDEN, HEADS, INNER)
        layer.load_state_dict(calm.state_dict())
        layer.attention.self.attention_dropout = attention
        layer.attention.output.LayerNorm.options = NormOptions(after_attention)
        layer.output.LayerNorm.options = NormOptions(after_inner)
        assert not torch.allclose(layer(x, packing, plan=PLAN), expected)
        layer.eval()
        assert_bitwise_equal(layer(x, packing), expected)


@pytest.mark.parametrize("plan", [PLAN, None], ids=["given plan", "drawn plan"])
def test_checkpointing_gives_the_same_gradients(plan):
    layer = draw_large(make_layer(0.2, 0.3))
    x = torch.randn(sum(LENGTHS), HIDDEN, requires_grad=True)
    arguments = (x, make_packing(LENGTHS))
    results = []
    for run in (layer, lambda *a, **k: checkpoint(layer, *a, use_reentrant=False, **k)):
        torch.manual_seed(1)
        y = run(*arguments, plan=plan)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    for a, b in zip(*results, strict=True):
        assert_bitwise_equal(a, b)


def test_attention_equals_multi_head_attention():
    ours = draw_large(PackedSelfAttention(HIDDEN, HEADS, 0.0).double())
    plain = nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True, dtype=torch.float64)
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        plain.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        plain.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
        plain.out_proj.weight.copy_(torch.eye(HIDDEN))
        plain.out_proj.bias.zero_()
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])  # tokens anywhere
    x = torch.randn(2, 5, HIDDEN, dtype=torch.float64)
    expected, _ = plain(x, x, x, key_padding_mask=mask == 0)
    got = ours(x, attention_mask=mask)
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], **CLOSE)
    assert not got[mask == 0].any()


@pytest.mark.parametrize("shape", [(HIDDEN,), (5, HIDDEN), (2, 3, HIDDEN), (0, HIDDEN)])
def test_dropout_add_layer_norm_of_any_shape(shape):
    norm = draw_large(DropoutAddLayerNorm(HIDDEN, NormOptions(0.5))).eval()
    x, residual, bias = torch.randn(shape), torch.randn(shape), torch.randn(HIDDEN)
    expected = F.layer_norm(x + bias + residual, (HIDDEN,), norm.weight, norm.bias, 1e-12)
    torch.testing.assert_close(norm(x, residual, bias), expected)
    torch.testing.assert_close(norm(x, residual), norm(x, residual, torch.zeros(HIDDEN)))
    norm.train()
    assert norm(x, residual).shape == shape


def test_a_linear_that_is_not_plain_is_called_as_it_is():
    """Adapters, hooks and replaced forwards take effect, though the bias could be fused without."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x, packing = torch.randn(sum(LENGTHS), HIDDEN), make_packing(LENGTHS)
    layer = draw_large(make_layer())
    plain = layer(x, packing)
    calls = []
    hook = layer.intermediate.dense.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(layer(x, packing), plain)
    hook.remove()
    assert calls == [1]

    dense = layer.output.dense
    forward = dense.forward
    dense.forward = lambda value: 2 * forward(value)
    replaced = layer(x, packing)
    del dense.forward
    layer.output.dense = Doubled(INNER, HIDDEN)
    layer.output.dense.load_state_dict(dense.state_dict())
    adapted = layer(x, packing)
    layer.output.dense = dense
    with torch.no_grad():
        dense.weight *= 2
        dense.bias *= 2
    expected = layer(x, packing)
    assert not torch.allclose(expected, plain, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(replaced, expected)
    torch.testing.assert_close(adapted, expected)


def test_parameters_names_reset_and_repr():
    layer = draw_large(make_layer(0.2, 0.3, layer_index=4))
    config = BertConfig(hidden_size=HIDDEN, num_attention_heads=HEADS, intermediate_size=INNER)
    assert layer.state_dict().keys() == BertLayer(config).state_dict().keys()
    layer.reset_parameters()
    fresh = TransformerLayer(HIDDEN, HEADS, INNER), PackedSelfAttention(HIDDEN, HEADS)
    for module in (layer, *fresh):
        for name, parameter in module.named_parameters():
            if "LayerNorm" in name:
                assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
            elif name.endswith("bias"):
                assert not parameter.any(), name
            else:
                assert 0.017 < parameter.std() < 0.023, name
    text = repr(layer)
    for part in ("layer_index=4", "num_attention_heads=4, attention_dropout=0.2", "dropout=0.3"):
        assert part in text


def test_bad_input():
    layer = TransformerLayer(HIDDEN, HEADS, INNER)
    packed, padded = torch.randn(5, HIDDEN), torch.randn(2, 3, HIDDEN)
    with pytest.raises(ValueError, match="hidden_size must be a multiple .* = 3, got 32"):
        PackedSelfAttention(HIDDEN, 3)
    with pytest.raises(ValueError, match="cu_seqlens must be given with packed input, got None"):
        layer(packed)
    with pytest.raises(ValueError, match="cu_seqlens must end at 5, got 4"):
        layer(packed, cu_seqlens=cumulative([4]))
    with pytest.raises(ValueError, match="max_seqlen must be at least the longest length 5, got 3"):
        layer(packed, cu_seqlens=cumulative([5]), max_seqlen=3)
    with pytest.raises(ValueError, match="attention_mask must be None with packed hidden_states"):
        layer(packed, cu_seqlens=cumulative([5]), attention_mask=torch.ones(1, 5))
    with pytest.raises(ValueError, match="cu_seqlens must be None with padded hidden_states"):
        layer(padded, cu_seqlens=cumulative([3, 3]))
    with pytest.raises(ValueError, match=r"attention_mask must have .* = \(2, 3\), got \(2, 4\)"):
        layer(padded, attention_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="rows must be None with padded hidden_states"):
        layer(padded, rows=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"rows must be in \[0, 5\), got -1"):
        layer(packed, cu_seqlens=cumulative([5]), rows=torch.tensor([0, -1]))
    with pytest.raises(ValueError, match=r"hidden_states must have shape .*, got \(32,\)"):
        layer(packed[0])
