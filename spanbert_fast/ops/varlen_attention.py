"""`varlen_attention`: attention within each sequence of a packed batch, with no padding."""

import torch

from spanbert_fast.ops import _common
from spanbert_fast.ops._attention_composite import (
    grouped_bwd,
    grouped_fwd,
    padded_bwd,
    padded_fwd,
)
from spanbert_fast.ops._cpu import register_cpu_kernel
from spanbert_fast.ops._cuda import register_cuda_kernel
from spanbert_fast.ops._dropout import check_dropout
from spanbert_fast.reference import varlen_attention as reference


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    *,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: torch.Tensor | None = None,
    dropout_site: int = 0,
) -> torch.Tensor:
    """out = dropout(softmax(q k^T * softmax_scale)) v within each sequence (arXiv 1706.03762, 3.2).

    Args:
        q, k, v: (total_tokens, num_heads, head_dim), floating, of one dtype.
        cu_seqlens: int32 (batch + 1,), prefix sums of the lengths, from 0 to total_tokens.
        max_seqlen: the longest length, or an upper bound of it.
        softmax_scale: default 1 / sqrt(head_dim).
        dropout_p: probability of dropping an attention probability, to 1/256 (contract C4).
        dropout_seed: int64 0-dim tensor on q's device; needed where dropout_p > 0.
        dropout_site: the layer's number; each site has its own mask.

    Returns:
        (total_tokens, num_heads, head_dim) in q's dtype; softmax and its statistics in fp32.

    Raises:
        ValueError: shapes disagree, or (on the CPU, where looking is free) cu_seqlens is not a
            rising sequence from 0 to total_tokens, or a sequence is longer than max_seqlen.
    """
    _common.check_shape("q", q, ("total_tokens", "num_heads", "head_dim"))
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _common.check_floating(name, tensor)
        _common.check_shape(name, tensor, tuple(q.shape))
        _common.check_same_device(name, tensor, q, "q")
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} must be {q.dtype} as q is, got {tensor.dtype}")
    _common.check_cu_seqlens("cu_seqlens", cu_seqlens)
    _common.check_same_device("cu_seqlens", cu_seqlens, q, "q")
    threshold = check_dropout(dropout_p, dropout_seed, dropout_site, q)
    if _common.runs_reference():
        return reference.varlen_attention(
            q,
            k,
            v,
            cu_seqlens,
            max_seqlen,
            softmax_scale=softmax_scale,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
            dropout_site=dropout_site,
        )
    scale = q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
    dtype = _common.compute_dtype(q)
    out, _ = _varlen_attention_fwd(
        q.to(dtype),
        k.to(dtype),
        v.to(dtype),
        cu_seqlens,
        max_seqlen,
        scale,
        dropout_seed if threshold else None,
        threshold,
        dropout_site,
    )
    return out


@torch.library.custom_op("spanbert_fast::varlen_attention_fwd", mutates_args=())
def _varlen_attention_fwd(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    seed: torch.Tensor | None,
    threshold: int,
    site: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse): lse (total_tokens, num_heads) is the log of each row's softmax denominator."""
    composite = padded_fwd if q.is_cuda else grouped_fwd
    return composite(q, k, v, cu_seqlens, max_seqlen, scale, seed, threshold, site)


register_cpu_kernel("varlen_attention_fwd", grouped_fwd)
register_cuda_kernel("varlen_attention_fwd", padded_fwd)


@_varlen_attention_fwd.register_fake
def _(q, k, v, cu_seqlens, max_seqlen, scale, seed, threshold, site):
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=_common.opmath_dtype(q.dtype))


@torch.library.custom_op("spanbert_fast::varlen_attention_bwd", mutates_args=())
def _varlen_attention_bwd(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    seed: torch.Tensor | None,
    threshold: int,
    site: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv); probabilities are made again from lse, dropout from its seed."""
    composite = padded_bwd if q.is_cuda else grouped_bwd
    return composite(
        dout, q, k, v, out, lse, cu_seqlens, max_seqlen, scale, seed, threshold, site
    )


register_cpu_kernel("varlen_attention_bwd", grouped_bwd)
register_cuda_kernel("varlen_attention_bwd", padded_bwd)


@_varlen_attention_bwd.register_fake
def _(dout, q, k, v, out, lse, cu_seqlens, max_seqlen, scale, seed, threshold, site):
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _setup_context(ctx, inputs, output):
    q, k, v, cu_seqlens, ctx.max_seqlen, ctx.scale, seed, ctx.threshold, ctx.site = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, lse, cu_seqlens, seed)


def _backward(ctx, dout, _dlse):
    if dout is None:
        return (None,) * 9
    q, k, v, out, lse, cu_seqlens, seed = ctx.saved_tensors
    dq, dk, dv = _varlen_attention_bwd(
        dout,
        q,
        k,
        v,
        out,
        lse,
        cu_seqlens,
        ctx.max_seqlen,
        ctx.scale,
        seed,
        ctx.threshold,
        ctx.site,
    )
    return dq, dk, dv, *(None,) * 6


_varlen_attention_fwd.register_autograd(_backward, setup_context=_setup_context)
