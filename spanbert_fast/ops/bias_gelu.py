"""`bias_gelu`: GELU(x + bias). Forward and backward each pass over memory once."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from spanbert_fast.ops import _checks
from spanbert_fast.ops._autograd import differentiable
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._precision import compute_dtype, opmath_dtype
from spanbert_fast.ops._register import register
from spanbert_fast.reference import bias_gelu as reference


def bias_gelu(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """GELU(x + bias) in the exact form, x Phi(x) (Hendrycks and Gimpel, arXiv 1606.08415).

        >>> bias_gelu(torch.tensor([[-1.0, 0.0]]), torch.tensor([1.0, 1.0]))
        tensor([[0.0000, 0.8413]])

    Args:
        x: (..., features), floating.
        bias: (features,), floating; may be of a wider dtype than x.

    Returns:
        The shape and dtype of x (autocast's dtype under autocast). Sums and erf are fp32.
    """
    _checks.check_floating("x", x)
    _checks.check_floating("bias", bias)
    if x.dim() == 0:
        raise ValueError("x must have shape (..., features), got ()")
    _checks.check_shape("bias", bias, (x.shape[-1],))
    _checks.check_same_device("bias", bias, x, "x")
    if runs_reference():
        return reference.bias_gelu(x, bias)
    return _bias_gelu(BiasGeluInputs(x.to(compute_dtype(x)), bias))


class BiasGeluInputs(NamedTuple):
    """The arguments of the registered functions."""

    x: torch.Tensor
    bias: torch.Tensor


def _sum(inputs: BiasGeluInputs) -> torch.Tensor:
    opmath = opmath_dtype(inputs.x.dtype)
    return inputs.x.to(opmath) + inputs.bias.to(opmath)


def _composite_fwd(inputs: BiasGeluInputs) -> torch.Tensor:
    return F.gelu(_sum(inputs)).to(inputs.x.dtype).contiguous()


def _composite_bwd(dy: torch.Tensor, inputs: BiasGeluInputs) -> tuple[torch.Tensor, torch.Tensor]:
    z = _sum(inputs)
    dz = torch.ops.aten.gelu_backward(dy.to(z.dtype), z)
    dbias = dz.sum_to_size(inputs.bias.shape)
    return dz.to(inputs.x.dtype).contiguous(), dbias.to(inputs.bias.dtype)


def _fake_fwd(inputs: BiasGeluInputs):
    return inputs.x.new_empty(inputs.x.shape)


def _fake_bwd(dy, inputs: BiasGeluInputs):
    return inputs.x.new_empty(inputs.x.shape), torch.empty_like(inputs.bias)


_bias_gelu = differentiable(
    BiasGeluInputs,
    register("bias_gelu_fwd", _composite_fwd, _fake_fwd),
    register("bias_gelu_bwd", _composite_bwd, _fake_bwd),
    gradients=("x", "bias"),
)
