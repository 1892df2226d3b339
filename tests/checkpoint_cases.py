"""Shared by the tests of checkpoints: small models, and a comparison of their weights."""

import torch

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models import SpanBertForPreTraining
from spanbert_fast.testing import assert_bitwise_equal

SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 16,
}
SPAN_SIZES = {"max_span_targets": 4, "span_position_embedding_size": 12}


def randomize(model):
    """Every parameter normal with std 0.2; norm weights around 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1
    return model.eval()


def pretraining(**fields):
    """A SpanBertForPreTraining with random weights."""
    return randomize(SpanBertForPreTraining(SpanBertConfig(**SIZES, **SPAN_SIZES, **fields)))


def assert_same_state(model, expected, but=()):
    """Every tensor of the model but those named in `but` equals the expected one, bit for bit."""
    state = model.state_dict()
    assert set(state) - set(but) == set(expected) - set(but)
    for name in expected:
        if name not in but:
            assert_bitwise_equal(state[name], expected[name], name)
