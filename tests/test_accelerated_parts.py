"""BERT's encoder, layer and attention under transformers' names, each alone."""

import inspect

import pytest
import torch
from transformers.models.bert import modeling_bert as stock

from accelerated_cases import (
    LENGTHS,
    config,
    four_dimensional,
    mask_of,
    padded_batch,
    trio,
)
from spanbert_fast.accelerated import bert, packed
from spanbert_fast.accelerated.bert import BertEncoder, BertLayer, BertModel, BertSelfAttention
from spanbert_fast.testing import assert_models_agree, gradients_of

PARTS = {
    "attention": (BertSelfAttention, stock.BertSelfAttention, ()),
    "layer": (BertLayer, stock.BertLayer, ()),
    "encoder": (BertEncoder, stock.BertEncoder, ()),
}


def first_tensor(output):
    return output if isinstance(output, torch.Tensor) else output[0]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["none", "additive", "boolean", "boolean row", "2-D"])
def test_part_equals_transformers(part, kind):
    ours_class, theirs_class, args = PARTS[part]
    ours, theirs, truth = trio(ours_class, theirs_class, *args)
    padding = mask_of(LENGTHS, 19)
    additive = four_dimensional(padding)
    boolean = padding.bool()[:, None, None, :]
    mask = {
        "none": None,
        "additive": additive,
        "boolean": boolean.expand(-1, -1, 19, -1),
        "boolean row": boolean,
        "2-D": padding,
    }[kind]
    real = torch.ones(4, 19, dtype=torch.bool) if mask is None else padding.bool()
    hidden, weight = torch.randn(4, 19, 64), torch.randn(4, 19, 64).double()

    def run(model):
        dtype = next(model.parameters()).dtype
        x = hidden.to(dtype, copy=True).requires_grad_()
        # transformers' eager code adds its mask
        given = mask if model is ours else (None if mask is None else additive)
        if given is not None and given.is_floating_point():
            given = given.to(dtype)
        output = first_tensor(model(x, given))
        model.zero_grad()
        (output * weight.to(dtype))[real].sum().backward()
        return {"output": output.detach()[real], "input": x.grad[real], **gradients_of(model)}

    assert_models_agree(run(ours), run(theirs), truth, run)


@pytest.mark.parametrize("part", PARTS)
def test_part_with_a_mask_of_more_than_padding(part):
    """Causal masks, biases and masks that differ by query run transformers' own code."""
    ours_class, theirs_class, args = PARTS[part]
    ours, theirs, _ = trio(ours_class, theirs_class, *args)
    hidden = torch.randn(2, 6, 64)
    causal = torch.full((2, 1, 6, 6), torch.finfo(torch.float32).min).triu(1)
    bias = torch.randn(2, 1, 1, 6)
    gentle = torch.where(mask_of((6, 4), 6).bool(), 0.0, -3.0)[:, None, None]
    for mask in (causal, bias, gentle, causal.expand(2, 2, 6, 6), bias.requires_grad_()):
        packed.warn_once.cache_clear()
        with pytest.warns(UserWarning, match="not one of padding"):
            got = first_tensor(ours(hidden, mask))
        expected = first_tensor(theirs(hidden, mask))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["BertSelfAttention", "BertLayer", "BertEncoder", "BertModel"])
def test_signatures_are_transformers_own(name):
    """Argument names are those of the installed transformers."""
    ours, theirs = getattr(bert, name), getattr(stock, name)
    assert issubclass(ours, theirs)
    assert inspect.signature(ours.forward) == inspect.signature(theirs.forward)
    given, expected = (list(inspect.signature(kind).parameters) for kind in (ours, theirs))
    assert given == expected


def test_arguments_of_other_versions_are_passed_on():
    """An argument unknown to this package reaches transformers' code, by name or position."""

    class Newer(stock.BertEmbeddings):
        def forward(self, *args, brand_new=None, **kwargs):
            self.got = brand_new
            return super().forward(*args, **kwargs)

    class Fast(bert.BertEmbeddings, Newer):
        pass

    embeddings = Fast(config())
    embeddings(torch.ones(1, 3, dtype=torch.long), brand_new=7)
    assert embeddings.got == 7
    names = [*inspect.signature(stock.BertLayer.forward).parameters][1:4]
    given = BertLayer(config()).arguments((1, None, 2), {"brand_new": 7})
    assert given == {names[0]: 1, names[1]: None, names[2]: 2, "brand_new": 7}


def test_other_activations_stay_right():
    ids, mask = padded_batch()
    ours, theirs, truth = trio(BertModel, stock.BertModel, hidden_act="relu")

    def run(model):
        return {"output": model(ids, attention_mask=mask)[0][mask.bool()].detach()}

    assert_models_agree(run(ours), run(theirs), truth, run)


def test_what_stands_in_a_modules_place_is_called():
    """Hooks and adapters on modules are called, even where an op could use their parameters."""
    ids, mask = padded_batch()
    ours, theirs, truth = trio(BertModel, stock.BertModel)
    for model in (ours, theirs, truth):
        layer = model.encoder.layer[1]
        layer.output.LayerNorm.register_forward_hook(lambda module, args, out: out * 1.5)
        layer.output.dense.register_forward_hook(lambda module, args, out: out + 0.25)
        layer.attention.output.dropout = torch.nn.Identity()
        layer.intermediate.dense.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
        words, places = model.embeddings.word_embeddings, model.embeddings.position_embeddings
        words.register_forward_hook(lambda module, args, out: out - 0.5)
        places.register_forward_hook(lambda module, args, out: out * 2)

    def run(model):
        return {"output": model(ids, attention_mask=mask)[0][mask.bool()].detach()}

    assert_models_agree(run(ours), run(theirs), truth, run)
