"""Hooks and PEFT's adapters on the modules of SpanBERT models are never bypassed."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bert_cases import SIZES, large_init
from model_cases import batch, packed
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models import SpanBertForSequenceClassification, SpanBertModel
from spanbert_fast.testing import assert_bitwise_equal

EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # for outputs up to 5 after three layers with large weights


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_hook_on_the_embeddings_is_called_and_changes_them(name):
    inputs, real = batch("everything")
    model = large_init(SpanBertModel(SpanBertConfig(**SIZES)))
    plain = model(**inputs)
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in getattr(doubled.embeddings, name).parameters():
            parameter *= 2
    shapes = []

    def double(module, arguments, output):
        shapes.append(tuple(output.shape))
        return 2 * output

    hook = getattr(model.embeddings, name).register_forward_hook(double)
    for given in (inputs, packed(inputs, real)):
        torch.testing.assert_close(
            model(**given).last_hidden_state, doubled(**given).last_hidden_state, **CLOSE
        )
    assert shapes == [(int(real.sum()), 64)] * 2, "it sees the packed tokens, once"
    hook.remove()
    assert_bitwise_equal(model(**inputs).last_hidden_state, plain.last_hidden_state)


def with_adapter(model, **fields):
    """The model in PEFT's wrapper, with an adapter as large as its weights."""
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, **fields))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.3)
    return adapted


@pytest.mark.parametrize(
    "modules", [["word_embeddings"], ["word_embeddings", "position_embeddings", "dense"]]
)
def test_lora_on_the_embeddings(modules):
    inputs, real = batch("everything")
    model = large_init(SpanBertModel(SpanBertConfig(**SIZES)))
    without = model(**inputs).last_hidden_state
    adapted = with_adapter(model, target_modules=modules)
    outputs = adapted(**inputs)
    output = outputs.last_hidden_state
    assert (output - without).abs().max() > 0.1
    weight = torch.randn_like(output)
    ((output * weight).sum() + outputs.pooler_output.sum()).backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in adapted.named_parameters() if "lora" in name}
    assert all(p.grad.any() for p in adapted.parameters() if p.grad is not None)
    flat = adapted(**packed(inputs, real)).last_hidden_state
    assert_bitwise_equal(flat, output[real])
    merged = adapted.merge_and_unload()
    assert merged is model
    torch.testing.assert_close(merged(**inputs).last_hidden_state, output.detach(), **CLOSE)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_peft_with_gradient_checkpointing(use_reentrant):
    """Reentrant checkpointing needs an input that requires a gradient. PEFT's hook on the word
    embeddings makes their output require one; without it, adapters get no gradient."""
    inputs, _ = batch("padded")
    labels = torch.tensor([0, 1, 1, 0])

    def gradients(checkpointing):
        torch.manual_seed(7)
        model = large_init(SpanBertForSequenceClassification(SpanBertConfig(**SIZES)))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        fields = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
        adapted = with_adapter(model, **fields).train()
        torch.manual_seed(8)  # seeds the dropout
        loss = adapted(**inputs, labels=labels).loss
        loss.backward()
        return {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}

    expected, got = gradients(False), gradients(True)
    assert sum("lora" in name for name in expected) == 2 * 2 * SIZES["num_hidden_layers"]
    for name, gradient in expected.items():
        assert gradient is not None and gradient.any(), name
        assert_bitwise_equal(got[name], gradient, name)
