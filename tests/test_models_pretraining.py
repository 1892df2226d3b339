"""SpanBertForPreTraining against the formulas of contract C2, at a LARGE initialisation."""

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel

from bert_cases import SIZES, large_init, widened
from model_cases import SPAN_SIZES, batch, packed, pair
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models import SpanBertForPreTraining
from spanbert_fast.testing import assert_bitwise_equal, assert_models_agree, gradients_of


def targets(real):
    """Masked tokens and three spans of the padded batch, as flat padded rows."""
    flat = real.flatten().nonzero().squeeze(1)
    return {
        "mlm_positions": flat[[2, 3, 4, 9, 30]],
        "mlm_targets": torch.tensor([5, 6, 7, 96, 8]),
        "span_boundaries": torch.tensor([[1, 5], [8, 10], [58, 61]]),
        "cu_span_lengths": torch.tensor([0, 3, 4, 6], dtype=torch.int32),
        "sbo_targets": torch.tensor([5, 6, 7, 96, 11, 12]),
    }


def losses_by_hand(model, bert, inputs, wanted):
    """The formulas of contract C2: the concatenated form on the hidden states of stock BERT."""
    hidden = bert(**inputs).last_hidden_state.flatten(0, 1)
    head, span = model.cls.predictions, model.cls.span_boundary

    def norm(x, layer):
        return F.layer_norm(x, (64,), layer.weight, layer.bias, 1e-12)

    x = F.gelu(F.linear(hidden[wanted["mlm_positions"]], *head.transform.dense.parameters()))
    logits = norm(x, head.transform.LayerNorm) @ head.decoder.weight.T + head.bias
    mlm = F.cross_entropy(logits, wanted["mlm_targets"])
    rows, lengths = [], wanted["cu_span_lengths"].diff().tolist()
    for (left, right), length in zip(wanted["span_boundaries"].tolist(), lengths, strict=True):
        for place in range(length):
            p = span.position_embeddings.weight[place]
            rows.append(torch.cat([hidden[left], hidden[right], p]))
    x = norm(F.gelu(F.linear(torch.stack(rows), *span.linear1.parameters())), span.layer_norm1)
    x = norm(F.gelu(F.linear(x, *span.linear2.parameters())), span.layer_norm2)
    logits = x @ head.decoder.weight.T + span.bias
    return mlm, F.cross_entropy(logits, wanted["sbo_targets"], reduction="sum")


def pretraining_models(offset=0):
    weights = {"sbo_weight": 0.7, "sbo_denominator_offset": offset}
    ours = large_init(SpanBertForPreTraining(SpanBertConfig(**SIZES, **SPAN_SIZES, **weights)))
    truth = SpanBertForPreTraining(SpanBertConfig(**SIZES, **SPAN_SIZES)).eval()
    peer = SpanBertForPreTraining(SpanBertConfig(**SIZES, **SPAN_SIZES)).eval()
    for model in (truth, peer):
        model.load_state_dict(ours.state_dict())
        config = BertConfig(**SIZES, attn_implementation="eager")
        bert = BertModel(config, add_pooling_layer=False).eval()
        bert.load_state_dict(ours.bert.state_dict())
        bert.embeddings.word_embeddings = model.bert.embeddings.word_embeddings  # tied
        model.bert = bert
    return ours, peer, truth.double()


@pytest.mark.parametrize("offset", [0, 1])
def test_pretraining_losses_and_gradients(offset):
    inputs, real = batch("everything")
    wanted = targets(real)
    ours, peer, truth = pretraining_models(offset)
    output = ours(**inputs, **wanted)
    output.loss.backward()
    losses = {name: output[name].detach() for name in ("loss", "mlm_loss", "sbo_loss")}

    def by_hand(model):
        mlm, sbo_sum = losses_by_hand(model, model.bert, widened(inputs), wanted)
        loss = mlm + 0.7 * sbo_sum / (6 + offset)
        model.zero_grad()
        loss.backward()
        losses = {"loss": loss, "mlm_loss": mlm, "sbo_loss": sbo_sum / 6}
        return {**{name: value.detach() for name, value in losses.items()}, **gradients_of(model)}

    assert_models_agree({**losses, **gradients_of(ours)}, by_hand(peer), truth, by_hand)
    assert (int(output.mlm_count), int(output.sbo_count)) == (5, 6)


def test_pretraining_packed_equals_padded_and_labels():
    inputs, real = batch("everything")
    wanted = targets(real)
    model = large_init(SpanBertForPreTraining(SpanBertConfig(**SIZES, **SPAN_SIZES)))
    padded = model(**inputs, **wanted, return_predictions=True)
    to_row = torch.full((real.numel(),), -1)
    to_row[real.flatten()] = torch.arange(int(real.sum()))
    flat = {
        **wanted,
        "mlm_positions": to_row[wanted["mlm_positions"]],
        "span_boundaries": to_row[wanted["span_boundaries"]],
    }
    got = model(**packed(inputs, real), **flat, return_predictions=True)
    for name in ("loss", "mlm_loss", "sbo_loss", "mlm_predictions", "sbo_predictions"):
        assert_bitwise_equal(got[name], padded[name], name)
    assert got.mlm_predictions.shape == (5,) and got.sbo_predictions.shape == (6,)

    labels = torch.full(real.shape, -100)
    labels.view(-1)[wanted["mlm_positions"]] = wanted["mlm_targets"]
    spans = {k: v for k, v in wanted.items() if not k.startswith("mlm")}
    assert_bitwise_equal(model(**inputs, labels=labels, **spans).loss, padded.loss)
    stages = model(**inputs, **wanted, output_hidden_states=True)
    assert len(stages.hidden_states) == 4
    torch.testing.assert_close(stages.loss, padded.loss, rtol=1e-4, atol=1e-4)


def test_pretraining_with_one_kind_of_target_and_given_denominators():
    inputs, real = batch("everything")
    wanted = targets(real)
    model = large_init(SpanBertForPreTraining(SpanBertConfig(**SIZES, **SPAN_SIZES)))
    both = model(**inputs, **wanted)
    mlm = {k: v for k, v in wanted.items() if k.startswith("mlm")}
    spans = {k: v for k, v in wanted.items() if not k.startswith("mlm")}
    for output, loss in (
        (model(**inputs, **mlm), both.mlm_loss),
        (model(**inputs, **spans), both.sbo_loss),
    ):
        torch.testing.assert_close(output.loss, loss, rtol=1e-4, atol=1e-4)
    assert int(model(**inputs, **mlm).sbo_count) == 0
    halves = model(**inputs, **wanted, mlm_denominator=10, sbo_denominator=torch.tensor(12))
    torch.testing.assert_close(halves.loss, both.loss / 2)


def test_pretraining_without_targets_gives_the_masked_lm_scores():
    inputs, real = batch("everything")
    ours, theirs, truth = pair(SpanBertForPreTraining, BertForMaskedLM)

    def run(model):
        return {"logits": model(**inputs).logits[real].detach()}

    assert_models_agree(run(ours), run(theirs), truth, run)
    assert ours(**inputs).loss is None


def test_pretraining_dropout_seed_and_pair_loss():
    inputs, real = batch("everything")
    wanted = targets(real)
    model = large_init(SpanBertForPreTraining(SpanBertConfig(**SIZES, **SPAN_SIZES))).train()
    losses = [model(**inputs, **wanted, dropout_seed=torch.tensor(seed)).loss for seed in (1, 1, 2)]
    assert_bitwise_equal(losses[0], losses[1])
    assert losses[0] != losses[2]
    model.eval()
    without = model(**inputs, **wanted)
    assert without.pair_loss is None
    model.config.pair_loss_weight = 0.5
    output = model(**inputs, **wanted)
    torch.testing.assert_close(output.loss, without.loss + 0.5 * output.pair_loss)
    # as part of a global batch of 1000 tokens
    part = model(**inputs, **wanted, pair_denominator=1000.0)
    share = 0.5 * output.pair_loss * int(real.sum()) / 1000
    torch.testing.assert_close(part.loss, without.loss + share)
    torch.testing.assert_close(part.pair_loss, output.pair_loss)

    # the pair loss by its definition, from the probability of every token, in spans and outside
    log_p = model(**inputs).logits[real].double().log_softmax(-1)
    originals = inputs["input_ids"].clone()
    originals.view(-1)[wanted["mlm_positions"]] = wanted["mlm_targets"]
    in_span = torch.zeros(real.shape, dtype=torch.bool)
    in_span.view(-1)[wanted["mlm_positions"]] = True
    own = log_p.gather(1, originals[real][:, None])[:, 0]
    outside = torch.log1p(-own.exp())
    expected = -torch.where(in_span[real], own, outside).sum() / len(own)
    torch.testing.assert_close(output.pair_loss.double(), expected, rtol=1e-3, atol=1e-3)


def test_pretraining_bad_input():
    inputs, real = batch("padded")
    wanted = targets(real)
    model = SpanBertForPreTraining(SpanBertConfig(**SIZES, **SPAN_SIZES))
    with pytest.raises(ValueError, match="mlm_positions and mlm_targets must be given together"):
        model(**inputs, mlm_positions=wanted["mlm_positions"])
    with pytest.raises(ValueError, match="sbo_targets must be given together or not at all"):
        model(**inputs, sbo_targets=wanted["sbo_targets"])
    with pytest.raises(ValueError, match="labels must be None where mlm_positions is given"):
        model(**inputs, **wanted, labels=inputs["input_ids"])
    model.config.pair_loss_weight = 1.0
    embeds = {"inputs_embeds": torch.randn(4, 19, 64)}
    with pytest.raises(ValueError, match="input_ids must be given with pair_loss_weight"):
        model(**embeds, **wanted)
