"""Triton kernels of `span_boundary_gather`."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.column_sums import column_sums, split_rows
from spanbert_fast.kernels.normal import gelu, gelu_slope
from spanbert_fast.kernels.rows import (
    contiguous,
    layer_norm_slope,
    load_row,
    row_options,
    row_statistics,
)
from spanbert_fast.kernels.tile_config import tile_for


@triton.jit
def _segment(cu_span_lengths, span, num_spans, num_targets, num_places):
    """(first target, number of targets) of a span, within the tensors; past the last span 0."""
    real = span < num_spans
    start = tl.maximum(tl.load(cu_span_lengths + span, mask=real, other=0), 0)
    stop = tl.load(cu_span_lengths + span + 1, mask=real, other=0)
    return start, tl.minimum(tl.minimum(stop, num_targets) - start, num_places)


@triton.jit(do_not_specialize=["num_spans", "num_targets"])
def _span_boundary_gather_fwd_kernel(
    spans,
    places,
    cu_span_lengths,
    weight,
    bias,
    y,
    mean,
    rstd,
    num_spans,
    num_targets,
    num_places,
    width,
    eps,
    SHORT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y[t] = LN(GELU(spans[s] + places[k])) weight + bias for target t at place k of span s.

    One program makes a span's targets one after another, each row whole in registers: (BLOCK,)
    with BLOCK >= width. Grid: (num_spans,). Bytes: spans read and y written once; places come from
    the cache. Joshi et al. 2020 (arXiv 1907.10529), section 3.2.
    """
    span = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    fits = column < width
    start, count = _segment(cu_span_lengths, span, num_spans, num_targets, num_places)
    of_span = load_row(spans, span * width + column, fits)
    w = load_row(weight, column, fits)
    b = load_row(bias, column, fits)
    for k in range(count):
        target = (start + k).to(tl.int64)
        z = gelu(of_span + load_row(places, k * width + column, fits), SHORT)
        m, s = row_statistics(z, fits, width, eps)
        out = (z - m) * s * w + b
        tl.store(y + target * width + column, out.to(y.dtype.element_ty), mask=fits)
        tl.store(mean + target, m)
        tl.store(rstd + target, s)


@triton.jit(do_not_specialize=["num_spans", "num_targets", "steps"])
def _span_boundary_gather_bwd_kernel(
    dy,
    spans,
    places,
    cu_span_lengths,
    weight,
    mean,
    rstd,
    dz,
    dspans,
    partial_weight,
    partial_bias,
    num_spans,
    num_targets,
    num_places,
    width,
    steps,
    SHORT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dz[t] = GELU'(z) LN'(dy[t]) in fp32; dspans[s] = its sum over s; parts of dweight and dbias.

    One program goes through `steps` spans and their targets in order, each row whole in registers,
    (BLOCK,). Grid: (parts,). Bytes: dy and spans read, dz (fp32) and dspans written once.
    """
    part = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    fits = column < width
    w = load_row(weight, column, fits)
    dweight = tl.zeros((BLOCK,), tl.float32)
    dbias = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        span = part * steps + step
        real = fits & (span < num_spans)
        start, count = _segment(cu_span_lengths, span, num_spans, num_targets, num_places)
        of_span = load_row(spans, span * width + column, real)
        dspan = tl.zeros((BLOCK,), tl.float32)
        for k in range(count):
            target = (start + k).to(tl.int64)
            z = of_span + load_row(places, k * width + column, fits)
            g = load_row(dy, target * width + column, fits)
            d, normed = layer_norm_slope(
                g,
                gelu(z, SHORT),
                w,
                tl.load(mean + target),
                tl.load(rstd + target),
                fits,
                width,
            )
            d *= gelu_slope(z, SHORT)
            dweight += g * normed
            dbias += g
            dspan += d
            tl.store(dz + target * width + column, d, mask=fits)
        tl.store(dspans + span * width + column, dspan.to(dspans.dtype.element_ty), mask=real)
    at = part * width + column
    tl.store(partial_weight + at, dweight, mask=fits)
    tl.store(partial_bias + at, dbias, mask=fits)


@triton.jit(do_not_specialize=["num_spans", "num_targets", "steps"])
def _place_sums_kernel(
    dz,
    cu_span_lengths,
    dplaces,
    num_spans,
    num_targets,
    num_places,
    width,
    steps,
    SPANS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dplaces[k] = the sum of dz over the spans that have a place k, in a fixed order.

    One program sums COLUMNS columns of one place, SPANS spans at a time: tiles (SPANS, COLUMNS).
    Grid: (num_places, width / COLUMNS). Bytes: dz read once.
    """
    place = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((SPANS, COLUMNS), tl.float32)
    for step in range(steps):
        span = step * SPANS + tl.arange(0, SPANS)
        start, count = _segment(cu_span_lengths, span, num_spans, num_targets, num_places)
        inside = (place < count)[:, None] & (column < width)[None, :]
        at = (start + place).to(tl.int64)[:, None] * width + column[None, :]
        total += tl.load(dz + at, mask=inside, other=0.0)
    out = tl.sum(total, 0).to(dplaces.dtype.element_ty)
    tl.store(dplaces + place.to(tl.int64) * width + column, out, mask=column < width)


def span_boundary_gather_fwd(inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd) of the op's `GatherInputs`."""
    spans, places, cu_span_lengths, num_targets, weight, bias, eps = inputs
    num_spans, width = spans.shape
    y = torch.empty((num_targets, width), dtype=spans.dtype, device=spans.device)
    mean = torch.empty((num_targets, 1), dtype=torch.float32, device=spans.device)
    rstd = torch.empty_like(mean)
    if y.numel() == 0 or num_spans == 0:
        return y.zero_(), mean.zero_(), rstd.zero_()
    _span_boundary_gather_fwd_kernel[(num_spans,)](
        *contiguous(spans, places, cu_span_lengths, weight, bias),
        y,
        mean,
        rstd,
        num_spans,
        num_targets,
        places.shape[0],
        width,
        eps,
        SHORT=spans.element_size() == 2,
        **row_options("span_boundary_gather_fwd", spans.device, width),
    )
    return y, mean, rstd


def span_boundary_gather_bwd(
    dy: torch.Tensor, inputs, mean: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dspans, dplaces, dweight, dbias), summed in fp32, of the op's `GatherInputs`."""
    spans, places, cu_span_lengths, _, weight, bias, _ = inputs
    dy, spans, places, cu_span_lengths, weight, bias, mean, rstd = contiguous(
        dy, spans, places, cu_span_lengths, weight, bias, mean, rstd
    )
    num_targets, width = dy.shape
    num_spans, num_places = spans.shape[0], places.shape[0]
    dspans, dplaces, dweight, dbias = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (spans, places, weight, bias)
    )
    dz = torch.empty((num_targets, width), dtype=torch.float32, device=dy.device)
    parts, steps = split_rows(num_spans)
    partial = torch.empty((2, parts, width), dtype=torch.float32, device=dy.device)
    if partial.numel():
        _span_boundary_gather_bwd_kernel[(parts,)](
            dy,
            spans,
            places,
            cu_span_lengths,
            weight,
            mean,
            rstd,
            dz,
            dspans,
            *partial,
            num_spans,
            num_targets,
            num_places,
            width,
            steps,
            SHORT=spans.element_size() == 2,
            **row_options("span_boundary_gather_bwd", dy.device, width),
        )
    if dplaces.numel():
        t = tile_for("place_sums", dy.device)
        grid = (num_places, triton.cdiv(width, t.blocks["COLUMNS"]))
        _place_sums_kernel[grid](
            dz,
            cu_span_lengths,
            dplaces,
            num_spans,
            num_targets,
            num_places,
            width,
            triton.cdiv(num_spans, t.blocks["SPANS"]),
            **t.blocks,
            num_warps=t.num_warps,
        )
    column_sums(partial, dweight, dbias)
    return dspans, dplaces, dweight, dbias
