"""The dtypes that the ops compute in (contract C5)."""

import torch

from spanbert_fast._extension import _C


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of an op's output: autocast's if autocast is on, else that of x."""
    if x.is_floating_point() and is_autocast(x.device):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on for tensors of `device`; never on the meta device, which has none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def opmath_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and sums for inputs of `dtype`: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _slow_product_dtypes() -> tuple[torch.dtype, ...]:
    """The 16-bit dtypes that this CPU multiplies more slowly than fp32."""
    if _C is not None:
        has_bfloat16 = _C.has_bfloat16_products()
    else:
        has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return (torch.float16,) if has_bfloat16 else (torch.float16, torch.bfloat16)


_SLOW_PRODUCTS = _slow_product_dtypes()  # torch.compile cannot ask the CPU; it reads this constant


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which to multiply matrices of `dtype`: fp32 where this CPU, or PyTorch's code
    for it, multiplies `dtype` itself more slowly."""
    if device.type == "cpu" and dtype in _SLOW_PRODUCTS:
        return torch.float32
    return dtype
