"""Sums down columns in two steps of fixed order: gradients of biases and norms with no atomics.

A backward kernel gives every program a fixed run of rows and writes one partial sum for each; the
kernel here adds the partial sums. The split depends on the number of rows alone, so results have
the same bits in every run.
"""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.tile_config import tile_for

_MAX_PARTS = 512  # a full H100: 132 multiprocessors, 4 blocks of 4 warps on each


def split_rows(rows: int, multiple: int = 1) -> tuple[int, int]:
    """(parts, steps): `parts` runs of `steps * multiple` consecutive rows cover `rows`."""
    blocks = triton.cdiv(rows, multiple)
    steps = triton.cdiv(blocks, _MAX_PARTS)
    return (triton.cdiv(blocks, steps) if blocks else 0), steps


@triton.jit(do_not_specialize=["parts", "steps"])
def _column_sums_kernel(
    partial,
    outs,
    parts,
    width,
    stride,
    steps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """outs[i][c] = sum over p of partial[i, p, c], in fp32.

    One program sums COLUMNS columns, ROWS rows at a time. Grid: (width / COLUMNS, outs).
    Bytes: 4 outs parts width read.
    """
    number = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    partial += number.to(tl.int64) * parts * stride
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(steps):
        row = step * ROWS + tl.arange(0, ROWS)
        inside = (row < parts)[:, None] & (column < width)[None, :]  # (ROWS, COLUMNS)
        at = row.to(tl.int64)[:, None] * stride + column[None, :]
        total += tl.load(partial + at, mask=inside, other=0.0)
    sums = tl.sum(total, 0)
    for i in tl.static_range(len(outs)):
        out = outs[i]
        is_ours = (column < width) & (number == i)
        tl.store(out + column, sums.to(out.dtype.element_ty), mask=is_ours)


def column_sums(partial: torch.Tensor, *outs: torch.Tensor) -> None:
    """Each of `outs` (width,) = the sums down the columns of one of `partial`, fp32 (outs, parts,
    width), one behind the other: one launch for all gradients of a backward. A single one may be
    the first columns of wider rows."""
    _, parts, width = partial.shape
    if width:
        t = tile_for("column_sums", partial.device)
        steps = triton.cdiv(parts, t.blocks["ROWS"])
        _column_sums_kernel[(triton.cdiv(width, t.blocks["COLUMNS"]), len(outs))](
            partial,
            outs,
            parts,
            width,
            partial.stride(1),
            steps,
            **t.blocks,
            num_warps=t.num_warps,
        )
