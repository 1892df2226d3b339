"""Triton kernels of `span_representation`: a gather, and the scatter that is its gradient."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.tile_config import tile_for


@triton.jit
def _copy(source, row, target, at, width, BLOCK: tl.constexpr):
    """target[at : at + width] = source[row]."""
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(source + row * width + column, mask=column < width)
        tl.store(target + at + column, x, mask=column < width)


@triton.jit
def _span_representation_fwd_kernel(
    firsts,
    lasts,
    inner,
    logits,
    starts,
    ends,
    y,
    lse,
    a,
    b,
    c,
    BLOCK: tl.constexpr,
):
    """y[s] = [firsts[start]; lasts[end]; sum_t softmax(logits[start..end])_t inner[t]].

    One program makes a span, BLOCK columns at a time. Grid: (spans,). Bytes: the span's rows read
    and y written once. Lee et al. 2017 (arXiv 1707.07045), section 4. May be None: inner, logits.
    """
    span = tl.program_id(0).to(tl.int64)
    start = tl.load(starts + span)
    end = tl.load(ends + span)
    at = span * (a + b + c)
    _copy(firsts, start, y, at, a, BLOCK)
    _copy(lasts, end, y, at + a, b, BLOCK)
    if inner is not None:
        high = tl.load(logits + start)
        for t in range(start + 1, end + 1):
            high = tl.maximum(high, tl.load(logits + t))
        total = high * 0.0
        for t in range(start, end + 1):
            total += tl.exp(tl.load(logits + t) - high)
        of_span = high + tl.log(total)
        tl.store(lse + span, of_span)
        for first in range(0, c, BLOCK):
            column = first + tl.arange(0, BLOCK)
            fits = column < c
            mean = tl.zeros((BLOCK,), tl.float32)
            for t in range(start, end + 1):
                x = tl.load(inner + t * c + column, mask=fits, other=0.0).to(tl.float32)
                mean += tl.exp(tl.load(logits + t) - high) / total * x
            tl.store(y + at + a + b + column, mean.to(y.dtype.element_ty), mask=fits)


@triton.jit
def _sum_of_spans(dy, spans, bounds, row, total, offset, width, out, BLOCK: tl.constexpr):
    """out[row] = the sum of dy[s, offset : offset + width] over the row's spans s, in fp32."""
    begin = tl.load(bounds + row)
    end = tl.load(bounds + row + 1)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        sums = tl.zeros((BLOCK,), tl.float32)
        for i in range(begin, end):
            at = tl.load(spans + i) * total + offset + column
            sums += tl.load(dy + at, mask=column < width, other=0.0).to(tl.float32)
        at = row * width + column
        tl.store(out + at, sums.to(out.dtype.element_ty), mask=column < width)


@triton.jit
def _span_representation_bwd_kernel(
    dy,
    inner,
    logits,
    ends,
    lse,
    along,
    by_start,
    start_bounds,
    by_end,
    end_bounds,
    reaching,
    dfirsts,
    dlasts,
    dinner,
    dlogits,
    a,
    b,
    c,
    BLOCK: tl.constexpr,
):
    """The gradients of one row, summed over the spans that start at it, end at it or contain it.

    In the order of their starts, the spans that contain row t lie between reaching[t] (all spans
    before it end before t) and start_bounds[t + 1]. Grid: (rows,). May be None: inner and what
    belongs to it.
    """
    row = tl.program_id(0).to(tl.int64)
    total = a + b + c
    _sum_of_spans(dy, by_start, start_bounds, row, total, 0, a, dfirsts, BLOCK)
    _sum_of_spans(dy, by_end, end_bounds, row, total, a, b, dlasts, BLOCK)
    if inner is not None:
        begin = tl.load(reaching + row)
        end = tl.load(start_bounds + row + 1)
        logit = tl.load(logits + row)
        dlogit = logit * 0.0
        for first in range(0, c, BLOCK):
            column = first + tl.arange(0, BLOCK)
            fits = column < c
            x = tl.load(inner + row * c + column, mask=fits, other=0.0).to(tl.float32)
            sums = tl.zeros((BLOCK,), tl.float32)
            for i in range(begin, end):
                span = tl.load(by_start + i)
                over = tl.load(ends + span) >= row
                weight = tl.where(over, tl.exp(logit - tl.load(lse + span)), 0.0)
                at = span * total + a + b + column
                d = tl.load(dy + at, mask=fits & over, other=0.0).to(tl.float32)
                sums += weight * d
                dlogit += weight * tl.sum(d * x, 0)
                if first == 0:
                    dlogit -= weight * tl.load(along + span)
            at = row * c + column
            tl.store(dinner + at, sums.to(dinner.dtype.element_ty), mask=fits)
        tl.store(dlogits + row, dlogit)


def _order(rows_of_spans: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(the spans sorted by their row, where each row's spans begin (rows + 1,)), int64."""
    in_order, spans = rows_of_spans.sort(stable=True)
    every = torch.arange(rows + 1, device=spans.device)
    return spans, torch.searchsorted(in_order, every)


def _widths(inputs) -> tuple[int, int, int]:
    inner = inputs.inner
    return inputs.firsts.shape[1], inputs.lasts.shape[1], 0 if inner is None else inner.shape[1]


def span_representation_fwd(inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, lse) of the op's `SpanInputs`."""
    firsts, lasts, inner, logits, starts, ends = (
        None if t is None else t.contiguous() for t in inputs
    )
    widths, spans = _widths(inputs), starts.shape[0]
    y = torch.empty((spans, sum(widths)), dtype=firsts.dtype, device=firsts.device)
    lse = torch.empty((0 if inner is None else spans,), dtype=torch.float32, device=firsts.device)
    if spans:
        t = tile_for("span_representation", firsts.device)
        _span_representation_fwd_kernel[(spans,)](
            firsts, lasts, inner, logits, starts, ends, y, lse, *widths,
            **t.blocks, num_warps=t.num_warps,
        )  # fmt: skip
    return y, lse


def span_representation_bwd(
    dy: torch.Tensor, inputs, y: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dfirsts, dlasts, dinner, dlogits) of the op's `SpanInputs`; (0,) where an input is None."""
    firsts, lasts, inner, logits, starts, ends = inputs
    a, b, c = _widths(inputs)
    rows, device, dy = firsts.shape[0], firsts.device, dy.contiguous()
    dfirsts, dlasts = (torch.empty(t.shape, dtype=t.dtype, device=device) for t in (firsts, lasts))
    dinner = torch.empty((0,) if inner is None else inner.shape, dtype=dy.dtype, device=device)
    dlogits = torch.empty(
        (0,) if logits is None else logits.shape, dtype=torch.float32, device=device
    )
    if rows == 0:
        return dfirsts, dlasts, dinner, dlogits
    by_start, start_bounds = _order(starts, rows)
    by_end, end_bounds = _order(ends, rows)
    along = reaching = None
    if inner is not None:
        along = (dy[:, a + b :].float() * y[:, a + b :].float()).sum(1)
        furthest = ends[by_start].cummax(0).values if len(ends) else ends
        reaching = torch.searchsorted(furthest, torch.arange(rows, device=device))
    t = tile_for("span_representation", device)
    _span_representation_bwd_kernel[(rows,)](
        dy,
        None if inner is None else inner.contiguous(),
        None if logits is None else logits.contiguous(),
        ends.contiguous(),
        lse,
        along,
        by_start,
        start_bounds,
        by_end,
        end_bounds,
        reaching,
        dfirsts,
        dlasts,
        dinner,
        dlogits,
        a,
        b,
        c,
        **t.blocks,
        num_warps=t.num_warps,
    )
    return dfirsts, dlasts, dinner, dlogits
