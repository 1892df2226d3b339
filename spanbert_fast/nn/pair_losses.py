"""The pair-likelihood losses, over the probabilities of tokens inside and outside spans."""

import math
from typing import NamedTuple

import torch

from spanbert_fast.ops import _checks
from spanbert_fast.ops._precision import opmath_dtype

FORMS = ("printed", "likelihood")


class SpanPairLosses(NamedTuple):
    """Both losses, 0-dim, summed over tokens; fp32 (fp64 for fp64).

    Attributes:
        negative: small where tokens in spans are likely.
        positive: small where tokens in spans are unlikely.
    """

    negative: torch.Tensor
    positive: torch.Tensor


def span_pair_losses(
    log_p: torch.Tensor, in_span: torch.Tensor, form: str = "printed"
) -> SpanPairLosses:
    """Pair-likelihood losses over the tokens S in spans and O outside them.

    As printed in the article:

        L_negative = -sum_S log p + sum_O log(1 - p)
        L_positive = -sum_S log(1 - p) + sum_O log p

    The printed form has no lower bound: its second sums are at most 0, and minimising them drives
    log(1 - p), or log p, of a single token outside the spans to minus infinity, whatever happens to
    the others. Evaluate it, but do not train on it. `form="likelihood"` turns the sign of the
    second sums: -sum_O log(1 - p) and -sum_O log p. This is the negative log-likelihood of "each
    token in S occurs and none in O does" (and of the opposite). It is at least 0 and can be trained
    on.

        >>> log_p, in_span = torch.tensor([0.5, 0.5]).log(), torch.tensor([True, False])
        >>> span_pair_losses(log_p, in_span, form="likelihood").negative  # 2 log 2
        tensor(1.3863)

    Args:
        log_p: log-probability of each token, floating, any shape; for example minus the losses of
            `linear_cross_entropy`.
        in_span: bool, of the same shape.
        form: "printed" or "likelihood".

    Returns:
        (negative, positive). log(1 - p) is computed without cancellation. A log_p nearer to 0 than
        8 units of rounding is only noise of the log-softmax. It counts as that limit and has no
        gradient, so that losses and gradients stay finite where p rounds to 1.

    Raises:
        ValueError, TypeError: the form is unknown, the shapes differ, or a dtype is another.
    """
    _checks.check_floating("log_p", log_p)
    _checks.check_shape("in_span", in_span, tuple(log_p.shape))
    if in_span.dtype != torch.bool:
        raise TypeError(f"in_span must be bool, got {in_span.dtype}")
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    log_p = log_p.to(opmath_dtype(log_p.dtype))
    log_not_p = _log1mexp(log_p)
    sign = 1 if form == "printed" else -1
    # where, not a product with 0: log p = -inf of a token in the other sum would give NaN
    negative = torch.where(in_span, -log_p, sign * log_not_p).sum()
    positive = torch.where(in_span, -log_not_p, sign * log_p).sum()
    return SpanPairLosses(negative, positive)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x <= 0 (Maechler, "Accurately computing log(1 - exp(-|a|))", 2012)."""
    x = x.clamp(max=-8 * torch.finfo(x.dtype).eps)
    return torch.where(x > -math.log(2), (-x.expm1()).log(), (-x.exp()).log1p())
