"""Triton kernels of `adamw`: one launch updates all weights of a group, each number moved once.

A table on the device has the addresses of each weight's tensors, so that one launch reaches all.
"""

import math

import torch
import triton
import triton.language as tl

_WARPS = 8
_BEGUN = 128  # weights of a program of the first kernel

# columns of a table of addresses; that of `rounded` has 0 where no copy is kept
_WEIGHT, _GRADIENT, _MEAN, _SQUARE = (tl.constexpr(column) for column in range(4))
_ROUNDED, _STEP, _SIZE = (tl.constexpr(column) for column in range(4, 7))
_COLUMNS = tl.constexpr(8)


@triton.jit(do_not_specialize=["count"])
def _adamw_begin_kernel(table, corrections, count, log_beta1, log_beta2, BLOCK: tl.constexpr):
    """step += 1; corrections (count, 2) = 1 / (1 - beta1^step), 1 / sqrt(1 - beta2^step).

    log_beta1, log_beta2: to the base 2. One program takes BLOCK weights. Grid: (count / BLOCK,).
    """
    weight = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = weight < count
    at = tl.load(table + weight * _COLUMNS + _STEP, mask=inside, other=0)
    at = at.to(tl.pointer_type(tl.float32))
    step = tl.load(at, mask=inside, other=0.0) + 1.0
    tl.store(at, step, mask=inside)
    # in fp32 the difference of two numbers near 1 would lose its digits
    wide = step.to(tl.float64)
    of_mean = 1.0 / (1.0 - tl.exp2(wide * log_beta1))
    of_square = 1.0 / tl.sqrt(1.0 - tl.exp2(wide * log_beta2))
    tl.store(corrections + 2 * weight, of_mean.to(tl.float32), mask=inside)
    tl.store(corrections + 2 * weight + 1, of_square.to(tl.float32), mask=inside)


@triton.jit
def _address(row, column, DTYPE: tl.constexpr):
    """The address in a column of a weight's row, which 16 divides."""
    at = tl.load(row + column).to(tl.pointer_type(DTYPE))
    return tl.multiple_of(at, 16)


@triton.jit
def _update(
    row, at, inside, of_mean, of_square, rate, scale, decay, beta1, beta2, rest1, rest2, eps
):  # fmt: skip
    """Load, update and store the elements `at` of a weight, of which `inside` are there."""
    weights = _address(row, _WEIGHT, tl.float32)
    gradients = _address(row, _GRADIENT, tl.float32)
    means = _address(row, _MEAN, tl.float32)
    squares = _address(row, _SQUARE, tl.float32)
    g = tl.load(gradients + at, mask=inside) * scale
    m = tl.load(means + at, mask=inside) * beta1 + g * rest1
    v = tl.load(squares + at, mask=inside) * beta2 + g * g * rest2
    w = tl.load(weights + at, mask=inside)
    w -= w * (rate * decay)
    w -= (rate * of_mean) * m / (tl.sqrt(v) * of_square + eps)
    tl.store(weights + at, w, mask=inside)
    tl.store(means + at, m, mask=inside)
    tl.store(squares + at, v, mask=inside)
    if tl.load(row + _ROUNDED) != 0:
        rounded = _address(row, _ROUNDED, tl.bfloat16)
        tl.store(rounded + at, w.to(tl.bfloat16), mask=inside)


@triton.jit
def _adamw_kernel(
    table, programs, corrections, lr, factor, decay, beta1, beta2, rest1, rest2, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101) for every weight of the table.

        g = factor gradient      m += rest1 (g - m)      v += rest2 (g^2 - v)
        w -= lr decay w          w -= lr m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps)

    One program takes BLOCK elements of one weight: programs (grid, 2) has the weight and which of
    its blocks. rest is 1 - beta; lr and factor are on the device, factor may be None for 1.
    Bytes: 28 of an element, and 2 for its rounded copy.
    """
    program = tl.program_id(0).to(tl.int64)
    weight = tl.load(programs + 2 * program)
    first = tl.load(programs + 2 * program + 1).to(tl.int64) * BLOCK
    row = table + weight * _COLUMNS
    size = tl.load(row + _SIZE)
    of_mean = tl.load(corrections + 2 * weight)
    of_square = tl.load(corrections + 2 * weight + 1)
    rate = tl.load(lr)
    scale = 1.0
    if factor is not None:
        scale = tl.load(factor)
    at = first + tl.arange(0, BLOCK)
    if first + BLOCK <= size:  # a mask would split the loads
        _update(
            row, at, None, of_mean, of_square, rate, scale, decay, beta1, beta2, rest1, rest2, eps
        )  # fmt: skip
    else:
        _update(
            row, at, at < size, of_mean, of_square, rate, scale, decay, beta1, beta2, rest1, rest2,
            eps,
        )  # fmt: skip


def _log2(beta: float) -> float:
    return math.log2(beta) if beta else -math.inf


def adamw(
    table: torch.Tensor, programs: torch.Tensor, options, factor: torch.Tensor | None, block: int
) -> None:
    """Carry out a step on the weights of the op's `Tables`, by its `AdamWOptions`."""
    device, count = table.device, len(table)
    if not len(programs):
        return
    lr = options.lr
    if isinstance(lr, torch.Tensor):
        lr = lr.to(device, torch.float32, non_blocking=True)
    else:
        lr = torch.full((), lr, dtype=torch.float32, device=device)
    corrections = torch.empty((count, 2), dtype=torch.float32, device=device)
    _adamw_begin_kernel[(triton.cdiv(count, _BEGUN),)](
        table,
        corrections,
        count,
        _log2(options.beta1),
        _log2(options.beta2),
        BLOCK=_BEGUN,
        num_warps=_WARPS,
    )
    _adamw_kernel[(len(programs),)](
        table,
        programs,
        corrections,
        lr,
        factor,
        options.weight_decay,
        options.beta1,
        options.beta2,
        1 - options.beta1,
        1 - options.beta2,
        options.eps,
        BLOCK=block,
        num_warps=_WARPS,
    )
