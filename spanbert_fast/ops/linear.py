"""`linear`: x W^T + b. 16-bit products run in fp32 on a CPU that multiplies fp32 faster."""

import torch
from torch.nn import functional as F

from spanbert_fast.ops import _checks
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._precision import compute_dtype, is_autocast, product_dtype


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x weight^T + bias, as torch.nn.functional.linear.

    A CPU without units for bfloat16 or float16 multiplies such matrices several times more slowly
    than float32 ones. On such a CPU this op widens the operands, multiplies and sums in fp32, and
    rounds the result once.

        >>> linear(torch.ones(1, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]))
        tensor([[3.5000]])

    Args:
        x: (..., in_features), floating.
        weight: (out_features, in_features); under autocast it may be of another dtype than x.
        bias: (out_features,).

    Returns:
        (..., out_features) in the dtype of x (autocast's under autocast).

    Raises:
        TypeError: without autocast, weight or bias is of another dtype than x. (Where PyTorch's own
            operator runs, this is a RuntimeError.)
    """
    dtype = compute_dtype(x)
    if runs_reference() or product_dtype(dtype, x.device) == dtype:
        return F.linear(x, weight, bias)
    _checks.check_floating("x", x)
    if not is_autocast(x.device):  # as PyTorch does, on every CPU
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None and tensor.dtype != dtype:
                raise TypeError(f"{name} must be {dtype} as x is, got {tensor.dtype}")
    return _WideLinear.apply(x.to(dtype), weight, bias)


class _WideLinear(torch.autograd.Function):
    """Widens the operands for each product; saves them for the backward as they came."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        with torch.autocast(x.device.type, enabled=False):
            y = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx = dweight = dbias = None
        with torch.autocast(x.device.type, enabled=False):
            dy = dy.float()
            if ctx.needs_input_grad[0]:
                dx = (dy @ weight.float()).to(x.dtype)
            if ctx.needs_input_grad[1]:
                rows = dy.reshape(-1, dy.shape[-1])
                dweight = (rows.t() @ x.float().reshape(-1, x.shape[-1])).to(weight.dtype)
            if ctx.needs_input_grad[2]:
                dbias = dy.reshape(-1, dy.shape[-1]).sum(0).to(ctx.bias_dtype)
        return dx, dweight, dbias
