"""Triton kernels of `dropout_add_layer_norm`."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.column_sums import column_sums, split_rows
from spanbert_fast.kernels.hidden_dropout import keep_row, keep_scale
from spanbert_fast.kernels.rows import (
    contiguous,
    layer_norm_slope,
    load_row,
    row_options,
    row_statistics,
)


@triton.jit(do_not_specialize=["site"])
def _dropout_add_layer_norm_fwd_kernel(
    x,
    residual,
    weight,
    bias,
    x_bias,
    seed,
    row_numbers,
    y,
    mean,
    rstd,
    width,
    threshold,
    scale,
    site,
    eps,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """y = LN(drop(x + x_bias) scale + residual) weight + bias, statistics in fp32.

    One program makes a row, whole in registers: (BLOCK,) with BLOCK >= width. Grid: (rows,).
    May be None: x_bias, seed (no dropout), row_numbers. Bytes: x, residual read and y written once.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    fits = column < width
    at = row * width + column
    z = load_row(x, at, fits)
    r = load_row(residual, at, fits)
    if x_bias is not None:
        z += load_row(x_bias, column, fits)
    if seed is not None:
        number = row
        if row_numbers is not None:
            number = tl.load(row_numbers + row)
        keep = keep_row(tl.load(seed), site, number, width, threshold, BLOCK, WHOLE)
        z = tl.where(keep, z * scale, 0.0)
    z += r
    m, s = row_statistics(z, fits, width, eps)
    out = (z - m) * s * load_row(weight, column, fits) + load_row(bias, column, fits)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=fits)
    tl.store(mean + row, m)
    tl.store(rstd + row, s)


@triton.jit(do_not_specialize=["rows", "steps", "site"])
def _dropout_add_layer_norm_bwd_kernel(
    dy,
    x,
    residual,
    weight,
    x_bias,
    seed,
    row_numbers,
    mean,
    rstd,
    dx,
    dresidual,
    partial_weight,
    partial_bias,
    partial_x_bias,
    rows,
    width,
    steps,
    threshold,
    scale,
    site,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """dresidual = LN'(dy), dx = drop(dresidual) scale; partial sums of dweight, dbias, dx_bias.

    The sum z is recomputed from x and residual. One program goes down `steps` rows, each whole in
    registers, (BLOCK,), beside the three sums. Grid: (parts,).
    Bytes: dy, x, residual read, dx and dresidual written once.
    """
    part = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    fits = column < width
    dweight = tl.zeros((BLOCK,), tl.float32)
    dbias = tl.zeros((BLOCK,), tl.float32)
    dx_bias = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        row = part * steps + step
        inside = fits & (row < rows)
        at = row * width + column
        g = load_row(dy, at, inside)
        z = load_row(x, at, inside)
        r = load_row(residual, at, inside)
        m = tl.load(mean + row, mask=row < rows, other=0.0)
        s = tl.load(rstd + row, mask=row < rows, other=0.0)
        if x_bias is not None:
            z += load_row(x_bias, column, fits)
        if seed is not None:
            number = row
            if row_numbers is not None:
                number = tl.load(row_numbers + row, mask=row < rows, other=0)
            keep = keep_row(tl.load(seed), site, number, width, threshold, BLOCK, WHOLE)
            z = tl.where(keep, z * scale, 0.0)
        z += r
        w = load_row(weight, column, fits)  # reloaded from the cache to save registers
        dz, normed = layer_norm_slope(g, z, w, m, s, inside, width)
        dweight += g * normed
        dbias += g
        tl.store(dresidual + at, dz.to(dresidual.dtype.element_ty), mask=inside)
        if seed is not None:
            dz = tl.where(keep, dz * scale, 0.0)
        tl.store(dx + at, dz.to(dx.dtype.element_ty), mask=inside)
        if x_bias is not None:
            dx_bias += tl.where(inside, dz, 0.0)
    at = part * width + column
    tl.store(partial_weight + at, dweight, mask=fits)
    tl.store(partial_bias + at, dbias, mask=fits)
    if x_bias is not None:
        tl.store(partial_x_bias + at, dx_bias, mask=fits)


def launch_dropout_add_layer_norm_fwd(
    x, residual, weight, bias, x_bias, seed, row_numbers, y, mean, rstd, threshold, site, eps
) -> None:
    """Fill y (rows, width) and mean, rstd (rows, 1); all contiguous."""
    rows, width = x.shape
    if x.numel() == 0:
        mean.zero_()
        rstd.zero_()
        return
    _dropout_add_layer_norm_fwd_kernel[(rows,)](
        x,
        residual,
        weight,
        bias,
        x_bias,
        seed if threshold else None,
        row_numbers if threshold else None,
        y,
        mean,
        rstd,
        width,
        threshold,
        keep_scale(threshold),
        site,
        eps,
        WHOLE=width % 256 == 0,
        **row_options("dropout_add_layer_norm_fwd", x.device, width),
    )


def launch_dropout_add_layer_norm_bwd(
    dy,
    x,
    residual,
    weight,
    x_bias,
    seed,
    row_numbers,
    mean,
    rstd,
    dx,
    dresidual,
    dweight,
    dbias,
    dx_bias,
    threshold,
    site,
) -> None:
    """Fill dx, dresidual (rows, width), dweight, dbias, dx_bias (width,); all contiguous."""
    rows, width = x.shape
    parts, steps = split_rows(rows)
    partial = torch.empty((3, parts, width), dtype=torch.float32, device=x.device)
    if x.numel():
        _dropout_add_layer_norm_bwd_kernel[(parts,)](
            dy,
            x,
            residual,
            weight,
            x_bias,
            seed if threshold else None,
            row_numbers if threshold else None,
            mean,
            rstd,
            dx,
            dresidual,
            *partial,
            rows,
            width,
            steps,
            threshold,
            keep_scale(threshold),
            site,
            WHOLE=width % 256 == 0,
            **row_options("dropout_add_layer_norm_bwd", x.device, width),
        )
    column_sums(partial, dweight, dbias, *([] if x_bias is None else [dx_bias]))


def dropout_add_layer_norm_fwd(inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y in residual's dtype, mean, rstd) of the op's `NormInputs`."""
    x, residual, weight, bias, x_bias, seed, rows, threshold, site, eps = inputs
    y = torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    mean = torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    tensors = contiguous(x, residual, weight, bias, x_bias, seed, rows)
    launch_dropout_add_layer_norm_fwd(*tensors, y, mean, rstd, threshold, site, eps)
    return y, mean, rstd


def dropout_add_layer_norm_bwd(
    dy: torch.Tensor, inputs, mean: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dresidual, dweight, dbias, dx_bias or (0,)) of the op's `NormInputs`."""
    x, residual, weight, bias, x_bias, seed, rows, threshold, site, _ = inputs
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dresidual = torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    dweight, dbias = (torch.empty(t.shape, dtype=t.dtype, device=x.device) for t in (weight, bias))
    dx_bias = torch.empty(
        0 if x_bias is None else x_bias.shape,
        dtype=(x if x_bias is None else x_bias).dtype,
        device=x.device,
    )
    tensors = contiguous(dy, x, residual, weight, x_bias, seed, rows, mean, rstd)
    outputs = (dx, dresidual, dweight, dbias, dx_bias)
    launch_dropout_add_layer_norm_bwd(*tensors, *outputs, threshold, site)
    return outputs
