"""The heads and their joint loss, against scores of the whole vocabulary at all places."""

import math

import pytest
import torch
from torch.nn import functional as F

from spanbert_fast.nn import (
    Denominators,
    MaskedLMHead,
    SpanBoundaryHead,
    SpanPretrainingLoss,
    SpanTargets,
)
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than

HIDDEN, VOCAB, PLACES, PLACE_SIZE = 24, 83, 20, 10
LENGTHS = [3, 1, 20, 0, 2]  # targets per span; one span has none


def build(dtype=torch.float64, std=0.3, **options):
    """Heads with large parameters, so that no wrong term hides behind a small weight."""
    loss = SpanPretrainingLoss(
        MaskedLMHead(HIDDEN, VOCAB),
        SpanBoundaryHead(HIDDEN, VOCAB, PLACES, PLACE_SIZE),
        **options,
    ).to(dtype)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.normal_(std=std)
    return loss


def make_batch(dtype=torch.float64, tokens=60, lengths=LENGTHS, masked=17):
    starts = torch.arange(len(lengths)) * 5
    cu_span_lengths = F.pad(torch.tensor(lengths).long().cumsum(0), (1, 0)).to(torch.int32)
    return {
        "hidden_states": torch.randn(tokens, HIDDEN, dtype=dtype),
        "decoder_weight": 0.3 * torch.randn(VOCAB, HIDDEN, dtype=dtype),
        "mlm_positions": torch.randperm(tokens)[:masked],
        "mlm_targets": torch.randint(VOCAB, (masked,)),
        # neighbouring spans share a token
        "span_boundaries": torch.stack([starts, starts + 5], dim=1),
        "cu_span_lengths": cu_span_lengths,
        "sbo_targets": torch.randint(VOCAB, (sum(lengths),)),
    }


def run(loss, batch, denominators=Denominators(), return_predictions=False):  # noqa: B008
    targets = SpanTargets(*(batch[name] for name in SpanTargets._fields))
    return loss(
        batch["hidden_states"], batch["decoder_weight"], targets, denominators, return_predictions
    )


def naive(loss, batch, sbo_weight=1.0, offset=0, mlm_divisor=None, sbo_divisor=None):
    """The released code's way: all scores at all 20 places of every span, with padding ignored."""
    mlm, sbo = loss.predictions, loss.span_boundary
    x, decoder = batch["hidden_states"].flatten(0, -2), batch["decoder_weight"]

    dense, norm = mlm.transform.dense, mlm.transform.LayerNorm
    h = F.layer_norm(
        F.gelu(x @ dense.weight.t() + dense.bias), (HIDDEN,), norm.weight, norm.bias, 1e-12
    )
    labels = torch.full((len(x),), -100)
    labels[batch["mlm_positions"]] = batch["mlm_targets"]
    mlm_scores = h @ decoder.t() + mlm.bias
    mlm_sum = F.cross_entropy(mlm_scores, labels, ignore_index=-100, reduction="sum")

    left, right = (x[ends][:, None].expand(-1, PLACES, -1) for ends in batch["span_boundaries"].t())
    places = sbo.position_embeddings.weight.expand(len(left), -1, -1)
    h = torch.cat([left, right, places], dim=-1)
    for linear, norm in ((sbo.linear1, sbo.layer_norm1), (sbo.linear2, sbo.layer_norm2)):
        h = F.gelu(h @ linear.weight.t() + linear.bias)
        h = F.layer_norm(h, (HIDDEN,), norm.weight, norm.bias, 1e-12)
    labels = torch.full((len(left), PLACES), -100)
    bounds = batch["cu_span_lengths"].tolist()
    for span, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        labels[span, : end - start] = batch["sbo_targets"][start:end]
    sbo_scores = h @ decoder.t() + sbo.bias
    sbo_sum = F.cross_entropy(
        sbo_scores.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    mlm_count, sbo_count = len(batch["mlm_targets"]), len(batch["sbo_targets"])
    mlm_divisor = mlm_count if mlm_divisor is None else mlm_divisor
    sbo_divisor = sbo_count if sbo_divisor is None else sbo_divisor
    total = mlm_sum / mlm_divisor + sbo_weight * sbo_sum / (sbo_divisor + offset)
    predictions = (
        mlm_scores[batch["mlm_positions"]].argmax(1),
        sbo_scores[labels != -100].argmax(1),
    )
    return total, mlm_sum / mlm_count, sbo_sum / sbo_count, *predictions


def gradients(value, loss, batch):
    """Gradients by name: of hidden states, decoder weight and every parameter that a loss reads."""
    leaves = {name: batch[name] for name in ("hidden_states", "decoder_weight")}
    leaves |= {
        name: p for name, p in loss.named_parameters() if not name.endswith("decoder.weight")
    }
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def with_gradients(batch):
    for name in ("hidden_states", "decoder_weight"):
        batch[name].requires_grad_()
    return batch


@pytest.mark.parametrize("sbo_weight, offset", [(1.0, 0), (1.0, 1), (0.25, 0)])
def test_equals_the_naive_form(sbo_weight, offset):
    loss = build(sbo_weight=sbo_weight, denominator_offset=offset)
    batch = with_gradients(make_batch())
    got = run(loss, batch, return_predictions=True)
    expected = naive(loss, batch, sbo_weight, offset)
    close = {"rtol": 1e-11, "atol": 1e-11}
    for value, truth in zip(got[:3], expected[:3], strict=True):
        torch.testing.assert_close(value, truth, **close)
    assert got.mlm_count.item() == 17 and got.sbo_count.item() == sum(LENGTHS)
    assert_bitwise_equal(got.mlm_predictions, expected[3])
    assert_bitwise_equal(got.sbo_predictions, expected[4])
    ours, theirs = gradients(got.loss, loss, batch), gradients(expected[0], loss, batch)
    assert len(ours) == 17
    torch.testing.assert_close(ours, theirs, **close)


def test_fp32_no_worse_than_the_naive_form():
    exact, exact_batch = build(), with_gradients(make_batch())
    loss = build(torch.float32)
    loss.load_state_dict(exact.state_dict())
    batch = with_gradients(
        {n: t.detach().float() if t.is_floating_point() else t for n, t in exact_batch.items()}
    )
    exact.load_state_dict(loss.state_dict())  # the truth is computed from the rounded values
    with torch.no_grad():
        for name in ("hidden_states", "decoder_weight"):
            exact_batch[name].copy_(batch[name])
    truth = gradients(naive(exact, exact_batch)[0], exact, exact_batch)
    ours = gradients(run(loss, batch).loss, loss, batch)
    theirs = gradients(naive(loss, batch)[0], loss, batch)
    for name in truth:
        # Some gradients sum tens of rows, and the peer may be exact by luck: a few units in the
        # last place of the largest value.
        floor = 8 * torch.finfo(torch.float32).eps * truth[name].abs().max().item()
        assert_no_worse_than(ours[name], theirs[name], truth[name], floor=floor, name=name)


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_given_denominators_take_the_place_of_the_counts(kind):
    loss = build(denominator_offset=1)
    batch = make_batch()
    got = run(loss, batch, Denominators(mlm=kind(100), sbo=kind(64)))
    expected = naive(loss, batch, 1.0, 1, mlm_divisor=100, sbo_divisor=64)
    torch.testing.assert_close(got.loss, expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(got.mlm_loss, expected[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(got.sbo_loss, expected[2], rtol=1e-12, atol=0)
    assert got.loss.requires_grad and not got.mlm_loss.requires_grad


def test_parts_of_a_batch_sum_to_the_whole():
    """In gradient accumulation, shared denominators make the parts add up to the batch's loss."""
    loss, batch = build(), make_batch()
    whole = run(loss, batch).loss
    cut, spans = 9, 2
    first, second = dict(batch), dict(batch)
    targets = sum(LENGTHS[:spans])
    for name, at in (
        ("mlm_positions", cut),
        ("mlm_targets", cut),
        ("span_boundaries", spans),
        ("sbo_targets", targets),
    ):
        first[name], second[name] = batch[name][:at], batch[name][at:]
    first["cu_span_lengths"] = batch["cu_span_lengths"][: spans + 1]
    second["cu_span_lengths"] = batch["cu_span_lengths"][spans:] - targets
    counts = Denominators(mlm=17, sbo=sum(LENGTHS))
    parts = run(loss, first, counts).loss + run(loss, second, counts).loss
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "denominators",
    [
        Denominators(),
        Denominators(mlm=0, sbo=0.0),
        Denominators(mlm=torch.tensor(0), sbo=torch.tensor(0.0)),
        Denominators(mlm=7, sbo=torch.tensor(9)),
    ],
)
@pytest.mark.parametrize("lengths, masked", [([], 0), ([0, 0], 0), ([], 5), ([2, 1], 0)])
def test_without_targets_the_loss_is_zero_and_gradients_are_defined(lengths, masked, denominators):
    loss = build()
    batch = with_gradients(make_batch(lengths=lengths, masked=masked))
    got = run(loss, batch, denominators)
    assert math.isfinite(got.loss.item())
    if not masked and not sum(lengths):
        assert got.loss.item() == 0
    if not masked:
        assert got.mlm_loss.item() == 0 and got.mlm_count.item() == 0
    if not sum(lengths):
        assert got.sbo_loss.item() == 0 and got.sbo_count.item() == 0
    for name, gradient in gradients(got.loss, loss, batch).items():
        assert torch.isfinite(gradient).all(), name
        if name.startswith("span_boundary") and not sum(lengths):
            assert not gradient.any(), name


def test_padded_hidden_states_are_numbered_through():
    loss, batch = build(), make_batch()
    padded = {**batch, "hidden_states": batch["hidden_states"].view(4, 15, HIDDEN)}
    assert_bitwise_equal(run(loss, padded).loss, run(loss, batch).loss)
    head = loss.predictions
    assert_bitwise_equal(
        head.logits(padded["hidden_states"]).flatten(0, 1), head.logits(batch["hidden_states"])
    )


def test_autocast_and_compile():
    loss, batch = build(torch.float32), make_batch(torch.float32)
    exact = run(loss, batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run(loss, batch).loss
    assert rounded.dtype == torch.float32 and rounded != exact
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, batch).loss, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"mlm_targets": torch.zeros(3).long()}, ValueError, r"mlm_targets must have .* \(17,\)"),
        ({"mlm_positions": torch.zeros(17)}, TypeError, "mlm_positions must be int64, got .*float"),
        ({"mlm_positions": torch.full((17,), -1)}, ValueError, r"mlm_positions must be in \[0, 60"),
        (
            {"span_boundaries": torch.zeros(7, 3).long()},
            ValueError,
            r"span_boundaries must have shape \(num_spans, 2\), got \(7, 3\)",
        ),
        (
            {"span_boundaries": torch.full((5, 2), 60)},
            ValueError,
            r"span_boundaries must be in \[0, 60\), got 60",
        ),
        ({"sbo_targets": torch.zeros(25).long()}, ValueError, "cu_span_lengths must end at 25"),
        ({"sbo_targets": torch.zeros(1, 26).long()}, ValueError, "sbo_targets must have shape"),
        ({"mlm_targets": torch.full((17,), VOCAB)}, ValueError, r"targets must be in \[0, 83\)"),
    ],
)
def test_bad_input(changed, error, message):
    with pytest.raises(error, match=message):
        run(build(), {**make_batch(), **changed})
