"""Sequences without a token: rows of attention_mask that are all zero, in every SpanBERT model."""

import pytest
import torch
from torch.nn import functional as F

from bert_cases import SIZES, large_init
from model_cases import SPAN_SIZES
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models import (
    SpanBertForMaskedLM,
    SpanBertForPreTraining,
    SpanBertForQuestionAnswering,
    SpanBertForSequenceClassification,
    SpanBertForTokenClassification,
    SpanBertModel,
)
from spanbert_fast.testing import assert_bitwise_equal

MODELS = (
    SpanBertModel,
    SpanBertForMaskedLM,
    SpanBertForPreTraining,
    SpanBertForSequenceClassification,
    SpanBertForTokenClassification,
    SpanBertForQuestionAnswering,
)
LENGTHS = {
    "first": (0, 5, 3),
    "between": (5, 0, 3),
    "last": (5, 3, 0),
    "two": (0, 7, 0),
    "every": (0, 0, 0),
}
SEQLEN = 7


def batches(lengths):
    """(padded, packed, mask of real tokens)."""
    real = torch.arange(SEQLEN) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 97, real.shape)
    types = torch.randint(0, 2, real.shape)
    cu_seqlens = F.pad(real.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    padded = {"input_ids": ids, "token_type_ids": types, "attention_mask": real.long()}
    packed = {"input_ids": ids[real], "token_type_ids": types[real], "cu_seqlens": cu_seqlens}
    return padded, packed, real


def labels_of(model_class, real):
    """(padded, packed) labels; token labels need a token, as the mean of no labels is undefined."""
    if model_class in (SpanBertForMaskedLM, SpanBertForTokenClassification) and real.any():
        labels = torch.where(real, torch.randint(0, 2, real.shape), -100)
        return {"labels": labels}, {"labels": labels[real]}
    if model_class is SpanBertForPreTraining:
        # places of the packed tokens in the padded batch
        rows = real.flatten().nonzero().squeeze(1)
        padded = {"mlm_positions": rows[1:2], "mlm_targets": torch.full_like(rows[1:2], 7)}
        return padded, {**padded, "mlm_positions": torch.arange(len(rows))[1:2]}
    if model_class is SpanBertForSequenceClassification:
        return ({"labels": torch.tensor([0, 1, 1])},) * 2
    if model_class is SpanBertForQuestionAnswering and real.any():
        # every position of an empty sequence is padding
        positions = {name: torch.tensor([1, 2, 0]) for name in ("start_positions", "end_positions")}
        return (positions,) * 2
    return {}, {}


def model_of(model_class):
    extra = SPAN_SIZES if model_class is SpanBertForPreTraining else {}
    return large_init(model_class(SpanBertConfig(**SIZES, **extra)))


def results(model, inputs):
    """Every output, and the gradients of the loss; of all outputs if there is no loss."""
    torch.manual_seed(5)  # seeds the dropout
    model.zero_grad()
    outputs = {name: value for name, value in model(**inputs).items() if value.is_floating_point()}
    lowest = torch.finfo(torch.float32).min
    loss = outputs.get("loss")
    if loss is None:  # positions without a token have the lowest number
        loss = sum(v.masked_fill(v == lowest, 0).sin().sum() for v in outputs.values())
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in outputs.items()}, gradients


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("model_class", MODELS)
def test_padded_and_packed_are_equal_and_finite(model_class, lengths, train):
    padded, packed, real = batches(lengths)
    model = model_of(model_class).train(train)
    for_padded, for_packed = labels_of(model_class, real)
    ours, gradients = results(model, {**padded, **for_padded})
    theirs, expected = results(model, {**packed, **for_packed})
    assert ours.keys() == theirs.keys() and gradients.keys() == expected.keys()
    for name, value in ours.items():
        assert value.isfinite().all(), name
        other = theirs[name]
        if model_class is SpanBertForQuestionAnswering and value.dim() > 1:
            longest = max(lengths)  # the width of packed input's logits
            assert_bitwise_equal(value[:, :longest].contiguous(), other, name)
            assert (value[~real] == torch.finfo(value.dtype).min).all()
        elif value.shape[:2] == real.shape:
            assert_bitwise_equal(value[real], other, name)
            assert not value[~real].any(), "what pads comes out as zeros"
        else:
            assert_bitwise_equal(value, other, name)
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        assert_bitwise_equal(gradient, expected[name], name)


@pytest.mark.parametrize("model_class", MODELS)
def test_an_empty_sequence_changes_nothing_of_the_others(model_class):
    """The other two sequences have the outputs of a batch without the empty one."""
    padded, _, _ = batches((5, 0, 3))
    model, others = model_of(model_class), torch.tensor([0, 2])
    with torch.no_grad():
        outputs = model(**padded)
        alone = model(**{name: value[others] for name, value in padded.items()})
    for name, value in alone.items():
        if value.dim() > 2 or "start" in name or "end" in name:  # outputs of tokens
            assert_bitwise_equal(outputs[name][others], value, name)
        else:  # products with three rows and with two may round differently
            torch.testing.assert_close(outputs[name][others], value, rtol=1e-4, atol=1e-5)


def test_the_first_token_of_an_empty_sequence_is_zero():
    padded, packed, _ = batches((0, 5, 0))
    model = model_of(SpanBertModel)
    dense = model.pooler.dense
    for inputs in (padded, packed):
        pooled = model(**inputs).pooler_output
        for row in (0, 2):
            torch.testing.assert_close(pooled[row], torch.tanh(dense.bias), rtol=1e-5, atol=1e-6)
    output = model(**batches((0, 0, 0))[0])
    assert not output.last_hidden_state.any()
    torch.testing.assert_close(output.pooler_output, torch.tanh(dense.bias).expand(3, -1))
