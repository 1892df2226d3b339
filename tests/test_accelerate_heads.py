"""accelerate() skips what a head does not read, and differs only as documented."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.bert import modeling_bert as stock

import spanbert_fast as sb
from accelerate_cases import (
    LENGTHS,
    MODELS,
    batch,
    config,
    inputs_of,
    masked_labels,
    results,
    without,
)
from bert_cases import large_init
from spanbert_fast.accelerated import packed
from spanbert_fast.testing import assert_models_agree, gradients_of


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining"])
def test_training_decodes_labelled_rows_alone(name):
    model = large_init(MODELS[name](config())).train()
    truth = copy.deepcopy(model).double()
    inputs = inputs_of(name)
    logits = "logits" if name == "BertForMaskedLM" else "prediction_logits"

    def run(model):
        return results(model, inputs, inputs["attention_mask"].bool())

    theirs = run(model)
    sb.accelerate(model)
    rows = []
    model.cls.predictions.transform.register_forward_hook(
        lambda module, args, output: rows.append(len(output))
    )
    ours = run(model)
    assert rows == [int((inputs["labels"] != -100).sum())]
    assert logits not in ours and logits in theirs
    assert_models_agree(ours, without(theirs, logits), truth, lambda m: without(run(m), logits))
    # for one call, for the model, and always in evaluation
    for output in (
        model(**inputs, full_logits=True),
        sb.accelerate(model, full_logits=True)(**inputs),
        sb.accelerate(model).eval()(**inputs),
    ):
        assert output[logits].shape == (4, 19, 97)
    model.train()
    no_label = dict(inputs, labels=torch.full_like(inputs["labels"], -100))
    assert model(**no_label).loss.isnan()  # as in transformers
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple) and as_tuple[0].shape == ()


@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "BertForPreTraining", "BertForTokenClassification"]
)
def test_labels_on_padding_run_transformers_code(name):
    model = large_init(MODELS[name](config())).train()
    truth = copy.deepcopy(model).double()
    inputs = inputs_of(name)
    inputs["labels"][1, 10] = 1
    theirs = results(model, inputs, None)
    sb.accelerate(model)
    packed.warn_once.cache_clear()
    with pytest.warns(UserWarning, match="labels are given where attention_mask is 0"):
        ours = results(model, inputs, None)
    assert_models_agree(ours, theirs, truth, lambda m: results(m, inputs, None))


def test_question_answering_never_answers_with_padding():
    """The result is transformers' with the logits of padding at the lowest number."""
    model = large_init(stock.BertForQuestionAnswering(config()))
    truth = copy.deepcopy(model).double()
    inputs, padding = batch(), batch()["attention_mask"] == 0
    starts, ends = torch.tensor([3, 0, 12, 25]), torch.tensor([18, 0, 6, 17])

    def expected(model):
        output, losses = model(**inputs), []
        for logits, positions in ((output[0], starts), (output[1], ends)):
            logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
            # position 12 is padding in the third sequence, 25 is beyond the fourth
            kept = torch.tensor([p < length for p, length in zip(positions, LENGTHS, strict=True)])
            losses.append(nn.functional.cross_entropy(logits[kept], positions[kept]))
        loss = sum(losses) / 2
        model.zero_grad()
        loss.backward()
        return {"loss": loss.detach(), **gradients_of(model)}

    theirs = expected(model)
    sb.accelerate(model)
    output = model(**inputs, start_positions=starts, end_positions=ends)
    assert list(output) == ["loss", "start_logits", "end_logits"]
    for logits in (output.start_logits, output.end_logits):
        assert (logits[padding] == torch.finfo(torch.float32).min).all()
    model.zero_grad()
    output.loss.backward()
    ours = {"loss": output.loss.detach(), **gradients_of(model)}
    assert_models_agree(ours, theirs, truth, expected)
    stock_again = model(**inputs, start_positions=starts, end_positions=ends, spanbert_fast=False)
    sb.decelerate(model)
    plain = model(**inputs, start_positions=starts, end_positions=ends)
    torch.testing.assert_close(stock_again.loss, plain.loss)


@pytest.mark.parametrize(
    "name", ["BertForSequenceClassification", "BertForNextSentencePrediction", "BertForMaskedLM"]
)
def test_the_last_layer_computes_only_what_the_head_reads(name):
    model = sb.accelerate(getattr(stock, name)(config())).train()
    inputs, seen = batch(), []
    for layer in model.bert.encoder.layer:
        layer.intermediate.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    labels = masked_labels(inputs) if name == "BertForMaskedLM" else torch.tensor([0, 1, 1, 0])
    model(**inputs, labels=labels)
    every, read = int(LENGTHS.sum()), 4
    if name == "BertForMaskedLM":
        read = int((labels != -100).sum())
        assert 1 < read < every
    assert seen == [every, read]
    seen.clear()
    model(**inputs, labels=labels, output_hidden_states=True)
    assert seen == [every, every]
