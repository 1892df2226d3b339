"""`unpad` and `pad`: from padded batches to packed tokens and back (contract C7).

One gather and one scatter, each the other's backward. No token is in two places, so neither adds.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from spanbert_fast.ops import _common
from spanbert_fast.ops._cpu import register_cpu_kernel
from spanbert_fast.ops._cuda import register_cuda_kernel
from spanbert_fast.reference import pad as reference


class Unpadded(NamedTuple):
    """A batch without its padding.

    Attributes:
        packed: (total_tokens, ...), the tokens in order; bitwise those of the padded batch.
        indices: int64 (total_tokens,), each token's place in the flat (batch * seqlen).
        cu_seqlens: int32 (batch + 1,), prefix sums of the lengths.
        max_seqlen: the longest length.
    """

    packed: torch.Tensor
    indices: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int


def unpad(x: torch.Tensor, attention_mask: torch.Tensor) -> Unpadded:
    """Drop what the mask drops. On a GPU the host waits once, for the number of tokens.

    Args:
        x: (batch, seqlen, ...), of any dtype.
        attention_mask: (batch, seqlen), nonzero for tokens, in any pattern: padding may be at
            either side or between.

    Returns:
        packed (total_tokens, ...), indices, cu_seqlens and max_seqlen: see `Unpadded`.

    Raises:
        ValueError: shapes or devices disagree.
    """
    if x.dim() < 2:
        raise ValueError(f"x must have shape (batch, seqlen, ...), got {tuple(x.shape)}")
    _common.check_shape("attention_mask", attention_mask, tuple(x.shape[:2]))
    _common.check_same_device("attention_mask", attention_mask, x, "x")
    if _common.runs_reference():
        return Unpadded(*reference.unpad(x, attention_mask))
    indices, cu_seqlens, max_seqlen = unpad_indices(attention_mask)
    return Unpadded(take_tokens(x, indices), indices, cu_seqlens, max_seqlen)


def unpad_indices(attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What `unpad` finds in a (batch, seqlen) mask: (indices, cu_seqlens, max_seqlen)."""
    _common.check_shape("attention_mask", attention_mask, ("batch", "seqlen"))
    real = attention_mask != 0
    lengths = F.pad(real.sum(1), (1, 0))  # a zero in front: also the longest of no sequence
    cu_seqlens = lengths.cumsum(0, dtype=torch.int32)
    # both numbers in one copy: the only time that the host waits
    total, longest = torch.stack([cu_seqlens[-1], lengths.amax()]).tolist()
    indices = torch.nonzero_static(real.flatten(), size=total).squeeze(1)
    return indices, cu_seqlens, longest


def take_tokens(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(batch, seqlen, ...) -> (total_tokens, ...): the gather of `unpad`, by indices known before.

    Args:
        x: (batch, seqlen, ...), of any dtype.
        indices: int64 (total_tokens,), distinct, in [0, batch * seqlen).
    """
    if x.dim() < 2:
        raise ValueError(f"x must have shape (batch, seqlen, ...), got {tuple(x.shape)}")
    _check_indices(indices, x)
    rows = x.flatten(0, 1)
    return rows[indices] if _common.runs_reference() else _unpad_fwd(rows, indices)


def pad(x: torch.Tensor, indices: torch.Tensor, batch: int, seqlen: int) -> torch.Tensor:
    """Put packed tokens back into a padded batch.

    Args:
        x: (total_tokens, ...), of any dtype.
        indices: int64 (total_tokens,), distinct, in [0, batch * seqlen).
        batch, seqlen: the padded shape.

    Returns:
        (batch, seqlen, ...) in x's dtype, zeros where there is no token.

    Raises:
        ValueError: shapes or devices disagree, or (on the CPU, where looking is free) an index is
            out of range.
    """
    if x.dim() == 0:
        raise ValueError("x must have shape (total_tokens, ...), got ()")
    _check_indices(indices, x)
    _common.check_shape("indices", indices, (x.shape[0],))
    if _common.runs_reference():
        return reference.pad(x, indices, batch, seqlen)
    return _pad_fwd(x, indices, batch * seqlen).unflatten(0, (batch, seqlen))


def _check_indices(indices: torch.Tensor, x: torch.Tensor) -> None:
    _common.check_shape("indices", indices, ("total_tokens",))
    _common.check_integer("indices", indices, (torch.int64,))
    _common.check_same_device("indices", indices, x, "x")


def _composite_unpad_fwd(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(rows, ...) -> (total_tokens, ...)."""
    _common.check_ids("indices", indices, x.shape[0])
    return x.index_select(0, indices)


_unpad_fwd = torch.library.custom_op(
    "spanbert_fast::unpad_fwd", _composite_unpad_fwd, mutates_args=()
)
register_cpu_kernel("unpad_fwd", _composite_unpad_fwd)
register_cuda_kernel("unpad_fwd", _composite_unpad_fwd)


@_unpad_fwd.register_fake
def _(x, indices):
    return x.new_empty((indices.shape[0], *x.shape[1:]))


def _composite_pad_fwd(x: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
    """(total_tokens, ...) -> (rows, ...), zeros where no index points."""
    _common.check_ids("indices", indices, rows)
    return x.new_zeros((rows, *x.shape[1:])).index_copy_(0, indices, x)


_pad_fwd = torch.library.custom_op("spanbert_fast::pad_fwd", _composite_pad_fwd, mutates_args=())
register_cpu_kernel("pad_fwd", _composite_pad_fwd)
register_cuda_kernel("pad_fwd", _composite_pad_fwd)


@_pad_fwd.register_fake
def _(x, indices, rows):
    return x.new_empty((rows, *x.shape[1:]))


def _unpad_setup_context(ctx, inputs, output):
    x, indices = inputs
    ctx.rows = x.shape[0]
    ctx.save_for_backward(indices)


def _unpad_backward(ctx, dpacked):
    return _pad_fwd(dpacked, *ctx.saved_tensors, ctx.rows), None


def _pad_setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _pad_backward(ctx, dpadded):
    return _unpad_fwd(dpadded, *ctx.saved_tensors), None, None


_unpad_fwd.register_autograd(_unpad_backward, setup_context=_unpad_setup_context)
_pad_fwd.register_autograd(_pad_backward, setup_context=_pad_setup_context)
