"""`linear` and `linears`: x W^T + b, of one layer and of several that read the same x.

On a CPU that multiplies fp32 faster, 16-bit products run in fp32. On a GPU several layers share
what they do with x:

    y_i = x W_i^T + b_i      dx = sum_i dy_i W_i      dW_i = dy_i^T x      db_i = sum of dy_i's rows

Autocast casts x once, each product of dx adds to the one before in place, and the gradients of
wider weights leave the products in their own dtype. `RoundedWeights` spare the casts of weights.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from spanbert_fast.ops import _checks
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._precision import compute_dtype, is_autocast, product_dtype
from spanbert_fast.ops._rounded import cast_weight


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
    if runs_reference():
        return F.linear(x, weight, bias)
    if _joins(x.device) and is_autocast(x.device) and weight.dtype != dtype:
        return linears(x, (weight,), (bias,))[0]
    if product_dtype(dtype, x.device) == dtype:
        return F.linear(x, weight, bias)
    _checks.check_floating("x", x)
    if not is_autocast(x.device):  # as PyTorch does, on every CPU
        _check_dtypes((weight,), (bias,), dtype)
    return _WideLinear.apply(x.to(dtype), weight, bias)


def linears(
    x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor, ...]:
    """`linear` of each weight and bias with the same x: attention's query, key and value.

        >>> weights = torch.eye(2).split(1)
        >>> linears(torch.tensor([[3.0, 4.0]]), weights, (None, torch.ones(1)))
        (tensor([[3.]]), tensor([[5.]]))

    On a GPU, in training, they are one function for autograd (the module's docstring says what it
    saves). Elsewhere each is a call of `linear`.

    Args:
        x: (..., in_features), floating.
        weights: each (out_features, in_features).
        biases: for each weight (out_features,) or None.

    Raises:
        TypeError: as `linear`.
    """
    if runs_reference() or not _joins(x.device):
        return tuple(linear(x, w, b) for w, b in zip(weights, biases, strict=True))
    dtype = compute_dtype(x)
    if not is_autocast(x.device):
        _check_dtypes(weights, biases, dtype)
    x = x.to(dtype)
    if _differentiates(x, *weights, *biases):
        return _Linears.apply(x, *weights, *biases)
    return tuple(F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))


def _check_dtypes(weights, biases, dtype: torch.dtype) -> None:
    for name, tensors in (("weight", weights), ("bias", biases)):
        for tensor in tensors:
            if tensor is not None and tensor.dtype != dtype:
                raise TypeError(f"{name} must be {dtype} as x is, got {tensor.dtype}")


def _joins(device: torch.device) -> bool:
    """Whether `linears` is one function: on a GPU, whose time goes into passes over memory."""
    return device.type == "cuda"


def _differentiates(*tensors: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


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


class _Linears(torch.autograd.Function):
    """(x W_i^T + b_i for each i) in the dtype of x, to which the weights are cast."""

    @staticmethod
    def forward(ctx, x, *parameters):
        half = len(parameters) // 2
        weights, biases = parameters[:half], parameters[half:]
        with torch.autocast(x.device.type, enabled=False):
            cast = [cast_weight(weight, x.dtype) for weight in weights]
            results = tuple(
                F.linear(x, w, None if b is None else b.to(x.dtype))
                for w, b in zip(cast, biases, strict=True)
            )
        ctx.bias_dtypes = [None if b is None else b.dtype for b in biases]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *weights, *cast)
        return results

    @staticmethod
    def backward(ctx, *gradients):
        x, *saved = ctx.saved_tensors
        half = len(saved) // 2
        weights, cast = saved[:half], saved[half:]
        if torch.is_grad_enabled():  # for second derivatives: what was cast has no history
            cast = [weight.to(x.dtype) for weight in weights]
        needed = ctx.needs_input_grad
        rows = x.reshape(-1, x.shape[-1])
        dx: torch.Tensor | None = None
        dweights: list[torch.Tensor | None] = [None] * half
        dbiases: list[torch.Tensor | None] = [None] * half
        with torch.autocast(x.device.type, enabled=False):
            for i, dy in enumerate(gradients):
                if dy is None:
                    continue
                dy = dy.reshape(-1, dy.shape[-1])
                if needed[0]:
                    dx = dy @ cast[i] if dx is None else dx.addmm_(dy, cast[i])
                if needed[1 + i]:
                    dweights[i] = _product(dy.t(), rows, weights[i].dtype)
                if needed[1 + half + i]:
                    dbiases[i] = dy.sum(0, dtype=ctx.bias_dtypes[i])
        return None if dx is None else dx.view(x.shape), *dweights, *dbiases


def _product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a @ b in `dtype`; on a GPU fp32 comes straight from the accumulators."""
    if a.is_cuda and a.dtype != dtype == torch.float32 and not torch.is_grad_enabled():
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)
