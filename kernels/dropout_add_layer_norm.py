"""Triton kernels of `dropout_add_layer_norm`."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.column_sums import column_sums, split_rows
from spanbert_fast.kernels.hidden_dropout import keep_row
from spanbert_fast.kernels.tile_config import tile_for


@triton.jit
def row_statistics(z, fits, width, eps):
    """(mean, 1 / sqrt(var + eps)) of the elements of a row that `fits` marks; z is 0 elsewhere."""
    mean = tl.sum(z, 0) / width
    centred = tl.where(fits, z - mean, 0.0)  # a large mean must not cancel the variance
    return mean, 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)


@triton.jit
def layer_norm_slope(dy, z, weight, mean, rstd, fits, width):
    """(dz, normalised z) of y = weight (z - mean) rstd + bias; 0 outside `fits`."""
    normed = tl.where(fits, (z - mean) * rstd, 0.0)
    g = dy * weight
    return (g - tl.sum(g, 0) / width - normed * (tl.sum(g * normed, 0) / width)) * rstd, normed


@triton.jit
def _load(pointer, at, fits):
    return tl.load(pointer + at, mask=fits, other=0.0).to(tl.float32)


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
    Absent: x_bias, seed (no dropout), row_numbers. Bytes: x, residual read and y written once.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    fits = column < width
    at = row * width + column
    z = _load(x, at, fits)
    r = _load(residual, at, fits)
    if x_bias is not None:
        z += _load(x_bias, column, fits)
    if seed is not None:
        number = row
        if row_numbers is not None:
            number = tl.load(row_numbers + row)
        keep = keep_row(tl.load(seed), site, number, width, threshold, BLOCK, WHOLE)
        z = tl.where(keep, z * scale, 0.0)
    z += r
    m, s = row_statistics(z, fits, width, eps)
    out = (z - m) * s * _load(weight, column, fits) + _load(bias, column, fits)
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

    The sum z is made again from x and residual. One program goes down `steps` rows, each whole in
    registers, (BLOCK,), and keeps three sums there. Grid: (parts,).
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
        g = _load(dy, at, inside)
        z = _load(x, at, inside)
        r = _load(residual, at, inside)
        m = tl.load(mean + row, mask=row < rows, other=0.0)
        s = tl.load(rstd + row, mask=row < rows, other=0.0)
        if x_bias is not None:
            z += _load(x_bias, column, fits)
        if seed is not None:
            number = row
            if row_numbers is not None:
                number = tl.load(row_numbers + row, mask=row < rows, other=0)
            keep = keep_row(tl.load(seed), site, number, width, threshold, BLOCK, WHOLE)
            z = tl.where(keep, z * scale, 0.0)
        z += r
        w = _load(weight, column, fits)  # from the cache: registers are few
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


def _scale(threshold: int) -> float:
    return 256 / (256 - threshold)


def launch_dropout_add_layer_norm_fwd(
    x, residual, weight, bias, x_bias, seed, row_numbers, y, mean, rstd, threshold, site, eps
) -> None:
    """Into given y (rows, width) and mean, rstd (rows, 1); all contiguous."""
    rows, width = x.shape
    if x.numel() == 0:
        mean.zero_()
        rstd.zero_()
        return
    t = tile_for("dropout_add_layer_norm_fwd", x.device, width=width)
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
        _scale(threshold),
        site,
        eps,
        BLOCK=triton.next_power_of_2(width),
        WHOLE=width % 256 == 0,
        num_warps=t.num_warps,
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
    """Into given dx, dresidual (rows, width), dweight, dbias, dx_bias (width,); all contiguous."""
    rows, width = x.shape
    parts, steps = split_rows(rows)
    partial = torch.empty((3, parts, width), dtype=torch.float32, device=x.device)
    if x.numel():
        t = tile_for("dropout_add_layer_norm_bwd", x.device, width=width)
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
            _scale(threshold),
            site,
            BLOCK=triton.next_power_of_2(width),
            WHOLE=width % 256 == 0,
            num_warps=t.num_warps,
        )
    column_sums(partial[0], dweight)
    column_sums(partial[1], dbias)
    if x_bias is not None:
        column_sums(partial[2], dx_bias)


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


def contiguous(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Each tensor with its last dimension dense; None stays None."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]
