"""BERT on packed tokens under transformers' names, at a LARGE initialisation (C5)."""

import copy
import pickle
import warnings

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
from bert_cases import SIZES, large_init, widened
from spanbert_fast.accelerated import packed, registry
from spanbert_fast.accelerated.bert import BertModel
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models import SpanBertModel
from spanbert_fast.testing import (
    ROUNDINGS,
    assert_bitwise_equal,
    assert_models_agree,
    gradients_of,
    rounding_noise,
)


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
    ours, theirs, truth = trio(BertModel, stock.BertModel)

    def run(model):
        given = widened(inputs) if model.dtype == torch.float64 else inputs
        output = model(**given, output_hidden_states=True)
        assert list(output.keys()) == ["last_hidden_state", "pooler_output", "hidden_states"]
        hidden, pooled = output.last_hidden_state, output.pooler_output
        loss = (hidden * weights[0].to(hidden.dtype))[real].sum()
        model.zero_grad()
        (loss + (pooled * weights[1].to(pooled.dtype)).sum()).backward()
        stages = {f"stage {i}": s[real].detach() for i, s in enumerate(output.hidden_states)}
        return {**stages, "pooler_output": pooled.detach(), **gradients_of(model)}

    assert_models_agree(run(ours), run(theirs), truth, run)
    output = ours(**inputs, output_hidden_states=True)
    assert output.last_hidden_state is output.hidden_states[-1]
    assert not any(stage[~real].any() for stage in output.hidden_states)


def test_dropout_is_that_of_spanbert_model():
    """With the same weights and seed, the masks and the bits are those of SpanBertModel."""
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

    def run(model):
        torch.manual_seed(5)
        model.zero_grad()
        model(ids, attention_mask=mask).last_hidden_state.sin().sum().backward()
        return gradients_of(model)

    # autograd adds the branches of a residual in another order
    got, expected = gradients_of(ours), run(other)
    noise = rounding_noise(copy.deepcopy(other).double(), run)
    assert got.keys() <= expected.keys()
    for name, gradient in got.items():
        floor = ROUNDINGS * noise[name]
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=floor)
    assert not torch.equal(ours(ids, attention_mask=mask)[0], outputs[0][0]), "dropout is on"


def test_dropout_modules_count_one_by_one():
    """nn.Dropout modules may be in training mode alone, as for Monte Carlo dropout."""
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
    # the largest of few errors is luck: C5's factor applies to their mean
    errors = [(o[0][mask.bool()].double() - expected).abs().mean().item() for o in outputs]
    assert errors[0] <= 2 * errors[1]
    for a, b in zip(outputs[0].to_tuple()[:2], outputs[1].to_tuple()[:2], strict=True):
        assert a.dtype == b.dtype
    assert {h.dtype for h in outputs[0].hidden_states} == {torch.float32}


# Calls that are not covered run transformers' own code, with one warning


NOT_COVERED = {
    "output_attentions": ({"output_attentions": True}, "output_attentions needs"),
    "left padding": ({"attention_mask": mask_of(LENGTHS, 19).flip(1)}, "0 at the first position"),
    "4-D mask": ({"attention_mask": four_dimensional(mask_of(LENGTHS, 19))}, "4 dimensions"),
    "causal": (
        {"attention_mask": torch.full((4, 1, 19, 19), -1e30).triu(1)},
        "4 dimensions",
    ),
    "other argument": ({"is_causal": True}, "is_causal is given"),
}


@pytest.mark.parametrize("kind", NOT_COVERED)
def test_not_covered_runs_transformers_code(kind):
    inputs, reason = NOT_COVERED[kind]
    ids, mask = padded_batch()
    inputs = {"attention_mask": mask, **inputs}
    ours, theirs, truth = trio(BertModel, stock.BertModel)
    packed.warn_once.cache_clear()
    with pytest.warns(UserWarning, match=reason):
        got = ours(ids, **inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(ids, **inputs)  # the warning comes once
        asked = ours(ids, **inputs, spanbert_fast=False)
    expected = theirs(ids, **inputs)
    assert got.keys() == expected.keys() == asked.keys()
    names = ("last_hidden_state", "pooler_output")  # the whole tensors, padding included

    def run(model):
        return {name: model(ids, **widened(inputs))[name].detach() for name in names}

    results = ({name: output[name].detach() for name in names} for output in (got, expected))
    assert_models_agree(*results, truth, run)
    for name in names:
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
        packed.warn_once.cache_clear()
        ours, theirs, _ = trio(BertModel, stock.BertModel, is_decoder=True)
        got, expected = (m(ids, attention_mask=mask, use_cache=True) for m in (ours, theirs))
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=1e-4)
    assert got.keys() == expected.keys()
    cache = got["cache"] if "cache" in got else got["past_key_values"]
    assert cache.get_seq_length() == 19


def test_record_of_outputs_survives_pickling_in_another_class():
    """A model whose class was set without its constructor still returns attentions."""
    ids, _ = padded_batch()
    model = stock.BertModel(config()).eval()
    registry.make_fast(model)
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is BertModel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(again(ids, output_attentions=True).attentions) == 3


def test_bad_input():
    model = BertModel(config()).eval()
    ids = torch.randint(0, 97, (2, 5))
    with pytest.raises(ValueError, match=r"input_ids must be in \[0, 97\), got 97"):
        model(torch.full((1, 2), 97))
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model(ids, inputs_embeds=torch.zeros(2, 5, 64))
    with pytest.raises(ValueError, match=r"position_ids must be in \[0, 40\), got 40"):
        model(torch.ones(1, 41, dtype=torch.long))
