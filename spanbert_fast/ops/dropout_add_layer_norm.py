"""`dropout_add_layer_norm`: the end of both halves of a BERT layer, in one pass."""

import torch

from spanbert_fast.ops import _common
from spanbert_fast.ops._cpu import register_cpu_kernel
from spanbert_fast.ops._cuda import register_cuda_kernel
from spanbert_fast.ops._dropout import check_dropout
from spanbert_fast.reference import dropout_add_layer_norm as reference
from spanbert_fast.reference.dropout import dropout_scale, hidden_keep_mask


def dropout_add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    x_bias: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: torch.Tensor | None = None,
    dropout_site: int = 0,
    dropout_rows: torch.Tensor | None = None,
    eps: float = 1e-12,
    residual_in_fp32: bool = False,
) -> torch.Tensor:
    """y = LayerNorm(dropout(x + x_bias) + residual).

    Args:
        x, residual: (tokens, hidden_size), floating.
        weight, bias: (hidden_size,), the norm's scale and shift.
        x_bias: (hidden_size,), the bias of the linear layer that made x.
        dropout_p: probability of dropping, to 1/256 (contract C4).
        dropout_seed: int64 0-dim tensor on x's device; needed where dropout_p > 0.
        dropout_site: number of the place in the model; each has its own mask.
        dropout_rows: int64 (tokens,), the rows' numbers in the full matrix where x holds only some
            of them, so that a row's mask does not depend on which others are computed.
        eps: added to the variance.
        residual_in_fp32: read the residual and write y, the next one's residual, in fp32.

    Returns:
        (tokens, hidden_size) in x's dtype (autocast's under autocast), or in fp32 with
        residual_in_fp32; statistics in fp32.
    """
    for name, tensor in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        _common.check_floating(name, tensor)
        _common.check_same_device(name, tensor, x, "x")
    _common.check_shape("x", x, ("tokens", "hidden_size"))
    _common.check_shape("residual", residual, tuple(x.shape))
    _common.check_shape("weight", weight, (x.shape[1],))
    _common.check_shape("bias", bias, (x.shape[1],))
    if x_bias is not None:
        _common.check_shape("x_bias", x_bias, (x.shape[1],))
    if dropout_rows is not None:
        _common.check_shape("dropout_rows", dropout_rows, (x.shape[0],))
        _common.check_integer("dropout_rows", dropout_rows, (torch.int64,))
    threshold = check_dropout(dropout_p, dropout_seed, dropout_site, x)
    if _common.runs_reference():
        return reference.dropout_add_layer_norm(
            x,
            residual,
            weight,
            bias,
            x_bias=x_bias,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
            dropout_site=dropout_site,
            dropout_rows=dropout_rows,
            eps=eps,
            residual_in_fp32=residual_in_fp32,
        )
    if threshold == 0:
        dropout_seed = dropout_rows = None
    dtype = _common.compute_dtype(x)
    y, _, _ = _dropout_add_layer_norm_fwd(
        x.to(dtype),
        residual.to(_common.opmath_dtype(dtype) if residual_in_fp32 else dtype),
        weight,
        bias,
        x_bias,
        dropout_seed,
        dropout_rows,
        threshold,
        dropout_site,
        eps,
    )
    return y


def _scaled_mask(x, seed, rows, threshold: int, site: int) -> torch.Tensor | None:
    """What x is multiplied by: 0, or the scale of what is kept; None where nothing is dropped."""
    if threshold == 0:
        return None
    if rows is None:
        rows = torch.arange(x.shape[0], device=x.device)
    keep = hidden_keep_mask(seed, site, rows, x.shape[1], threshold)
    return keep.to(_common.opmath_dtype(x.dtype)) * dropout_scale(threshold)


def _normalised_sum(x, residual, x_bias, mask) -> torch.Tensor:
    opmath = _common.opmath_dtype(x.dtype)
    z = x.to(opmath)
    if x_bias is not None:
        z = z + x_bias.to(opmath)
    if mask is not None:
        z = z * mask
    return z + residual.to(opmath)


def _composite_fwd(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x_bias: torch.Tensor | None,
    seed: torch.Tensor | None,
    rows: torch.Tensor | None,
    threshold: int,
    site: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y in residual's dtype, mean, rstd); the statistics (tokens, 1) are for the backward."""
    z = _normalised_sum(x, residual, x_bias, _scaled_mask(x, seed, rows, threshold, site))
    y, mean, rstd = torch.native_layer_norm(
        z, (x.shape[1],), weight.to(z.dtype), bias.to(z.dtype), eps
    )
    return y.to(residual.dtype), mean, rstd


_dropout_add_layer_norm_fwd = torch.library.custom_op(
    "spanbert_fast::dropout_add_layer_norm_fwd", _composite_fwd, mutates_args=()
)
register_cpu_kernel("dropout_add_layer_norm_fwd", _composite_fwd)
register_cuda_kernel("dropout_add_layer_norm_fwd", _composite_fwd)


@_dropout_add_layer_norm_fwd.register_fake
def _(x, residual, weight, bias, x_bias, seed, rows, threshold, site, eps):
    statistics = x.new_empty((x.shape[0], 1), dtype=_common.opmath_dtype(x.dtype))
    return residual.new_empty(x.shape), statistics, torch.empty_like(statistics)


def _composite_bwd(
    dy: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x_bias: torch.Tensor | None,
    seed: torch.Tensor | None,
    rows: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    threshold: int,
    site: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dresidual, dweight, dbias, dx_bias); the sum is made again rather than stored."""
    mask = _scaled_mask(x, seed, rows, threshold, site)
    z = _normalised_sum(x, residual, x_bias, mask)
    dz, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy.to(z.dtype),
        z,
        (x.shape[1],),
        mean,
        rstd,
        weight.to(z.dtype),
        bias.to(z.dtype),
        [True, True, True],
    )
    dx = dz * mask if mask is not None else dz.clone()  # outputs of an op may not share memory
    dx_bias = dx.sum(0).to(x_bias.dtype) if x_bias is not None else x.new_empty(0)
    return (
        dx.to(x.dtype),
        dz.to(residual.dtype),
        dweight.to(weight.dtype),
        dbias.to(bias.dtype),
        dx_bias,
    )


_dropout_add_layer_norm_bwd = torch.library.custom_op(
    "spanbert_fast::dropout_add_layer_norm_bwd", _composite_bwd, mutates_args=()
)
register_cpu_kernel("dropout_add_layer_norm_bwd", _composite_bwd)
register_cuda_kernel("dropout_add_layer_norm_bwd", _composite_bwd)


@_dropout_add_layer_norm_bwd.register_fake
def _(dy, x, residual, weight, bias, x_bias, seed, rows, mean, rstd, threshold, site):
    dx_bias = torch.empty_like(x_bias) if x_bias is not None else x.new_empty(0)
    return (
        x.new_empty(x.shape),
        residual.new_empty(residual.shape),
        torch.empty_like(weight),
        torch.empty_like(bias),
        dx_bias,
    )


def _setup_context(ctx, inputs, output):
    x, residual, weight, bias, x_bias, seed, rows, ctx.threshold, ctx.site, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, residual, weight, bias, x_bias, seed, rows, mean, rstd)


def _backward(ctx, dy, _dmean, _drstd):
    if dy is None:
        return (None,) * 10
    saved = ctx.saved_tensors  # once: activation checkpointing unpacks no tensor twice
    dx, dresidual, dweight, dbias, dx_bias = _dropout_add_layer_norm_bwd(
        dy, *saved, ctx.threshold, ctx.site
    )
    if saved[4] is None:
        dx_bias = None
    return dx, dresidual, dweight, dbias, dx_bias, None, None, None, None, None


_dropout_add_layer_norm_fwd.register_autograd(_backward, setup_context=_setup_context)
