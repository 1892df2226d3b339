"""SpanBertForMaskedLM in training computes the loss of labelled rows and returns no logits."""

import copy

import pytest
import torch

from bert_cases import SIZES, large_init
from model_cases import batch, packed
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models import SpanBertForMaskedLM
from spanbert_fast.testing import assert_bitwise_equal, assert_models_agree, gradients_of


def labels_of(real, every_row=False):
    labels = torch.where(torch.rand(real.shape) < 0.3, torch.randint(0, 97, real.shape), -100)
    labels[0, 0] = 5  # at least one label
    return torch.where(real, torch.randint(0, 97, real.shape) if every_row else labels, -100)


def model_of(**fields):
    return large_init(SpanBertForMaskedLM(SpanBertConfig(**SIZES, **fields))).train()


@pytest.mark.parametrize("every_row", [False, True])
def test_loss_and_gradients_are_those_with_all_logits(every_row):
    """Within C5 of PyTorch's cross-entropy over all rows. Dropout is off: in the last layer it
    depends on the rows."""
    inputs, real = batch("everything")
    labels = labels_of(real, every_row)
    model = model_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    def run(model, full_logits=True):
        model.zero_grad()
        output = model(**inputs, labels=labels, full_logits=full_logits)
        assert (output.logits is None) == (not full_logits)
        output.loss.backward()
        return {"loss": output.loss.detach(), **gradients_of(model)}

    ours, peer = run(model, False), run(model)
    assert_models_agree(ours, peer, copy.deepcopy(model).double(), run)
    # a second call gives the same bits
    for name, value in run(model, False).items():
        assert_bitwise_equal(value, ours[name], name)


def test_dropout_is_the_same_with_and_without_logits():
    inputs, real = batch("padded")
    labels, model = labels_of(real), model_of()
    losses = []
    for full_logits in (False, True):
        torch.manual_seed(3)
        losses.append(model(**inputs, labels=labels, full_logits=full_logits).loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)
    torch.manual_seed(4)
    assert abs(losses[0] - model(**inputs, labels=labels).loss) > 1e-3 * losses[0], "it is on"


def test_packed_equals_padded():
    inputs, real = batch("everything")
    labels, model = labels_of(real), model_of()
    losses = []
    for given, targets in ((inputs, labels), (packed(inputs, real), labels[real])):
        torch.manual_seed(3)
        losses.append(model(**given, labels=targets).loss)
    assert_bitwise_equal(losses[0], losses[1])


def test_when_there_are_logits():
    inputs, real = batch("padded")
    labels, model = labels_of(real), model_of()
    assert model(**inputs, labels=labels).logits is None
    assert model(**inputs).logits.shape == (4, 19, 97)
    assert model(**inputs, labels=labels, full_logits=True).logits.shape == (4, 19, 97)
    model.full_logits = True
    assert model(**inputs, labels=labels).logits is not None
    assert model(**inputs, labels=labels, full_logits=False).logits is None
    model.full_logits = False
    stages = model(**inputs, labels=labels, output_hidden_states=True).hidden_states
    assert [stage.shape for stage in stages] == [(4, 19, 64)] * 4
    as_tuple = model(**inputs, labels=labels, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 1
    model.eval()
    assert model(**inputs, labels=labels).logits.shape == (4, 19, 97)


def test_every_stage_changes_no_loss():
    inputs, real = batch("padded")
    labels = labels_of(real)
    model = model_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    losses = [model(**inputs, labels=labels, output_hidden_states=s).loss for s in (False, True)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)
