"""Linear layers: their initial values, and calls that leave the bias to the op that follows."""

from collections.abc import Sequence
from typing import TypeGuard, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from spanbert_fast.ops.bias_gelu import bias_gelu
from spanbert_fast.ops.linear import linear, linears

_Module = TypeVar("_Module", bound=nn.Module)


def reset_linear(linear: nn.Linear, std: float = 0.02) -> None:
    """Normal(0, std) weight and zero bias, as BERT starts."""
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def is_plain(module: nn.Module, kind: type[_Module]) -> TypeGuard[_Module]:
    """Whether an op may use the module's parameters instead of calling it.

    This needs a module of class `kind` itself (no adapter), without hooks or a forward of its own,
    and no active transform of torch.func, for which the ops have no rules.
    """
    hooks = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
    if hooks or "forward" in vars(module) or _is_transformed():
        return False
    return type(module) is kind


def _is_transformed() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def apply_linear(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x W^T + bias by the op `linear`. A module that is not a plain nn.Linear is called."""
    return linear(x, module.weight, module.bias) if is_plain(module, nn.Linear) else module(x)


def apply_linears(modules: Sequence[nn.Module], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`apply_linear` of each with the same x; by the op `linears` where all are plain."""
    plain = [module for module in modules if is_plain(module, nn.Linear)]
    if len(plain) < len(modules):
        return tuple(apply_linear(module, x) for module in modules)
    return linears(x, [module.weight for module in plain], [module.bias for module in plain])


def linear_without_bias(
    module: nn.Module, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(x W^T, bias), for an op that adds the bias itself.

    A module that is not a plain nn.Linear (a LoRA adapter, a quantised layer, one with hooks or a
    forward of its own) is called. It adds its bias itself, so the bias returned is None.
    """
    if is_plain(module, nn.Linear):
        return linear(x, module.weight), module.bias
    return module(x), None


def linear_gelu(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """GELU(x W^T + bias), the exact form."""
    if _is_transformed():
        return F.gelu(module(x))
    y, bias = linear_without_bias(module, x)
    return bias_gelu(y, y.new_zeros(y.shape[-1]) if bias is None else bias)
