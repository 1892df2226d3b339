"""Triton kernels of `unpad` and `pad`: rows copied by index, bit for bit."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.tile_config import tile_for

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit(do_not_specialize=["x_rows", "out_rows"])
def _copy_rows_kernel(
    x, indices, out, x_rows, out_rows, width, SCATTER: tl.constexpr, BLOCK: tl.constexpr
):
    """out[i] = x[indices[i]]; with SCATTER out[indices[i]] = x[i].

    One program copies BLOCK elements of one row. Grid: (indices, width / BLOCK). Bytes: each
    copied row read and written once. An index out of range copies nothing; a gather makes zeros.
    """
    i = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(indices + i)
    if SCATTER:
        inside = (column < width) & (index >= 0) & (index < out_rows)
        value = tl.load(x + i * width + column, mask=inside)
        tl.store(out + index * width + column, value, mask=inside)
    else:
        inside = (column < width) & (index >= 0) & (index < x_rows)
        value = tl.load(x + index * width + column, mask=inside, other=0)
        tl.store(out + i * width + column, value, mask=column < width)


def _as_integers(x: torch.Tensor) -> torch.Tensor:
    """(rows, width) of integers with the bits of x (rows, ...); a complex number is two."""
    rows = x.contiguous().view(x.shape[0], x[:1].numel() if len(x) else 0)
    rows = torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows
    return rows.view(_INTEGERS[rows.element_size()])


def launch_copy_rows(
    x: torch.Tensor, indices: torch.Tensor, out: torch.Tensor, *, scatter: bool
) -> None:
    """out[i] = x[indices[i]], or with `scatter` out[indices[i]] = x[i]; out is contiguous."""
    if indices.numel() == 0 or out.numel() == 0:
        return
    if x.numel() == 0:
        out.zero_()
        return
    x, out = _as_integers(x), _as_integers(out)
    t = tile_for("copy_rows", x.device)
    grid = (indices.shape[0], triton.cdiv(x.shape[1], t.blocks["BLOCK"]))
    _copy_rows_kernel[grid](
        x,
        indices.contiguous(),
        out,
        x.shape[0],
        out.shape[0],
        x.shape[1],
        SCATTER=scatter,
        **t.blocks,
        num_warps=t.num_warps,
    )


def unpad_fwd(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(rows, ...) -> (total_tokens, ...); arguments as the custom op's."""
    shape = (indices.shape[0], *x.shape[1:])
    packed = torch.empty(shape, dtype=x.dtype, device=x.device)
    launch_copy_rows(x, indices, packed, scatter=False)
    return packed


def pad_fwd(x: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
    """(total_tokens, ...) -> (rows, ...), zeros elsewhere; arguments as the custom op's."""
    padded = torch.zeros((rows, *x.shape[1:]), dtype=x.dtype, device=x.device)
    launch_copy_rows(x, indices, padded, scatter=True)
    return padded
