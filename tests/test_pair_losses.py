"""span_pair_losses against the printed formulas in exact arithmetic, with p up to its limits."""

import math
from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from spanbert_fast.nn import span_pair_losses


def log(value: Fraction) -> float:
    """The log of a fraction whose numerator and denominator may not fit into floats."""
    return math.log(value.numerator) - math.log(value.denominator)


def by_hand(probabilities, in_span, form):
    """The paper's sums, term by term, from the exact 1 - p."""
    sign = 1 if form == "printed" else -1
    negative = positive = 0.0
    for p, inside in zip(probabilities, in_span, strict=True):
        if inside:
            negative -= log(p)
            positive -= log(1 - p)
        else:
            negative += sign * log(1 - p)
            positive += sign * log(p)
    return negative, positive


@pytest.mark.parametrize("form", ["printed", "likelihood"])
def test_the_formulas(form):
    # p from 10^-40 to 1 - 10^-9, on both sides of 1/2
    tiny, nearly = Fraction(1, 10**40), 1 - Fraction(1, 10**9)
    probabilities = [tiny, nearly, Fraction(1, 3), Fraction(2, 3), nearly, tiny, Fraction(1, 2)]
    in_span = [True, True, False, True, False, False, False]
    log_p = [math.log1p(-float(1 - p)) if p > Fraction(1, 2) else log(p) for p in probabilities]
    got = span_pair_losses(torch.tensor(log_p, dtype=torch.float64), torch.tensor(in_span), form)
    expected = by_hand(probabilities, in_span, form)
    assert got.negative.item() == pytest.approx(expected[0], rel=1e-12)
    assert got.positive.item() == pytest.approx(expected[1], rel=1e-12)


@pytest.mark.parametrize("p", [1e-40, 1e-20, 1e-9, 0.3, 0.49, 0.51, 0.9])
def test_each_token_to_its_last_digits(p):
    """-log(1 - p) of a single token, without larger terms that would hide its error."""
    log_p = torch.tensor([math.log(p)], dtype=torch.float64)
    got = span_pair_losses(log_p, torch.tensor([True]))
    assert got.positive.item() == pytest.approx(-math.log1p(-p), rel=1e-13)


def test_the_printed_form_is_the_default_and_is_not_bounded():
    log_p = torch.tensor([-1.0, -1e-6], dtype=torch.float64)
    in_span = torch.tensor([True, False])
    assert span_pair_losses(log_p, in_span) == span_pair_losses(log_p, in_span, "printed")
    assert span_pair_losses(log_p, in_span).negative < 0
    assert span_pair_losses(torch.tensor([-1e4]), torch.tensor([False])).positive == -1e4


def test_likelihood_is_the_binary_cross_entropy():
    scores = 4 * torch.randn(3, 50, dtype=torch.float64)
    in_span = torch.rand(3, 50) < 0.3
    got = span_pair_losses(F.logsigmoid(scores), in_span, form="likelihood")
    target = in_span.double()
    for value, expected in (
        (got.negative, F.binary_cross_entropy_with_logits(scores, target, reduction="sum")),
        (got.positive, F.binary_cross_entropy_with_logits(scores, 1 - target, reduction="sum")),
    ):
        assert value >= 0
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["printed", "likelihood"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_finite_where_p_rounds_to_one_or_is_tiny(dtype, form):
    log_p = torch.tensor([0.0, -0.0, -1e-30, -1e-8, -1e-3, -200.0, -3e4], dtype=dtype)
    for inside in (True, False):
        leaf = log_p.clone().requires_grad_()
        losses = span_pair_losses(leaf, torch.full((7,), inside), form)
        assert losses.negative.dtype == (dtype if dtype == torch.float64 else torch.float32)
        (losses.negative + 2 * losses.positive).backward()
        assert torch.isfinite(losses.negative) and torch.isfinite(losses.positive)
        assert torch.isfinite(leaf.grad).all()


def test_an_impossible_token_makes_no_nan_in_the_other_sum():
    log_p = torch.tensor([-torch.inf, -1.0], requires_grad=True)
    losses = span_pair_losses(log_p, torch.tensor([False, True]), "likelihood")
    assert losses.negative.item() == pytest.approx(1.0)  # log(1 - 0) = 0
    assert losses.positive.item() == math.inf
    losses.negative.backward()
    assert log_p.grad.tolist() == [0.0, -1.0]


def test_gradients():
    log_p = -torch.rand(8, dtype=torch.float64) * 3 - 0.01
    in_span = torch.arange(8) % 2 == 0
    for form in ("printed", "likelihood"):
        assert torch.autograd.gradcheck(
            lambda x, form=form: tuple(span_pair_losses(x, in_span, form)), log_p.requires_grad_()
        )


def test_no_token_gives_zero():
    losses = span_pair_losses(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert losses == (0, 0)


def test_bad_input():
    log_p, in_span = torch.zeros(3) - 1, torch.tensor([True, False, True])
    with pytest.raises(ValueError, match=r"in_span must have shape \(3,\), got \(2,\)"):
        span_pair_losses(log_p, in_span[:2])
    with pytest.raises(TypeError, match="in_span must be bool, got torch.int64"):
        span_pair_losses(log_p, in_span.long())
    with pytest.raises(TypeError, match="log_p must be float16.*got torch.int64"):
        span_pair_losses(log_p.long(), in_span)
    with pytest.raises(ValueError, match="form must be one of printed, likelihood, got 'bounded'"):
        span_pair_losses(log_p, in_span, form="bounded")
