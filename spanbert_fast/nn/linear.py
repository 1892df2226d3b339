"""Linear layers: their initial values, and their bias left to the op that follows."""

from typing import TypeGuard, TypeVar

import torch
from torch import nn

from spanbert_fast.ops.bias_gelu import bias_gelu
from spanbert_fast.ops.linear import linear

_Module = TypeVar("_Module", bound=nn.Module)


def reset_linear(linear: nn.Linear, std: float = 0.02) -> None:
    """Normal(0, std) weight and zero bias, as BERT starts."""
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def is_plain(module: nn.Module, kind: type[_Module]) -> TypeGuard[_Module]:
    """Whether nothing is lost where an op takes the module's parameters instead of calling it: it
    is of `kind` itself (no adapter around it) and has neither hooks nor a forward of its own."""
    hooks = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
    return type(module) is kind and not hooks and "forward" not in vars(module)


def apply_linear(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x W^T + bias by the op `linear`; what is not a plain nn.Linear is called as it is."""
    return linear(x, module.weight, module.bias) if is_plain(module, nn.Linear) else module(x)


def linear_without_bias(
    module: nn.Module, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(x W^T, bias), for an op that adds the bias itself.

    A module that is not a plain nn.Linear (a LoRA adapter, a quantised layer, one with hooks or a
    forward of its own) is called as it is, and its bias comes back as None: already added.
    """
    if is_plain(module, nn.Linear):
        return linear(x, module.weight), module.bias
    return module(x), None


def linear_gelu(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """GELU(x W^T + bias), the exact form."""
    y, bias = linear_without_bias(module, x)
    return bias_gelu(y, y.new_zeros(y.shape[-1]) if bias is None else bias)
