"""Checks of the ops' arguments. Each check exists once, so each error has one wording."""

from collections.abc import Sequence

import torch


def check_shape(name: str, tensor: torch.Tensor, shape: tuple[int | str, ...]) -> None:
    """Raise unless `tensor` has `shape`, in which a string stands for any size."""
    fits = tensor.dim() == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(tensor.shape)}")


def check_floating(name: str, tensor: torch.Tensor) -> None:
    """Raise unless `tensor` is of a floating dtype that the ops compute in."""
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")


def check_integer(name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise unless `tensor` has one of the integer `dtypes`."""
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be {wanted}, got {tensor.dtype}")


def check_cu_seqlens(name: str, cu_seqlens: torch.Tensor) -> None:
    """Check shape and dtype of prefix sums. `check_cu_values` checks their values, on the CPU."""
    check_shape(name, cu_seqlens, ("batch + 1",))
    check_integer(name, cu_seqlens, (torch.int32,))
    if cu_seqlens.shape[0] == 0:
        raise ValueError(f"{name} must have shape (batch + 1,), got (0,)")


def check_cu_values(name: str, values: list[int], total: int) -> None:
    """Raise unless prefix sums start at 0, do not fall and end at `total` (CPU paths only)."""
    if values[0] != 0:
        raise ValueError(f"{name} must start at 0, got {values[0]}")
    for i, (left, right) in enumerate(zip(values, values[1:], strict=False)):
        if right < left:
            raise ValueError(f"{name} must not fall, got {left} then {right} at index {i + 1}")
    if values[-1] != total:
        raise ValueError(f"{name} must end at {total}, got {values[-1]}")


def check_ids(name: str, ids: torch.Tensor, rows: int) -> None:
    """Raise on an id outside [0, rows). Checks on the CPU only, and not while compiling."""
    if ids.device.type != "cpu" or ids.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = (value.item() for value in ids.aminmax())
    if low < 0 or high >= rows:
        raise ValueError(f"{name} must be in [0, {rows}), got {low if low < 0 else high}")


def check_group_sizes(group_sizes: Sequence[int], rows: int) -> None:
    """Raise unless the sizes are numbers of rows that sum to `rows`."""
    if any(size < 0 for size in group_sizes) or sum(group_sizes) != rows:
        raise ValueError(
            f"group_sizes must not be negative and sum to {rows} rows, got {tuple(group_sizes)}"
        )


def check_same_device(name: str, tensor: torch.Tensor, like: torch.Tensor, like_name: str) -> None:
    """Raise unless both tensors are on one device."""
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} as {like_name} is, got {tensor.device}")


def check_distinct(name: str, indices: torch.Tensor) -> None:
    """Raise on an index that occurs twice. Checks on the CPU only, and not while compiling."""
    if indices.device.type != "cpu" or torch.compiler.is_compiling():
        return
    values, counts = indices.unique(return_counts=True)
    if len(values) < len(indices):
        twice = values[counts > 1][0].item()
        raise ValueError(f"{name} must be distinct, got {twice} twice")


def check_norm_saved(
    dy: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, z: torch.Tensor
) -> None:
    """Raise unless they fit the (rows, hidden_size) input z of a norm. PyTorch's backward assumes
    that they do, and would read out of bounds."""
    check_shape("dy", dy, tuple(z.shape))
    for name, statistics in (("mean", mean), ("rstd", rstd)):
        check_shape(name, statistics, (z.shape[0], 1))
