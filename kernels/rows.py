"""Helpers of the kernels that hold a whole row: loads, LayerNorm, its gradient, launch options."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.tile_config import tile_for


@triton.jit
def load_row(pointer, at, fits):
    """The elements of a row that `fits` marks, in fp32, zeros elsewhere."""
    return tl.load(pointer + at, mask=fits, other=0.0).to(tl.float32)


@triton.jit
def row_statistics(z, fits, width, eps):
    """(mean, 1 / sqrt(var + eps)) of the elements of a row that `fits` marks; z is 0 elsewhere."""
    mean = tl.sum(z, 0) / width
    centred = tl.where(fits, z - mean, 0.0)  # a large mean would cancel the variance's digits
    return mean, 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)


@triton.jit
def layer_norm_slope(dy, z, weight, mean, rstd, fits, width):
    """(dz, normalised z) of y = weight (z - mean) rstd + bias; 0 outside `fits`."""
    normed = tl.where(fits, (z - mean) * rstd, 0.0)
    g = dy * weight
    return (g - tl.sum(g, 0) / width - normed * (tl.sum(g * normed, 0) / width)) * rstd, normed


def row_options(kernel: str, device: torch.device, width: int) -> dict[str, int]:
    """BLOCK, which holds a row of `width` columns, and the kernel's warps for it."""
    warps = tile_for(kernel, device, width=width).num_warps
    return {"BLOCK": triton.next_power_of_2(width), "num_warps": warps}


def contiguous(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Each tensor, contiguous; None stays None."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]
