"""`varlen_attention` out of PyTorch's own operators, for devices that have no kernel of ours.

With P = softmax(S), S = scale q k^T, and M the dropout multiplier (0 or the scale of what is kept):

    out = (P M) v          lse = log sum_j exp(S_j)
    dv = (P M)^T dout      dP = (dout v^T) M      dS = P (dP - sum_d dout out)
    dq = scale dS k        dk = scale dS^T q

On the CPU sequences of equal length run together and nothing is padded. On a GPU lengths are
unknown to the host, and asking for them would stop it: there the batch is padded to max_seqlen.
"""

import functools

import torch

from spanbert_fast.ops import _common
from spanbert_fast.reference.dropout import attention_keep_mask, dropout_scale

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _multiplier(seed, site, sequences, like, threshold: int) -> torch.Tensor | None:
    if threshold == 0:
        return None
    _, heads, seqlen, _ = like.shape
    keep = attention_keep_mask(seed, site, sequences, heads, seqlen, threshold)
    return keep.to(like.dtype) * dropout_scale(threshold)


def _without_autocast(function):
    """Its products in the dtype of its arguments: autocast would make those of fp32 in bf16."""

    @functools.wraps(function)
    def plain(*arguments):
        with torch.autocast(arguments[0].device.type, enabled=False):
            return function(*arguments)

    return plain


@_without_autocast
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


@_without_autocast
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


def _groups(cu_seqlens, max_seqlen: int, total: int):
    """(seqlen, sequence numbers, token indices (batch * seqlen,)) of sequences of equal length."""
    bounds = cu_seqlens.tolist()
    _common.check_cu_values("cu_seqlens", bounds, total)
    by_length: dict[int, list[int]] = {}
    for sequence, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        by_length.setdefault(end - start, []).append(sequence)
    longest = max(by_length, default=0)
    if longest > max_seqlen:
        raise ValueError(
            f"max_seqlen must be at least the longest length {longest}, got {max_seqlen}"
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
        return tensor[start : start + seqlen].unsqueeze(0).transpose(1, 2)
    return tensor[tokens].unflatten(0, (-1, seqlen)).transpose(1, 2)


def _put(target: torch.Tensor, tokens: torch.Tensor, value: torch.Tensor) -> None:
    target[tokens] = value.transpose(1, 2).flatten(0, 1).to(target.dtype)


def grouped_fwd(q, k, v, cu_seqlens, max_seqlen, scale, seed, threshold, site):
    """The CPU's forward: PyTorch's flash attention, or plain matrix products under dropout."""
    opmath = _common.opmath_dtype(q.dtype)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty(q.shape[:2], dtype=opmath)
    for seqlen, sequences, tokens in _groups(cu_seqlens, max_seqlen, q.shape[0]):
        qs, ks, vs = (_take(t, tokens, seqlen) for t in (q, k, v))
        if threshold == 0:
            group_out, group_lse = _FLASH(qs, ks, vs, 0.0, False, scale=scale)
        else:
            qs, ks, vs = (t.to(opmath) for t in (qs, ks, vs))
            multiplier = _multiplier(seed, site, sequences, qs, threshold)
            group_out, group_lse = _dense_fwd(qs, ks, vs, scale, multiplier)
        _put(out, tokens, group_out)
        _put(lse, tokens, group_lse)
    return out, lse


def grouped_bwd(dout, q, k, v, out, lse, cu_seqlens, max_seqlen, scale, seed, threshold, site):
    """The CPU's backward."""
    opmath = _common.opmath_dtype(q.dtype)
    gradients = [torch.empty_like(q, memory_format=torch.contiguous_format) for _ in range(3)]
    for seqlen, sequences, tokens in _groups(cu_seqlens, max_seqlen, q.shape[0]):
        ds, qs, ks, vs, os, ls = (_take(t, tokens, seqlen) for t in (dout, q, k, v, out, lse))
        if threshold == 0:
            parts = _FLASH_BACKWARD(ds, qs, ks, vs, os, ls, 0.0, False, scale=scale)
        else:
            ds, qs, ks, vs, os = (t.to(opmath) for t in (ds, qs, ks, vs, os))
            multiplier = _multiplier(seed, site, sequences, qs, threshold)
            parts = _dense_bwd(ds, qs, ks, vs, os, ls, scale, multiplier)
        for gradient, part in zip(gradients, parts, strict=True):
            _put(gradient, tokens, part)
    return tuple(gradients)


def _padded(cu_seqlens, max_seqlen: int, total: int):
    """Token index of each padded slot (batch, max_seqlen), which slots are real, the key bias."""
    starts, ends = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    slots = starts + torch.arange(max_seqlen, device=cu_seqlens.device)
    real = slots < ends
    # An empty sequence would be all -inf and its rows NaN; those rows are dropped, so any finite
    # value does.
    bias = torch.where(real, 0.0, -1e30)[:, None, None, :]
    return slots.clamp(max=max(total - 1, 0)), real, bias


def _unpadded(padded: torch.Tensor, slots, real, like: torch.Tensor) -> torch.Tensor:
    """(batch, heads, max_seqlen, ...) -> (total, heads, ...): every token is in one real slot."""
    values = padded.transpose(1, 2).to(like.dtype)
    flat = values.new_zeros((like.shape[0] + 1, *values.shape[2:]))
    # what is not real goes to a row of its own, which is cut off
    target = torch.where(real, slots, like.shape[0])
    return flat.index_put_((target,), values)[:-1].contiguous()


def padded_fwd(
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
    """The GPU's forward: no host sync, (batch, heads, max_seqlen, max_seqlen) scores in memory."""
    opmath = _common.opmath_dtype(q.dtype)
    if q.shape[0] == 0:
        return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=opmath)
    slots, real, bias = _padded(cu_seqlens, max_seqlen, q.shape[0])
    qs, ks, vs = (t[slots].transpose(1, 2).to(opmath) for t in (q, k, v))
    sequences = torch.arange(len(slots), device=q.device)
    multiplier = _multiplier(seed, site, sequences, qs, threshold)
    out, lse = _dense_fwd(qs, ks, vs, scale, multiplier, bias.to(opmath))
    rows = q.new_empty(q.shape[:2], dtype=opmath)
    return _unpadded(out, slots, real, q), _unpadded(lse, slots, real, rows)


def padded_bwd(
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
    """The GPU's backward; rows of dout that pad are zero, so they add nothing to dk and dv."""
    opmath = _common.opmath_dtype(q.dtype)
    if q.shape[0] == 0:
        return torch.empty_like(q), torch.empty_like(q), torch.empty_like(q)
    slots, real, bias = _padded(cu_seqlens, max_seqlen, q.shape[0])
    qs, ks, vs, os, ls = (t[slots].transpose(1, 2).to(opmath) for t in (q, k, v, out, lse))
    ds = (dout[slots] * real[..., None, None]).transpose(1, 2).to(opmath)
    sequences = torch.arange(len(slots), device=q.device)
    multiplier = _multiplier(seed, site, sequences, qs, threshold)
    parts = _dense_bwd(ds, qs, ks, vs, os, ls, scale, multiplier, bias.to(opmath))
    dq, dk, dv = (_unpadded(part, slots, real, q) for part in parts)
    return dq, dk, dv
