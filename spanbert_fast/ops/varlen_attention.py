"""`varlen_attention`: attention within each sequence of a packed batch, with no padding."""

import torch

from spanbert_fast.ops import _checks
from spanbert_fast.ops._attention_composite import (
    AttentionInputs,
    composite_bwd,
    composite_fwd,
)
from spanbert_fast.ops._autograd import differentiable
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._precision import compute_dtype, opmath_dtype
from spanbert_fast.ops._register import register
from spanbert_fast.ops.dropout import Dropout, flat_dropout
from spanbert_fast.reference import varlen_attention as reference


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    *,
    softmax_scale: float | None = None,
    dropout: Dropout | None = None,
) -> torch.Tensor:
    """out = dropout(softmax(q k^T * softmax_scale)) v within each sequence (arXiv 1706.03762, 3.2).

        >>> q, v = torch.zeros(3, 1, 1), torch.tensor([1.0, 3.0, 7.0]).view(3, 1, 1)
        >>> cu_seqlens = torch.tensor([0, 2, 3], dtype=torch.int32)  # sequences of 2 and 1 tokens
        >>> varlen_attention(q, q, v, cu_seqlens, 2).flatten()
        tensor([2., 2., 7.])

    Args:
        q, k, v: (total_tokens, num_heads, head_dim), floating, of one dtype; any strides.
        cu_seqlens: int32 (batch + 1,), prefix sums of the lengths, from 0 to total_tokens.
        max_seqlen: the longest length, or an upper bound of it.
        softmax_scale: default 1 / sqrt(head_dim).
        dropout: which attention probabilities are dropped; None for none.

    Returns:
        (total_tokens, num_heads, head_dim) in q's dtype; softmax and its statistics in fp32.

    Raises:
        ValueError: shapes disagree; or, checked on the CPU only, cu_seqlens falls or does not run
            from 0 to total_tokens, or a sequence is longer than max_seqlen.
    """
    _checks.check_shape("q", q, ("total_tokens", "num_heads", "head_dim"))
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _checks.check_floating(name, tensor)
        _checks.check_shape(name, tensor, tuple(q.shape))
        _checks.check_same_device(name, tensor, q, "q")
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} must be {q.dtype} as q is, got {tensor.dtype}")
    _checks.check_cu_seqlens("cu_seqlens", cu_seqlens)
    _checks.check_same_device("cu_seqlens", cu_seqlens, q, "q")
    flat = flat_dropout(dropout, q)
    if runs_reference():
        return reference.varlen_attention(
            q, k, v, cu_seqlens, max_seqlen, softmax_scale=softmax_scale, dropout=dropout
        )
    scale = q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
    dtype = compute_dtype(q)
    q, k, v = (t.to(dtype) for t in (q, k, v))
    return _varlen_attention(AttentionInputs(q, k, v, cu_seqlens, max_seqlen, scale, *flat))


def _fake_fwd(inputs: AttentionInputs):
    q = inputs.q
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=opmath_dtype(q.dtype))


def _fake_bwd(dout, inputs: AttentionInputs, out, lse):
    return tuple(inputs.q.new_empty(inputs.q.shape) for _ in range(3))


_varlen_attention = differentiable(
    AttentionInputs,
    register("varlen_attention_fwd", composite_fwd, _fake_fwd),
    register("varlen_attention_bwd", composite_bwd, _fake_bwd),
    gradients=("q", "k", "v"),
    saves_result=True,
)
