"""`unpad` and `pad`: from padded batches to packed tokens and back (contract C7).

`unpad` is a gather, `pad` a scatter, and each is the backward of the other. No token has two
places, so neither has to add.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from spanbert_fast.ops import _checks
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._register import register
from spanbert_fast.reference import padding as reference


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
    """Take the padding out of a batch. On a GPU the host waits once, for the number of tokens.

        >>> x, mask = torch.tensor([[5, 6, 0], [7, 0, 0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
        >>> packed, indices, cu_seqlens, max_seqlen = unpad(x, mask)
        >>> packed, cu_seqlens, max_seqlen
        (tensor([5, 6, 7]), tensor([0, 2, 3], dtype=torch.int32), 2)

    Args:
        x: (batch, seqlen, ...), of any dtype.
        attention_mask: (batch, seqlen), nonzero for tokens. Padding may be at either side or
            between tokens.

    Returns:
        packed (total_tokens, ...), indices, cu_seqlens and max_seqlen: see `Unpadded`. In a graph
        of torch.compile, max_seqlen is seqlen.

    Raises:
        ValueError: shapes or devices disagree.
    """
    if x.dim() < 2:
        raise ValueError(f"x must have shape (batch, seqlen, ...), got {tuple(x.shape)}")
    _checks.check_shape("attention_mask", attention_mask, tuple(x.shape[:2]))
    _checks.check_same_device("attention_mask", attention_mask, x, "x")
    if runs_reference():
        return Unpadded(*reference.unpad(x, attention_mask))
    indices, cu_seqlens, max_seqlen = unpad_indices(attention_mask)
    return Unpadded(take_tokens(x, indices), indices, cu_seqlens, max_seqlen)


def unpad_indices(attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(indices, cu_seqlens, max_seqlen) of a (batch, seqlen) mask; see `Unpadded`.

    >>> unpad_indices(torch.tensor([[1, 1, 0], [1, 0, 0]]))
    (tensor([0, 1, 3]), tensor([0, 2, 3], dtype=torch.int32), 2)
    """
    _checks.check_shape("attention_mask", attention_mask, ("batch", "seqlen"))
    real = attention_mask != 0
    lengths = F.pad(real.sum(1), (1, 0))  # the 0 is the longest length of an empty batch
    cu_seqlens = lengths.cumsum(0, dtype=torch.int32)
    if _in_a_graph():
        return rows_where(real.flatten()), cu_seqlens, attention_mask.shape[1]
    # one copy for both numbers: the host waits only here
    total, longest = torch.stack([cu_seqlens[-1], lengths.amax()]).tolist()
    indices = torch.nonzero_static(real.flatten(), size=total).squeeze(1)
    return indices, cu_seqlens, longest


def rows_where(condition: torch.Tensor) -> torch.Tensor:
    """int64 (num_rows,): where a boolean (rows,) is true, in order.

    >>> rows_where(torch.tensor([False, True, True]))
    tensor([1, 2])

    torch.compile takes it into its graph, whose sizes then depend on data, where
    `torch.nonzero` would break the graph.
    """
    return _rows_where(condition) if _in_a_graph() else condition.nonzero().squeeze(1)


@torch.library.custom_op("spanbert_fast::rows_where", mutates_args=())
def _rows_where(condition: torch.Tensor) -> torch.Tensor:
    return condition.nonzero().squeeze(1)


@_rows_where.register_fake
def _fake_rows_where(condition):
    # `new_dynamic_size` of the context would refuse outside of fullgraph=True
    size = torch.library.get_ctx()._shape_env.create_unbacked_symint()
    torch._check(size <= condition.shape[0])
    return condition.new_empty((size,), dtype=torch.int64)


def _in_a_graph() -> bool:
    """Of torch.compile; what is exported has to consist of PyTorch's own operators."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def take_tokens(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(batch, seqlen, ...) -> (total_tokens, ...): the gather of `unpad`, for known indices.

        >>> take_tokens(torch.tensor([[5, 6, 0], [7, 0, 0]]), torch.tensor([0, 1, 3]))
        tensor([5, 6, 7])

    Args:
        x: (batch, seqlen, ...), of any dtype.
        indices: int64 (total_tokens,), distinct, in [0, batch * seqlen).

    Raises:
        ValueError: shapes or devices disagree; or, checked on the CPU only, an index is out of
            range or (in the backward) occurs twice.
    """
    if x.dim() < 2:
        raise ValueError(f"x must have shape (batch, seqlen, ...), got {tuple(x.shape)}")
    _check_indices(indices, x)
    rows = x.flatten(0, 1)
    return rows[indices] if runs_reference() else _Unpad.apply(rows, indices)


def pad(x: torch.Tensor, indices: torch.Tensor, batch: int, seqlen: int) -> torch.Tensor:
    """Put packed tokens back into a padded batch.

        >>> pad(torch.tensor([5, 6, 7]), torch.tensor([0, 1, 3]), batch=2, seqlen=3)
        tensor([[5, 6, 0],
                [7, 0, 0]])

    Args:
        x: (total_tokens, ...), of any dtype.
        indices: int64 (total_tokens,), distinct, in [0, batch * seqlen).
        batch, seqlen: the padded shape.

    Returns:
        (batch, seqlen, ...) in x's dtype, zeros where there is no token.

    Raises:
        ValueError: shapes or devices disagree; or, checked on the CPU only, an index is out of
            range or occurs twice.
    """
    if x.dim() == 0:
        raise ValueError("x must have shape (total_tokens, ...), got ()")
    _check_indices(indices, x)
    _checks.check_shape("indices", indices, (x.shape[0],))
    if runs_reference():
        return reference.pad(x, indices, batch, seqlen)
    return _Pad.apply(x, indices, batch * seqlen).unflatten(0, (batch, seqlen))


def _check_indices(indices: torch.Tensor, x: torch.Tensor) -> None:
    _checks.check_shape("indices", indices, ("total_tokens",))
    _checks.check_integer("indices", indices, (torch.int64,))
    _checks.check_same_device("indices", indices, x, "x")


def _composite_unpad_fwd(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(rows, ...) -> (total_tokens, ...)."""
    _checks.check_ids("indices", indices, x.shape[0])
    return x.index_select(0, indices)


def _composite_pad_fwd(x: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
    """(total_tokens, ...) -> (rows, ...), zeros where no index points."""
    _checks.check_ids("indices", indices, rows)
    _checks.check_distinct("indices", indices)
    return x.new_zeros((rows, *x.shape[1:])).index_copy_(0, indices, x)


def _fake_unpad_fwd(x, indices):
    return x.new_empty((indices.shape[0], *x.shape[1:]))


def _fake_pad_fwd(x, indices, rows):
    return x.new_empty((rows, *x.shape[1:]))


_unpad_fwd = register("unpad_fwd", _composite_unpad_fwd, _fake_unpad_fwd, op="padding")
_pad_fwd = register("pad_fwd", _composite_pad_fwd, _fake_pad_fwd, op="padding")


class _Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, indices):
        ctx.rows = x.shape[0]
        ctx.save_for_backward(indices)
        return _unpad_fwd(x, indices)

    @staticmethod
    def backward(ctx, dpacked):
        return _Pad.apply(dpacked, *ctx.saved_tensors, ctx.rows), None


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, indices, rows):
        ctx.save_for_backward(indices)
        return _pad_fwd(x, indices, rows)

    @staticmethod
    def backward(ctx, dpadded):
        return _Unpad.apply(dpadded, *ctx.saved_tensors), None, None
