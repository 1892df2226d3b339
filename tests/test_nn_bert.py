"""nn.bert: transformers' modules under transformers' names, at a LARGE initialisation (C5)."""

import inspect
import pickle
import re
import warnings

import pytest
import torch
from transformers import BertConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bert import modeling_bert as stock

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models import SpanBertModel
from spanbert_fast.nn import bert, bert_parts
from spanbert_fast.nn.bert import BertEncoder, BertLayer, BertModel, BertSelfAttention
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 100,
    "max_position_embeddings": 40,
}
LENGTHS = (19, 1, 7, 18)


def config(**fields):
    return BertConfig(**{**SIZES, **fields}, attn_implementation="eager")


def large_init(model):
    """Every parameter normal with std 0.3; norm weights around 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1
    return model.eval()


def trio(ours_class, theirs_class, *args, **fields):
    """(ours, theirs, theirs in fp64) with the same large weights."""
    ours = large_init(ours_class(config(**fields), *args))
    theirs, truth = (theirs_class(config(**fields), *args).eval() for _ in range(2))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for model in (theirs, truth):
        model.load_state_dict(ours.state_dict())
    return ours, theirs, truth.double()


def mask_of(lengths, seqlen):
    return (torch.arange(seqlen) < torch.tensor(lengths)[:, None]).long()


def padded_batch():
    mask = mask_of(LENGTHS, 19)
    return torch.randint(1, 97, (4, 19)) * mask, mask


def floor_of(truth):
    """64 roundings of the largest element: the peer's error is a sum of some hundred roundings,
    and may come out small in one small tensor by luck."""
    return 64 * torch.finfo(torch.float32).eps * truth.abs().max().item()


def gradient_floor(parameters, name):
    """As `floor_of`. A key's bias has no gradient (softmax ignores it), nor have queries and keys
    in sequences of length 1: what comes out is the rounding of sums as large as those beside."""
    beside = name, name.replace("key.bias", "key.weight"), re.sub("query|key", "value", name)
    return max(floor_of(parameters[other].grad) for other in beside)


def assert_same_gradients(ours, theirs, truth):
    ours, theirs, truth = (dict(model.named_parameters()) for model in (ours, theirs, truth))
    for name, parameter in truth.items():
        if parameter.grad is None:
            assert ours[name].grad is None or not ours[name].grad.any(), name
            continue
        grads = ours[name].grad, theirs[name].grad, parameter.grad
        assert_no_worse_than(*grads, floor=gradient_floor(truth, name), name=name)


def widened(inputs):
    def is_real(value):
        return torch.is_tensor(value) and value.is_floating_point()

    return {k: v.double() if is_real(v) else v for k, v in inputs.items()}


# The model


def model_inputs(kind):
    ids, mask = padded_batch()
    inputs = {"input_ids": ids, "attention_mask": mask}
    if kind == "no mask":
        del inputs["attention_mask"]
        mask = torch.ones_like(mask)
    if kind == "full mask":
        inputs["attention_mask"] = mask = torch.ones(4, 19)
    if kind == "holes":
        mask[0, 3:9] = 0
    if kind == "everything":
        inputs["token_type_ids"] = torch.randint(0, 2, (4, 19))
        inputs["position_ids"] = torch.randint(0, 40, (1, 19))
        inputs["attention_mask"] = mask.bool()
        inputs["input_ids"] = ids.int()
    if kind == "embeddings":
        del inputs["input_ids"]
        inputs["inputs_embeds"] = torch.randn(4, 19, 64)
    if kind == "length 1":
        inputs, mask = {"input_ids": ids[:, :1]}, mask[:, :1]
    return inputs, mask.bool()


@pytest.mark.parametrize(
    "kind",
    ["padded", "no mask", "full mask", "holes", "everything", "embeddings", "length 1"],
)
def test_model_equals_transformers(kind):
    inputs, real = model_inputs(kind)
    weights = torch.randn(*real.shape, 64).double(), torch.randn(len(real), 64).double()
    models = trio(BertModel, stock.BertModel)
    outputs = []
    for model in models:
        given = widened(inputs) if model.dtype == torch.float64 else inputs
        output = model(**given, output_hidden_states=True)
        hidden, pooled = output.last_hidden_state, output.pooler_output
        loss = (hidden * weights[0].to(hidden.dtype))[real].sum()
        (loss + (pooled * weights[1].to(pooled.dtype)).sum()).backward()
        stages = [stage[real].detach() for stage in output.hidden_states]
        outputs.append((*stages, pooled.detach()))
        assert list(output.keys()) == ["last_hidden_state", "pooler_output", "hidden_states"]
    for ours, theirs, truth in zip(*outputs, strict=True):
        assert_no_worse_than(ours, theirs, truth, floor=floor_of(truth))
    assert_same_gradients(*models)
    output = models[0](**inputs, output_hidden_states=True)
    assert output.last_hidden_state is output.hidden_states[-1]
    assert not any(stage[~real].any() for stage in output.hidden_states)


def test_dropout_is_that_of_spanbert_model():
    """Same weights, same seed: the same masks, so the same bits, as the model built on the ops."""
    ids, mask = padded_batch()
    ours = large_init(BertModel(config())).train()
    other = SpanBertModel(SpanBertConfig(**SIZES)).train()
    other.load_state_dict(ours.state_dict())
    outputs = []
    for model in (ours, other):
        torch.manual_seed(5)
        output = model(ids, attention_mask=mask)
        output.last_hidden_state.sin().sum().backward()
        outputs.append(output)
    assert_bitwise_equal(outputs[0].last_hidden_state, outputs[1].last_hidden_state)
    assert_bitwise_equal(outputs[0].pooler_output, outputs[1].pooler_output)
    theirs = dict(other.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.grad is not None:
            # autograd adds up the branches of a residual in another order
            expected, floor = theirs[name].grad, gradient_floor(theirs, name)
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=floor)
    assert not torch.equal(ours(ids, attention_mask=mask)[0], outputs[0][0]), "dropout is on"


def test_dropout_modules_count_one_by_one():
    """model.eval() with nn.Dropout in training mode, as for Monte Carlo dropout."""
    ids, mask = padded_batch()
    model = large_init(BertModel(config()))
    still = model(ids, attention_mask=mask)[0]
    assert_bitwise_equal(model(ids, attention_mask=mask)[0], still)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.train()
    assert not torch.equal(model(ids, attention_mask=mask)[0], model(ids, attention_mask=mask)[0])
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    assert_bitwise_equal(model(ids, attention_mask=mask)[0], still)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    ids, mask = padded_batch()
    model = large_init(BertModel(config())).train()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        torch.manual_seed(1)
        hidden = model(ids, attention_mask=mask).last_hidden_state
        hidden.pow(2).sum().backward()
        grads = [p.grad.clone() for p in model.encoder.parameters()]
        results.append((hidden.detach(), *grads))
    for a, b in zip(*results, strict=True):
        assert_bitwise_equal(a, b)


def test_compiles():
    ids, mask = padded_batch()
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = large_init(BertModel(config(num_hidden_layers=1, **no_dropout))).train()
    compiled = torch.compile(model, backend="aot_eager")
    for inputs in ({"attention_mask": mask}, {"attention_mask": mask_of((3, 19, 2, 6), 19)}):
        expected, got = (run(ids, **inputs).last_hidden_state for run in (model, compiled))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        grads = [
            torch.autograd.grad(x.sin().sum(), list(model.encoder.parameters()))
            for x in (got, expected)
        ]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_bf16_autocast():
    ids, mask = padded_batch()
    ours, theirs, truth = trio(BertModel, stock.BertModel)
    expected = truth(ids, attention_mask=mask)[0][mask.bool()]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [m(ids, attention_mask=mask, output_hidden_states=True) for m in (ours, theirs)]
    # C5's factor on the mean error: transformers keeps the residuals in fp32, here they are bf16
    errors = [(o[0][mask.bool()].double() - expected).abs().mean().item() for o in outputs]
    assert errors[0] <= 2 * errors[1]
    for a, b in zip(outputs[0].to_tuple()[:2], outputs[1].to_tuple()[:2], strict=True):
        assert a.dtype == b.dtype
    assert {h.dtype for h in outputs[0].hidden_states} == {torch.float32}


# Calls that are not covered: transformers' own code, said once


def four_dimensional(mask):
    return create_bidirectional_mask(config(), torch.zeros(*mask.shape, 64), mask)


NOT_COVERED = {
    "output_attentions": ({"output_attentions": True}, "output_attentions needs"),
    "left padding": ({"attention_mask": mask_of(LENGTHS, 19).flip(1)}, "0 at the first position"),
    "empty sequence": ({"attention_mask": mask_of((19, 0, 7, 18), 19)}, "0 at the first position"),
    "4-D mask": ({"attention_mask": four_dimensional(mask_of(LENGTHS, 19))}, "4 dimensions"),
    "causal": (
        {"attention_mask": torch.full((4, 1, 19, 19), -1e30).triu(1)},
        "4 dimensions",
    ),
    "selected stages": ({"output_hidden_states": [0, -1]}, "selects stages"),
    "other argument": ({"is_causal": True}, "is_causal is given"),
}


@pytest.mark.parametrize("kind", NOT_COVERED)
def test_not_covered_runs_transformers_code(kind):
    inputs, reason = NOT_COVERED[kind]
    ids, mask = padded_batch()
    inputs = {"attention_mask": mask, **inputs}
    ours, theirs, truth = trio(BertModel, stock.BertModel)
    bert_parts.warn_once.cache_clear()
    with pytest.warns(UserWarning, match=reason):
        got = ours(ids, **inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(ids, **inputs)  # said once
        asked = ours(ids, **inputs, spanbert_fast=False)
    expected, exact = theirs(ids, **inputs), truth(ids, **widened(inputs))
    assert got.keys() == expected.keys() == asked.keys()
    for name in ("last_hidden_state", "pooler_output"):
        # the whole tensor, padding included
        assert_no_worse_than(got[name], expected[name], exact[name], floor=floor_of(exact[name]))
        assert_bitwise_equal(asked[name], got[name])
    for name in ("attentions", "hidden_states"):
        for a, b in zip(got.get(name, ()), expected.get(name, ()), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert kind != "output_attentions" or got.attentions[0].shape == (4, 2, 19, 19)


def test_a_decoder_is_transformers_own():
    ids, mask = padded_batch()
    with pytest.warns(UserWarning, match="the configuration is a decoder's"):
        bert_parts.warn_once.cache_clear()
        ours, theirs, _ = trio(BertModel, stock.BertModel, is_decoder=True)
        got, expected = (m(ids, attention_mask=mask, use_cache=True) for m in (ours, theirs))
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=1e-4)
    assert got.past_key_values.get_seq_length() == 19


def test_record_of_outputs_survives_pickling_in_another_class():
    """A model that came by its class without the constructor still returns attentions."""
    ids, _ = padded_batch()
    model = stock.BertModel(config()).eval()
    bert_parts.make_fast(model)
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is BertModel
    bert._register_for_capture.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(again(ids, output_attentions=True).attentions) == 3


# The parts alone, on padded hidden states


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
    models = trio(ours_class, theirs_class, *args)
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
    outputs = []
    for model in models:
        dtype = torch.float64 if model is models[2] else torch.float32
        x = hidden.to(dtype, copy=True).requires_grad_()
        # transformers' eager code adds its mask
        given = mask if model is models[0] else (None if mask is None else additive)
        if given is not None and given.is_floating_point():
            given = given.to(dtype)
        output = first_tensor(model(x, given))
        (output * weight.to(dtype))[real].sum().backward()
        outputs.append((output.detach()[real], x.grad[real]))
    for a, b, c in zip(*outputs, strict=True):
        assert_no_worse_than(a, b, c, floor=floor_of(c))
    assert_same_gradients(*models)


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
        bert_parts.warn_once.cache_clear()
        with pytest.warns(UserWarning, match="not one of padding"):
            got = first_tensor(ours(hidden, mask))
        expected = first_tensor(theirs(hidden, mask))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["BertSelfAttention", "BertLayer", "BertEncoder", "BertModel"])
def test_signatures_are_transformers_own(name):
    """Every parameter of theirs is there, in the same place; what is added is keyword-only."""
    for method in ("__init__", "forward"):
        ours = inspect.signature(getattr(getattr(bert, name), method)).parameters
        theirs = inspect.signature(getattr(getattr(stock, name), method)).parameters
        if name == "BertSelfAttention" and method == "__init__":
            assert list(ours) == list(theirs)
            continue
        positional = [p.name for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        expected = [p.name for p in theirs.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == expected
        assert issubclass(getattr(bert, name), getattr(stock, name))


def test_other_activations_stay_right():
    ids, mask = padded_batch()
    ours, theirs, truth = trio(BertModel, stock.BertModel, hidden_act="relu")
    outputs = [m(ids, attention_mask=mask)[0][mask.bool()] for m in (ours, theirs, truth)]
    assert_no_worse_than(*outputs, floor=floor_of(outputs[2]))


def test_what_stands_in_a_modules_place_is_called():
    """Hooks and replaced modules (adapters) around the parameters that the ops would take."""
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
    outputs = [m(ids, attention_mask=mask)[0][mask.bool()] for m in (ours, theirs, truth)]
    assert_no_worse_than(*outputs, floor=floor_of(outputs[2]))


def test_bad_input():
    model = BertModel(config()).eval()
    ids = torch.randint(0, 97, (2, 5))
    with pytest.raises(ValueError, match=r"input_ids must be in \[0, 97\), got 97"):
        model(torch.full((1, 2), 97))
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model(ids, inputs_embeds=torch.zeros(2, 5, 64))
    with pytest.raises(ValueError, match=r"position_ids must be in \[0, 40\), got 40"):
        model(torch.ones(1, 41, dtype=torch.long))
