"""SpanBertModel and SpanBertForPreTraining against stock BERT at a LARGE initialisation.

At the default standard deviation of 0.02 real faults hide: a wrong softmax scale moves the output
by 2e-5. Here every weight, bias included, has 0.3, and norms are random around 1.
"""

import re

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models import SpanBertForPreTraining, SpanBertModel
from spanbert_fast.models.encoder import SpanBertModel as Encoder
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 100,
    "max_position_embeddings": 40,
}
SPAN_SIZES = {"max_span_targets": 4, "span_position_embedding_size": 12}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def large_init(model):
    """Every parameter normal with std 0.3; norm weights around 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1
    return model.eval()


def pair(ours_class, theirs_class, **fields):
    """(ours, theirs, theirs in fp64) with the same large weights; eager attention on their side."""
    ours = large_init(ours_class(SpanBertConfig(**SIZES, **fields)))
    config = BertConfig(**SIZES, **fields, attn_implementation="eager")
    theirs, truth = theirs_class(config).eval(), theirs_class(config).eval()
    for model in (theirs, truth):
        wanted = model.state_dict().keys()
        held = {k: v for k, v in ours.state_dict().items() if "span_boundary" not in k}
        assert held.keys() == wanted  # C1: the names are Hugging Face's
        model.load_state_dict(held)
    return ours, theirs, truth.double()


def batch(kind):
    """Keyword arguments of a BERT, and the mask of what is real."""
    shape = {"length 1": (3, 1), "max length": (2, 40), "one sequence": (1, 17)}.get(kind, (4, 19))
    ids = torch.randint(1, 97, shape)
    mask = torch.ones(shape, dtype=torch.int64)
    inputs = {"input_ids": ids}
    if kind in ("padded", "everything"):
        for row, length in enumerate((19, 1, 7, 18)):
            mask[row, length:] = 0
        ids[mask == 0] = 0
        inputs["attention_mask"] = mask
    if kind in ("token types", "everything"):
        inputs["token_type_ids"] = torch.randint(0, 2, shape)
    if kind in ("positions", "everything"):
        inputs["position_ids"] = torch.randint(0, 40, (1 if kind == "positions" else 4, 19))
    if kind == "embeddings":
        inputs = {"inputs_embeds": torch.randn(*shape, 64)}
    return inputs, mask.bool()


def widened(inputs):
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


def floor_of(truth):
    """64 roundings of the largest element: the peer's error is itself a sum of some hundred
    roundings, and may come out small in one small tensor by luck."""
    return 64 * torch.finfo(torch.float32).eps * truth.abs().max().item()


def gradient_floor(truth, name):
    """As `floor_of`. A key's bias has no gradient at all (softmax ignores it), nor have queries and
    keys in sequences of length 1: what comes out is the rounding of sums that cancel, as large as
    those beside them."""
    beside = name, name.replace("key.bias", "key.weight"), re.sub("query|key", "value", name)
    return max(floor_of(truth[n].grad) for n in beside)


def compare(outputs, parameters, names=("last_hidden_state", "pooler_output")):
    """Outputs and all parameter gradients of (ours, theirs, truth) within C5."""
    for name, (a, b, c) in zip(names, zip(*outputs, strict=True), strict=True):
        assert_no_worse_than(a.detach(), b.detach(), c.detach(), floor=floor_of(c), name=name)
    ours, theirs, truth = (dict(p) for p in parameters)
    for name, parameter in truth.items():
        if parameter.grad is None:
            assert ours[name].grad is None or not ours[name].grad.any(), name
            continue
        grads = ours[name].grad, theirs[name].grad, parameter.grad
        assert_no_worse_than(*grads, floor=gradient_floor(truth, name), name=name)


KINDS = (
    "padded",
    "no mask",
    "token types",
    "positions",
    "embeddings",
    "everything",
    "length 1",
    "max length",
    "one sequence",
)


@pytest.mark.parametrize("kind", KINDS)
def test_model_equals_bert(kind):
    inputs, real = batch(kind)
    models = pair(SpanBertModel, BertModel)
    weights = torch.randn(*real.shape, 64, dtype=torch.float64), torch.randn(len(real), 64).double()
    outputs = []
    for model in models:
        given = widened(inputs) if model.dtype == torch.float64 else inputs
        output = model(**given)
        hidden, pooled = output.last_hidden_state, output.pooler_output
        loss = (hidden * weights[0].to(hidden.dtype))[real].sum()
        (loss + (pooled * weights[1].to(pooled.dtype)).sum()).backward()
        outputs.append((hidden[real], pooled))
    compare(outputs, [model.named_parameters() for model in models])
    ours = models[0](**inputs).last_hidden_state
    assert not ours[~real].any(), "padding must come out as zeros"


def packed(inputs, real):
    lengths = real.sum(1)
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    keep = {k: v for k, v in inputs.items() if k != "attention_mask"}
    return {**{k: v[real] for k, v in keep.items()}, "cu_seqlens": cu_seqlens}


@pytest.mark.parametrize("kind", ["padded", "everything", "length 1"])
def test_packed_equals_padded(kind):
    inputs, real = batch(kind)
    model = large_init(SpanBertModel(SpanBertConfig(**SIZES)))
    padded = model(**inputs)
    for max_seqlen in (None, 19):
        flat = model(**packed(inputs, real), max_seqlen=max_seqlen)
        assert_bitwise_equal(flat.last_hidden_state, padded.last_hidden_state[real])
        assert_bitwise_equal(flat.pooler_output, padded.pooler_output)


def test_only_the_rows_that_are_asked_for():
    """The last layer on some rows gives what the full one gives, also for rows named twice."""
    inputs, real = batch("padded")
    model = large_init(SpanBertModel(SpanBertConfig(**SIZES))).double()
    rows = torch.tensor([3, 0, 44, 3, 20])
    full = model.encode(**inputs).hidden_states
    some = model.encode(**inputs, rows=rows).hidden_states
    torch.testing.assert_close(some, full[rows], rtol=1e-11, atol=1e-11)
    weight = torch.randn(5, 64, dtype=torch.float64)
    expected = torch.autograd.grad((full[rows] * weight).sum(), list(model.encoder.parameters()))
    got = torch.autograd.grad((some * weight).sum(), list(model.encoder.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert model.encode(**inputs, rows=rows[:0]).hidden_states.shape == (0, 64)


def gradients(model, **inputs):
    model.zero_grad()
    hidden = model(**inputs).last_hidden_state
    hidden.pow(2).sum().backward()
    return hidden.detach(), [p.grad.clone() for p in model.encoder.parameters()]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    inputs, real = batch("padded")
    model = large_init(SpanBertModel(SpanBertConfig(**SIZES))).train()
    torch.manual_seed(1)
    hidden, expected = gradients(model, **inputs)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert model.is_gradient_checkpointing
    torch.manual_seed(1)
    again, got = gradients(model, **inputs)
    assert_bitwise_equal(again, hidden)
    for a, b in zip(got, expected, strict=True):
        assert_bitwise_equal(a, b)
    model.gradient_checkpointing_disable()
    torch.manual_seed(2)
    assert not torch.equal(gradients(model, **inputs)[0], hidden), "dropout is on"


def test_dropout_is_a_function_of_the_seed():
    inputs, real = batch("padded")
    model = large_init(Encoder(SpanBertConfig(**SIZES))).train()
    seed = torch.tensor(77)

    def run(**more):
        return model.encode(**inputs, **more).hidden_states

    first = run(dropout_seed=seed)
    before = torch.get_rng_state()
    assert_bitwise_equal(run(dropout_seed=seed), first)
    assert torch.equal(torch.get_rng_state(), before), "a given seed draws nothing"
    assert not torch.equal(run(dropout_seed=torch.tensor(78)), first)
    torch.manual_seed(3)
    drawn = run()
    assert not torch.equal(run(), drawn)
    torch.manual_seed(3)
    assert_bitwise_equal(run(), drawn)
    model.eval()
    assert_bitwise_equal(run(dropout_seed=seed), run())


@pytest.mark.parametrize("train", [False, True])
def test_compiles_packed(train):
    inputs, real = batch("padded")
    model = large_init(SpanBertModel(SpanBertConfig(**SIZES))).train(train)
    flat = {**packed(inputs, real), "max_seqlen": 19}

    def encode(**arguments):
        hidden = model.encode(**arguments, dropout_seed=torch.tensor(5)).hidden_states
        return hidden, *torch.autograd.grad(hidden.sin().sum(), list(model.encoder.parameters()))

    expected = encode(**flat)
    model.encoder.compile(backend="aot_eager", fullgraph=True)
    for a, b in zip(encode(**flat), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("residual_in_fp32", [False, True])
def test_bf16_autocast(residual_in_fp32):
    ratios = []
    for seed in range(6):
        torch.manual_seed(seed)
        inputs, real = batch("everything")
        ours, theirs, truth = pair(SpanBertModel, BertModel, residual_in_fp32=residual_in_fp32)
        expected = truth(**inputs).last_hidden_state[real]
        with torch.autocast("cpu", torch.bfloat16):
            got, peer = (m(**inputs).last_hidden_state[real] for m in (ours, theirs))
        assert got.dtype == (torch.float32 if residual_in_fp32 else torch.bfloat16)
        mean = [(x.double() - expected).abs().mean().item() for x in (got, peer)]
        ratios.append(mean[0] / mean[1])
    # Hugging Face keeps the residuals in fp32; products' inputs are bf16 in both, and weigh more.
    # Of six models and batches the mean: which way the elements of a single one fall is luck.
    assert sum(ratios) / 6 <= 1.1


def test_residual_in_fp32_changes_nothing_without_autocast():
    inputs, _ = batch("padded")
    ours, theirs, _ = pair(SpanBertModel, BertModel, residual_in_fp32=True)
    for dtype in (torch.float32, torch.bfloat16):
        outputs = [m.to(dtype)(**inputs).last_hidden_state for m in (ours, theirs)]
        assert outputs[0].dtype == outputs[1].dtype == dtype


def test_hidden_states_and_tuples():
    inputs, real = batch("padded")
    ours, theirs, _ = pair(SpanBertModel, BertModel)
    got, expected = (m(**inputs, output_hidden_states=True) for m in (ours, theirs))
    assert len(got.hidden_states) == len(expected.hidden_states) == 4
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a[real], b[real], rtol=1e-3, atol=1e-3)
    assert_bitwise_equal(got.hidden_states[-1], got.last_hidden_state)
    as_tuple = ours(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 2
    assert_bitwise_equal(as_tuple[0], got.last_hidden_state)
    ours.config.output_hidden_states = True
    assert len(ours(**inputs).hidden_states) == 4


def test_without_pooler_and_empty_batch():
    model = SpanBertModel(SpanBertConfig(**SIZES), add_pooling_layer=False)
    ids = torch.zeros(0, dtype=torch.int64)
    output = model(ids, cu_seqlens=torch.zeros(1, dtype=torch.int32))
    assert output.pooler_output is None and output.last_hidden_state.shape == (0, 64)


def test_bad_input():
    model = SpanBertModel(SpanBertConfig(**SIZES)).eval()
    ids = torch.randint(0, 97, (2, 5))
    for message, arguments in {
        r"input_ids must be in \[0, 97\), got 97": {"input_ids": torch.full((1, 2), 97)},
        r"input_ids must be in \[0, 97\), got -1": {"input_ids": torch.full((1, 2), -1)},
        "sequences must not be longer than max_position_embeddings = 40, got 41": {
            "input_ids": torch.zeros((1, 41), dtype=torch.int64)
        },
        r"position_ids must be in \[0, 40\), got 40": {
            "input_ids": ids,
            "position_ids": torch.full((2, 5), 40),
        },
        "exactly one of input_ids and inputs_embeds must be given": {},
        "cu_seqlens must be given with packed input, got None": {"input_ids": ids[0]},
        "attention_mask must be None with packed input_ids": {
            "input_ids": ids[0],
            "attention_mask": torch.ones(5),
        },
        r"attention_mask must have shape \(batch, seqlen\) = \(2, 5\), got \(2, 4\)": {
            "input_ids": ids,
            "attention_mask": torch.ones(2, 4),
        },
        r"input_ids must be padded .* got \(2, 5\) and cu_seqlens given": {
            "input_ids": ids,
            "cu_seqlens": torch.tensor([0, 10], dtype=torch.int32),
        },
        "output_attentions must be False": {"input_ids": ids, "output_attentions": True},
    }.items():
        with pytest.raises(ValueError, match=message):
            model(**arguments)
    with pytest.raises(TypeError, match="SpanBertModel got an unexpected argument 'head_mask'"):
        model(ids, head_mask=torch.ones(2))


# Pre-training


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
    """Contract C2, written out: the concatenated form on the hidden states of stock BERT."""
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
    by_hand = []
    for model in (peer, truth):
        mlm, sbo_sum = losses_by_hand(model, model.bert, widened(inputs), wanted)
        loss = mlm + 0.7 * sbo_sum / (6 + offset)
        loss.backward()
        by_hand.append((loss, mlm, sbo_sum / 6))
    compare(
        [(output.loss, output.mlm_loss, output.sbo_loss), *by_hand],
        [model.named_parameters() for model in (ours, peer, truth)],
        ("loss", "mlm_loss", "sbo_loss"),
    )
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
    logits = [model(**inputs).logits[real] for model in (ours, theirs, truth)]
    assert_no_worse_than(*logits, floor=floor_of(logits[2]), name="logits")
    assert ours(**inputs).loss is None


def test_pretraining_dropout_seed_and_pair_loss():
    inputs, real = batch("everything")
    wanted = targets(real)
    model = large_init(SpanBertForPreTraining(SpanBertConfig(**SIZES, **SPAN_SIZES))).train()
    losses = [
        model(**inputs, **wanted, dropout_seed=torch.tensor(seed)).loss for seed in (1, 1, 2)
    ]
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

    # the pair loss by its definition: every token's own probability, in spans and outside
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
