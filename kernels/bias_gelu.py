"""Triton kernels of `bias_gelu`."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.column_sums import column_sums, split_rows
from spanbert_fast.kernels.normal import gelu, gelu_slope
from spanbert_fast.kernels.tile_config import tile_for


@triton.jit(do_not_specialize=["rows"])
def _bias_gelu_fwd_kernel(
    x, bias, y, rows, width, SHORT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """y = GELU(x + bias) (Hendrycks and Gimpel, arXiv 1606.08415), exact form.

    One program makes a (ROWS, COLUMNS) tile. Grid: (rows / ROWS, width / COLUMNS).
    Bytes: x read and y written once; about 25 instructions per element.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]  # (ROWS, COLUMNS)
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    shift = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
    tl.store(y + at, gelu(z, SHORT).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "steps"])
def _bias_gelu_bwd_kernel(
    dy,
    x,
    bias,
    dx,
    partial,
    rows,
    width,
    steps,
    SHORT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx = dy GELU'(x + bias); partial[p] = the sum of part p's rows of dx.

    One program goes down ROWS * steps rows of COLUMNS columns. Grid: (parts, width / COLUMNS).
    Bytes: dy and x read, dx written once.
    """
    part = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    fits = column < width
    shift = tl.load(bias + column, mask=fits, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(steps):
        row = (part * steps + step) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & fits[None, :]  # (ROWS, COLUMNS)
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
        dz = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32) * gelu_slope(z, SHORT)
        tl.store(dx + at, dz.to(dx.dtype.element_ty), mask=inside)
        total += tl.where(inside, dz, 0.0)  # past the end, a bias that is not finite gives NaN
    tl.store(partial + part.to(tl.int64) * width + column, tl.sum(total, 0), mask=fits)


def launch_bias_gelu_fwd(x: torch.Tensor, bias: torch.Tensor, y: torch.Tensor) -> None:
    """y = GELU(x + bias) into a given y; x, y (rows, width) contiguous, bias (width,)."""
    rows, width = x.shape
    if x.numel() == 0:
        return
    t = tile_for("bias_gelu_fwd", x.device)
    grid = (triton.cdiv(rows, t.blocks["ROWS"]), triton.cdiv(width, t.blocks["COLUMNS"]))
    _bias_gelu_fwd_kernel[grid](
        x, bias, y, rows, width, SHORT=x.element_size() == 2, **t.blocks, num_warps=t.num_warps
    )


def launch_bias_gelu_bwd(
    dy: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, dx: torch.Tensor, dbias: torch.Tensor
) -> None:
    """dx and dbias into given outputs; dy, x, dx (rows, width) contiguous, (d)bias (width,)."""
    rows, width = x.shape
    t = tile_for("bias_gelu_bwd", x.device)
    parts, steps = split_rows(rows, t.blocks["ROWS"])
    partial = torch.empty((parts, width), dtype=torch.float32, device=x.device)
    if x.numel():
        _bias_gelu_bwd_kernel[(parts, triton.cdiv(width, t.blocks["COLUMNS"]))](
            dy,
            x,
            bias,
            dx,
            partial,
            rows,
            width,
            steps,
            SHORT=x.element_size() == 2,
            **t.blocks,
            num_warps=t.num_warps,
        )
    column_sums(partial[None], dbias)


def bias_gelu_fwd(inputs) -> torch.Tensor:
    """GELU(x + bias) of x (..., width), in x's dtype, of the op's `BiasGeluInputs`."""
    x, bias = inputs
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = x.shape[-1]
    rows = x.numel() // width if width else 0
    launch_bias_gelu_fwd(x.contiguous().view(rows, width), bias.contiguous(), y.view(rows, width))
    return y


def bias_gelu_bwd(dy: torch.Tensor, inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx in x's dtype, dbias in the bias's, summed in fp32) of the op's `BiasGeluInputs`."""
    x, bias = inputs
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dbias = torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    width = x.shape[-1]
    rows = x.numel() // width if width else 0
    launch_bias_gelu_bwd(
        dy.contiguous().view(rows, width),
        x.contiguous().view(rows, width),
        bias.contiguous(),
        dx.view(rows, width),
        dbias,
    )
    return dx, dbias
