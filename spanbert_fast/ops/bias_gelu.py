"""`bias_gelu`: GELU(x + bias), bias and activation in one pass."""

import torch
from torch.nn import functional as F

from spanbert_fast.ops import _common
from spanbert_fast.ops._cpu import register_cpu_kernel
from spanbert_fast.ops._cuda import register_cuda_kernel
from spanbert_fast.reference import bias_gelu as reference


def bias_gelu(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """GELU(x + bias) in the exact form, x Phi(x) (Hendrycks and Gimpel, arXiv 1606.08415).

    Args:
        x: (..., features), floating.
        bias: (features,), floating; may be of a wider dtype than x.

    Returns:
        Of the shape and dtype of x (under autocast: in autocast's dtype). Sums and erf in fp32.
    """
    _common.check_floating("x", x)
    _common.check_floating("bias", bias)
    if x.dim() == 0:
        raise ValueError("x must have shape (..., features), got ()")
    _common.check_shape("bias", bias, (x.shape[-1],))
    _common.check_same_device("bias", bias, x, "x")
    if _common.runs_reference():
        return reference.bias_gelu(x, bias)
    return _bias_gelu_fwd(x.to(_common.compute_dtype(x)), bias)


def _sum(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    opmath = _common.opmath_dtype(x.dtype)
    return x.to(opmath) + bias.to(opmath)


def _composite_fwd(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.gelu(_sum(x, bias)).to(x.dtype).contiguous()


_bias_gelu_fwd = torch.library.custom_op(
    "spanbert_fast::bias_gelu_fwd", _composite_fwd, mutates_args=()
)
register_cpu_kernel("bias_gelu_fwd", _composite_fwd)
register_cuda_kernel("bias_gelu_fwd", _composite_fwd)


@_bias_gelu_fwd.register_fake
def _(x, bias):
    return x.new_empty(x.shape)


def _composite_bwd(
    dy: torch.Tensor, x: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    z = _sum(x, bias)
    dz = torch.ops.aten.gelu_backward(dy.to(z.dtype), z)
    dbias = dz.sum_to_size(bias.shape)
    return dz.to(x.dtype).contiguous(), dbias.to(bias.dtype)


_bias_gelu_bwd = torch.library.custom_op(
    "spanbert_fast::bias_gelu_bwd", _composite_bwd, mutates_args=()
)
register_cpu_kernel("bias_gelu_bwd", _composite_bwd)
register_cuda_kernel("bias_gelu_bwd", _composite_bwd)


@_bias_gelu_bwd.register_fake
def _(dy, x, bias):
    return x.new_empty(x.shape), torch.empty_like(bias)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):
    return _bias_gelu_bwd(dy, *ctx.saved_tensors)


_bias_gelu_fwd.register_autograd(_backward, setup_context=_setup_context)
