"""`span_representation`: the vector of a span in coreference resolution, gathered from rows.

    y_s = [first[start_s]; last[end_s]; sum_t softmax(logits[start_s..end_s])_t inner[t]]

It joins the rows of the two boundary tokens and the span's head word, found by attention (Lee et
al. 2017, arXiv 1707.07045, equation 1 and section 4). Kirstain et al. 2021 (arXiv 2101.00434) have
no head word; the boundary rows are their m^s and m^e. `span_boundary_gather` gathers two boundaries
as well, but adds their rows, and normalises the sum for each target.

The backward scatters: dfirst[t] sums over the spans that begin at t, in the order of spans. With
c_s = dpooled_s . pooled_s and the weights p, dinner[t] = sum_s p_st dpooled_s and dlogits[t] =
sum_s p_st (dpooled_s . inner[t] - c_s), summed over the spans that contain t.
"""

from typing import NamedTuple

import torch

from spanbert_fast.ops import _checks
from spanbert_fast.ops._autograd import differentiable
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._precision import compute_dtype, opmath_dtype
from spanbert_fast.ops._register import register
from spanbert_fast.reference import span_representation as reference


def span_representation(
    firsts: torch.Tensor,
    lasts: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    *,
    inner: torch.Tensor | None = None,
    logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """[firsts[start]; lasts[end]; mean of inner[start..end] weighted by softmax(logits)] per span.

        >>> x, spans = torch.tensor([[1.0], [2.0], [3.0]]), (torch.tensor([0]), torch.tensor([2]))
        >>> span_representation(x, x, *spans, inner=x, logits=torch.zeros(3))
        tensor([[1., 3., 2.]])

    Args:
        firsts: (rows, a), floating.
        lasts: (rows, b), floating.
        starts, ends: int64 (spans,), rows, both inclusive, starts <= ends; in any order.
        inner: (rows, c), floating; given together with logits, or not at all.
        logits: (rows,), floating.

    Returns:
        (spans, a + b + c) in the dtype of firsts (autocast's under autocast); softmax and sums in
        fp32. Copies are exact.

    Raises:
        ValueError: shapes disagree, one of inner and logits is missing, or (checked on the CPU
            only) a span is not within the rows, or ends before it starts.
    """
    _checks.check_shape("firsts", firsts, ("rows", "features"))
    rows = firsts.shape[0]
    _checks.check_shape("lasts", lasts, (rows, "features"))
    given = [("firsts", firsts), ("lasts", lasts)]
    if (inner is None) != (logits is None):
        missing = "inner" if inner is None else "logits"
        raise ValueError(f"inner and logits must be given together, got no {missing}")
    if inner is not None and logits is not None:
        _checks.check_shape("inner", inner, (rows, "features"))
        _checks.check_shape("logits", logits, (rows,))
        given += [("inner", inner), ("logits", logits)]
    for name, tensor in given:
        _checks.check_floating(name, tensor)
        _checks.check_same_device(name, tensor, firsts, "firsts")
    _checks.check_shape("starts", starts, ("spans",))
    for name, index in (("starts", starts), ("ends", ends)):
        _checks.check_shape(name, index, tuple(starts.shape))
        _checks.check_integer(name, index, (torch.int64,))
        _checks.check_same_device(name, index, firsts, "firsts")
        _checks.check_ids(name, index, rows)
    _check_order(starts, ends)
    if runs_reference():
        return reference.span_representation(
            firsts, lasts, starts, ends, inner=inner, logits=logits
        )
    dtype = compute_dtype(firsts)
    return _span_representation(
        SpanInputs(
            firsts.to(dtype),
            lasts.to(dtype),
            None if inner is None else inner.to(dtype),
            None if logits is None else logits.to(opmath_dtype(dtype)),
            starts,
            ends,
        )
    )


def _check_order(starts: torch.Tensor, ends: torch.Tensor) -> None:
    if starts.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = (starts > ends).nonzero()
    if len(wrong):
        s = int(wrong[0, 0])
        raise ValueError(f"starts must be <= ends, got {starts[s]} and {ends[s]} at span {s}")


class SpanInputs(NamedTuple):
    """The arguments of the registered functions."""

    firsts: torch.Tensor
    lasts: torch.Tensor
    inner: torch.Tensor | None
    logits: torch.Tensor | None
    starts: torch.Tensor
    ends: torch.Tensor


def _places(inputs: SpanInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(span, row) of every row of every span, span by span."""
    lengths = inputs.ends - inputs.starts + 1
    span = torch.repeat_interleave(lengths)
    first = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return span, inputs.starts[span] + torch.arange(len(span), device=span.device) - first


def _weights(logits: torch.Tensor, span, row, lse) -> torch.Tensor:
    return (logits[row].to(lse.dtype) - lse[span]).exp()


def _composite_fwd(inputs: SpanInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, lse): lse (spans,) over each span's logits; (0,) without logits."""
    firsts, opmath = inputs.firsts, opmath_dtype(inputs.firsts.dtype)
    parts = [firsts[inputs.starts], inputs.lasts[inputs.ends]]
    if inputs.inner is None or inputs.logits is None:
        return torch.cat(parts, 1), firsts.new_empty((0,), dtype=opmath)
    span, row = _places(inputs)
    logits, spans = inputs.logits.to(opmath), len(inputs.starts)
    top = logits.new_full((spans,), -torch.inf).scatter_reduce(0, span, logits[row], "amax")
    sums = logits.new_zeros((spans,)).index_add(0, span, (logits[row] - top[span]).exp())
    lse = top + sums.log()
    weighted = _weights(logits, span, row, lse)[:, None] * inputs.inner[row].to(opmath)
    pooled = weighted.new_zeros((spans, weighted.shape[1])).index_add(0, span, weighted)
    return torch.cat([*parts, pooled.to(firsts.dtype)], 1), lse


def _composite_bwd(
    dy: torch.Tensor, inputs: SpanInputs, y: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dfirsts, dlasts, dinner, dlogits), summed in fp32; the last two (0,) without inner."""
    firsts, lasts, inner, logits, starts, ends = inputs
    width = sum(part.shape[1] for part in (firsts, lasts, inner) if part is not None)
    for name, of_spans in (("dy", dy), ("y", y)):
        _checks.check_shape(name, of_spans, (starts.shape[0], width))
    _checks.check_shape("lse", lse, (0 if inner is None else starts.shape[0],))
    opmath = opmath_dtype(firsts.dtype)
    dy = dy.to(opmath)
    a, b = firsts.shape[1], lasts.shape[1]

    def scattered(like, index, gradient):
        return torch.zeros_like(like, dtype=opmath).index_add(0, index, gradient).to(like.dtype)

    dfirsts = scattered(firsts, starts, dy[:, :a])
    dlasts = scattered(lasts, ends, dy[:, a : a + b])
    if inner is None or logits is None:
        return dfirsts, dlasts, firsts.new_empty((0,)), firsts.new_empty((0,), dtype=opmath)
    span, row = _places(inputs)
    dpooled, pooled = dy[:, a + b :], y[:, a + b :].to(opmath)
    weights = _weights(logits, span, row, lse)
    dinner = scattered(inner, row, weights[:, None] * dpooled[span])
    along = (dpooled[span] * inner[row].to(opmath)).sum(1) - (dpooled * pooled).sum(1)[span]
    return dfirsts, dlasts, dinner, scattered(logits, row, weights * along)


def _fake_fwd(inputs: SpanInputs):
    firsts, spans = inputs.firsts, inputs.starts.shape[0]
    width = firsts.shape[1] + inputs.lasts.shape[1]
    width += 0 if inputs.inner is None else inputs.inner.shape[1]
    summed = 0 if inputs.inner is None else spans
    lse = firsts.new_empty((summed,), dtype=opmath_dtype(firsts.dtype))
    return firsts.new_empty((spans, width)), lse


def _fake_bwd(dy, inputs: SpanInputs, y, lse):
    firsts, lasts, inner, logits = inputs[:4]
    return (
        firsts.new_empty(firsts.shape),
        lasts.new_empty(lasts.shape),
        firsts.new_empty((0,) if inner is None else inner.shape),
        lse.new_empty((0,)) if logits is None else logits.new_empty(logits.shape),
    )


_span_representation = differentiable(
    SpanInputs,
    register("span_representation_fwd", _composite_fwd, _fake_fwd),
    register("span_representation_bwd", _composite_bwd, _fake_bwd),
    gradients=("firsts", "lasts", "inner", "logits"),
    saves_result=True,
)
