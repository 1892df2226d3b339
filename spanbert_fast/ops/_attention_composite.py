"""`varlen_attention` in PyTorch's operators, for float64 and devices without a kernel.

With S = scale q k^T, P = softmax(S) and the dropout multiplier M (0, or the scale of kept values):

    out = (P M) v          lse = log sum_j exp(S_j)
    dv = (P M)^T dout      dP = (dout v^T) M      dS = P (dP - sum_d dout out)
    dq = scale dS k        dk = scale dS^T q

On the CPU, sequences of equal length run together and nothing is padded. On a GPU the host does not
know the lengths, and asking for them would make it wait; so the batch is padded to max_seqlen.
"""

from typing import NamedTuple

import torch

from spanbert_fast.ops import _checks
from spanbert_fast.ops._precision import opmath_dtype
from spanbert_fast.ops.dropout import of_flat
from spanbert_fast.reference.dropout import attention_keep_mask, dropout_scale

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class AttentionInputs(NamedTuple):
    """What the registered functions of `varlen_attention` take."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    scale: float
    seed: torch.Tensor | None
    threshold: int
    site: int


def composite_fwd(inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse): lse (total_tokens, num_heads) is the log of each row's softmax denominator."""
    _check_alike(inputs)
    return (padded_fwd if inputs.q.is_cuda else grouped_fwd)(inputs)


def composite_bwd(
    dout: torch.Tensor, inputs: AttentionInputs, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv); probabilities are computed again from lse, dropout from its seed."""
    _check_alike(inputs, dout=dout, out=out)
    _checks.check_shape("lse", lse, tuple(inputs.q.shape[:2]))
    return (padded_bwd if inputs.q.is_cuda else grouped_bwd)(dout, inputs, out, lse)


def _check_alike(inputs: AttentionInputs, **others: torch.Tensor) -> None:
    """Raise unless k and v have q's shape: PyTorch's flash attention does not check it."""
    _checks.check_shape("q", inputs.q, ("total_tokens", "num_heads", "head_dim"))
    for name, tensor in {"k": inputs.k, "v": inputs.v, **others}.items():
        _checks.check_shape(name, tensor, tuple(inputs.q.shape))


def _multiplier(inputs: AttentionInputs, sequences, like: torch.Tensor) -> torch.Tensor | None:
    dropout = of_flat(inputs.seed, inputs.threshold, inputs.site)
    if dropout is None:
        return None
    _, heads, seqlen, _ = like.shape
    keep = attention_keep_mask(dropout, sequences, heads, seqlen)
    return keep.to(like.dtype) * dropout_scale(inputs.threshold)


def _dense_fwd(q, k, v, scale, multiplier, key_bias=None):
    """(out, lse) of (batch, heads, seqlen, head_dim) in the dtype of statistics."""
    scores = q @ k.transpose(2, 3) * scale
    if key_bias is not None:
        scores = scores + key_bias
    lse = scores.logsumexp(-1)
    probabilities = (scores - lse[..., None]).exp_()
    if multiplier is not None:
        probabilities *= multiplier
    return probabilities @ v, lse


def _dense_bwd(dout, q, k, v, out, lse, scale, multiplier, key_bias=None):
    scores = q @ k.transpose(2, 3) * scale
    if key_bias is not None:
        scores = scores + key_bias
    probabilities = (scores - lse[..., None]).exp_()
    dropped = probabilities if multiplier is None else probabilities * multiplier
    dv = dropped.transpose(2, 3) @ dout
    dp = dout @ v.transpose(2, 3)
    if multiplier is not None:
        dp *= multiplier
    ds = probabilities * (dp - (dout * out).sum(-1, keepdim=True)) * scale
    return ds @ k, ds.transpose(2, 3) @ q, dv


def _groups(inputs: AttentionInputs):
    """(seqlen, sequence numbers, token indices (batch * seqlen,)) of sequences of equal length."""
    cu_seqlens = inputs.cu_seqlens
    bounds = cu_seqlens.tolist()
    _checks.check_cu_values("cu_seqlens", bounds, inputs.q.shape[0])
    by_length: dict[int, list[int]] = {}
    for sequence, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        by_length.setdefault(end - start, []).append(sequence)
    longest = max(by_length, default=0)
    if longest > inputs.max_seqlen:
        raise ValueError(
            f"max_seqlen must be at least the longest length {longest}, got {inputs.max_seqlen}"
        )
    for seqlen, members in by_length.items():
        if seqlen == 0:
            continue
        sequences = torch.tensor(members)
        starts = cu_seqlens[:-1].long()[sequences]
        yield seqlen, sequences, (starts[:, None] + torch.arange(seqlen)).flatten()


def _take(tensor: torch.Tensor, tokens: torch.Tensor, seqlen: int) -> torch.Tensor:
    """(total, heads, ...) -> (batch, heads, seqlen, ...); a view where it is one sequence."""
    if len(tokens) == seqlen:
        start = int(tokens[0])
        taken = tensor[start : start + seqlen].unsqueeze(0)
    else:
        taken = tensor[tokens].unflatten(0, (-1, seqlen))
    # PyTorch's flash attention reads rows as if they were contiguous
    return (taken if taken.stride(-1) == 1 else taken.contiguous()).transpose(1, 2)


def _put(target: torch.Tensor, tokens: torch.Tensor, value: torch.Tensor) -> None:
    target[tokens] = value.transpose(1, 2).flatten(0, 1).to(target.dtype)


def grouped_fwd(inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The CPU's forward: PyTorch's flash attention, or plain matrix products under dropout."""
    q, k, v, scale = inputs.q, inputs.k, inputs.v, inputs.scale
    opmath = opmath_dtype(q.dtype)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty(q.shape[:2], dtype=opmath)
    for seqlen, sequences, tokens in _groups(inputs):
        qs, ks, vs = (_take(t, tokens, seqlen) for t in (q, k, v))
        if inputs.threshold == 0:
            group_out, group_lse = _FLASH(qs, ks, vs, 0.0, False, scale=scale)
        else:
            qs, ks, vs = (t.to(opmath) for t in (qs, ks, vs))
            multiplier = _multiplier(inputs, sequences, qs)
            group_out, group_lse = _dense_fwd(qs, ks, vs, scale, multiplier)
        _put(out, tokens, group_out)
        _put(lse, tokens, group_lse)
    return out, lse


def grouped_bwd(
    dout: torch.Tensor, inputs: AttentionInputs, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The CPU's backward."""
    q, k, v, scale = inputs.q, inputs.k, inputs.v, inputs.scale
    opmath = opmath_dtype(q.dtype)
    dq, dk, dv = (torch.empty_like(q, memory_format=torch.contiguous_format) for _ in range(3))
    for seqlen, sequences, tokens in _groups(inputs):
        ds, qs, ks, vs, os, ls = (_take(t, tokens, seqlen) for t in (dout, q, k, v, out, lse))
        if inputs.threshold == 0:
            parts = _FLASH_BACKWARD(ds, qs, ks, vs, os, ls, 0.0, False, scale=scale)
        else:
            ds, qs, ks, vs, os = (t.to(opmath) for t in (ds, qs, ks, vs, os))
            multiplier = _multiplier(inputs, sequences, qs)
            parts = _dense_bwd(ds, qs, ks, vs, os, ls, scale, multiplier)
        for gradient, part in zip((dq, dk, dv), parts, strict=True):
            _put(gradient, tokens, part)
    return dq, dk, dv


def _padded(inputs: AttentionInputs):
    """(token index of each padded slot (batch, max_seqlen), which slots are real, key bias)."""
    cu_seqlens, total = inputs.cu_seqlens, inputs.q.shape[0]
    starts, ends = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    slots = starts + torch.arange(inputs.max_seqlen, device=cu_seqlens.device)
    real = slots < ends
    # -inf would give an empty sequence NaN rows. Its rows are left out, so any finite value does.
    bias = torch.where(real, 0.0, -1e30)[:, None, None, :]
    return slots.clamp(max=max(total - 1, 0)), real, bias


def _unpadded(padded: torch.Tensor, slots, real, like: torch.Tensor) -> torch.Tensor:
    """(batch, heads, max_seqlen, ...) -> (total, heads, ...): every token is in one real slot."""
    values = padded.transpose(1, 2).to(like.dtype)
    flat = values.new_zeros((like.shape[0] + 1, *values.shape[2:]))
    # slots that are not real write to one extra row, which is cut off
    target = torch.where(real, slots, like.shape[0])
    return flat.index_put_((target,), values)[:-1].contiguous()


def padded_fwd(inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The GPU's forward: no host sync, (batch, heads, max_seqlen, max_seqlen) scores in memory."""
    q = inputs.q
    opmath = opmath_dtype(q.dtype)
    if q.shape[0] == 0:
        return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=opmath)
    slots, real, bias = _padded(inputs)
    qs, ks, vs = (t[slots].transpose(1, 2).to(opmath) for t in (q, inputs.k, inputs.v))
    multiplier = _multiplier(inputs, torch.arange(len(slots), device=q.device), qs)
    out, lse = _dense_fwd(qs, ks, vs, inputs.scale, multiplier, bias.to(opmath))
    rows = q.new_empty(q.shape[:2], dtype=opmath)
    return _unpadded(out, slots, real, q), _unpadded(lse, slots, real, rows)


def padded_bwd(
    dout: torch.Tensor, inputs: AttentionInputs, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The GPU's backward. Rows of dout at padding are zero, so they add nothing to dk and dv."""
    q = inputs.q
    opmath = opmath_dtype(q.dtype)
    if q.shape[0] == 0:
        return torch.empty_like(q), torch.empty_like(q), torch.empty_like(q)
    slots, real, bias = _padded(inputs)
    tensors = (q, inputs.k, inputs.v, out, lse)
    qs, ks, vs, os, ls = (t[slots].transpose(1, 2).to(opmath) for t in tensors)
    ds = (dout[slots] * real[..., None, None]).transpose(1, 2).to(opmath)
    multiplier = _multiplier(inputs, torch.arange(len(slots), device=q.device), qs)
    parts = _dense_bwd(ds, qs, ks, vs, os, ls, inputs.scale, multiplier, bias.to(opmath))
    dq, dk, dv = (_unpadded(part, slots, real, q) for part in parts)
    return dq, dk, dv
