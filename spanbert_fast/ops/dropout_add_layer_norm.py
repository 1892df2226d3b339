"""`dropout_add_layer_norm`: the last step of attention and of the feed-forward, in one pass."""

from typing import NamedTuple

import torch

from spanbert_fast.ops import _checks
from spanbert_fast.ops._autograd import differentiable
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._precision import compute_dtype, opmath_dtype
from spanbert_fast.ops._register import register
from spanbert_fast.ops.dropout import Dropout, flat_dropout, hidden_multiplier, of_flat
from spanbert_fast.reference import dropout_add_layer_norm as reference


def dropout_add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    x_bias: torch.Tensor | None = None,
    dropout: Dropout | None = None,
    eps: float = 1e-12,
    residual_in_fp32: bool = False,
) -> torch.Tensor:
    """y = LayerNorm(dropout(x + x_bias) + residual).

        >>> x, weight, bias = torch.tensor([[1.0, -1.0]]), torch.ones(2), torch.zeros(2)
        >>> dropout_add_layer_norm(x, x, weight, bias)
        tensor([[ 1., -1.]])

    Args:
        x, residual: (tokens, hidden_size), floating.
        weight, bias: (hidden_size,), the norm's scale and shift.
        x_bias: (hidden_size,), the bias of the linear layer that computed x.
        dropout: which elements of x + x_bias are dropped; None for none.
        eps: added to the variance.
        residual_in_fp32: read the residual in fp32 and return y in fp32, for the next residual.

    Returns:
        (tokens, hidden_size) in x's dtype (autocast's under autocast), or in fp32 with
        residual_in_fp32; statistics in fp32.
    """
    for name, tensor in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        _checks.check_floating(name, tensor)
        _checks.check_same_device(name, tensor, x, "x")
    _checks.check_shape("x", x, ("tokens", "hidden_size"))
    _checks.check_shape("residual", residual, tuple(x.shape))
    _checks.check_shape("weight", weight, (x.shape[1],))
    _checks.check_shape("bias", bias, (x.shape[1],))
    if x_bias is not None:
        _checks.check_shape("x_bias", x_bias, (x.shape[1],))
    seed, threshold, site = flat_dropout(dropout, x)
    rows = dropout.rows if dropout is not None and threshold else None
    if rows is not None:
        _checks.check_shape("dropout.rows", rows, (x.shape[0],))
        _checks.check_integer("dropout.rows", rows, (torch.int64,))
    if runs_reference():
        return reference.dropout_add_layer_norm(
            x, residual, weight, bias, x_bias=x_bias, dropout=dropout, eps=eps,
            residual_in_fp32=residual_in_fp32,
        )  # fmt: skip
    dtype = compute_dtype(x)
    x = x.to(dtype)
    residual = residual.to(opmath_dtype(dtype) if residual_in_fp32 else dtype)
    return _dropout_add_layer_norm(
        NormInputs(x, residual, weight, bias, x_bias, seed, rows, threshold, site, eps)
    )


class NormInputs(NamedTuple):
    """The arguments of the registered functions; y has residual's dtype."""

    x: torch.Tensor
    residual: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    x_bias: torch.Tensor | None
    seed: torch.Tensor | None
    rows: torch.Tensor | None
    threshold: int
    site: int
    eps: float


class NormGradients(NamedTuple):
    """The results of the backward; dx_bias is (0,) where there is no x_bias."""

    dx: torch.Tensor
    dresidual: torch.Tensor
    dweight: torch.Tensor
    dbias: torch.Tensor
    dx_bias: torch.Tensor


def _multiplier_and_sum(i: NormInputs) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(dropout's multiplier or None, the sum that is normalised)."""
    z = i.x.to(opmath_dtype(i.x.dtype))
    if i.x_bias is not None:
        z = z + i.x_bias.to(z.dtype)
    multiplier = hidden_multiplier(of_flat(i.seed, i.threshold, i.site, i.rows), z)
    if multiplier is not None:
        z = z * multiplier
    return multiplier, z + i.residual.to(z.dtype)


def _composite_fwd(inputs: NormInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd); the statistics (tokens, 1) are for the backward."""
    _, z = _multiplier_and_sum(inputs)
    weight, bias = inputs.weight.to(z.dtype), inputs.bias.to(z.dtype)
    y, mean, rstd = torch.native_layer_norm(z, (z.shape[1],), weight, bias, inputs.eps)
    return y.to(inputs.residual.dtype), mean, rstd


def _composite_bwd(
    dy: torch.Tensor, inputs: NormInputs, mean: torch.Tensor, rstd: torch.Tensor
) -> NormGradients:
    """The gradients; the sum is computed again rather than stored."""
    multiplier, z = _multiplier_and_sum(inputs)
    _checks.check_norm_saved(dy, mean, rstd, z)
    weight, bias = inputs.weight.to(z.dtype), inputs.bias.to(z.dtype)
    # PyTorch reads them as if they were contiguous
    mean, rstd = mean.contiguous(), rstd.contiguous()
    dz, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy.to(z.dtype), z, (z.shape[1],), mean, rstd, weight, bias, [True, True, True]
    )
    dx = dz.clone() if multiplier is None else dz * multiplier  # outputs may not share memory
    x_bias = inputs.x_bias
    return NormGradients(
        dx.to(inputs.x.dtype),
        dz.to(inputs.residual.dtype),
        dweight.to(inputs.weight.dtype),
        dbias.to(inputs.bias.dtype),
        inputs.x.new_empty(0) if x_bias is None else dx.sum(0).to(x_bias.dtype),
    )


def _fake_fwd(inputs: NormInputs):
    x = inputs.x
    statistics = x.new_empty((x.shape[0], 1), dtype=opmath_dtype(x.dtype))
    return inputs.residual.new_empty(x.shape), statistics, torch.empty_like(statistics)


def _fake_bwd(dy, inputs: NormInputs, mean, rstd):
    x, residual, weight, bias, x_bias, *_ = inputs
    return NormGradients(
        x.new_empty(x.shape),
        residual.new_empty(residual.shape),
        torch.empty_like(weight),
        torch.empty_like(bias),
        x.new_empty(0) if x_bias is None else torch.empty_like(x_bias),
    )


_dropout_add_layer_norm = differentiable(
    NormInputs,
    register("dropout_add_layer_norm_fwd", _composite_fwd, _fake_fwd),
    register("dropout_add_layer_norm_bwd", _composite_bwd, _fake_bwd),
    gradients=("x", "residual", "weight", "bias", "x_bias"),
)
