"""The two forms of dropout: one value for the ops, flat arguments for the registered functions."""

from typing import NamedTuple

import torch

from spanbert_fast.reference.dropout import (
    Dropout,
    DropoutPlan,
    dropout_scale,
    dropped,
    hidden_keep_mask,
)

__all__ = [
    "Dropout",
    "DropoutPlan",
    "FlatDropout",
    "dropped",
    "flat_dropout",
    "hidden_multiplier",
    "of_flat",
]


class FlatDropout(NamedTuple):
    """A `Dropout` as a registered op takes it. Threshold 0 drops nothing and needs no seed."""

    seed: torch.Tensor | None
    threshold: int
    site: int


_NOTHING = FlatDropout(None, 0, 0)


def flat_dropout(dropout: Dropout | None, like: torch.Tensor) -> FlatDropout:
    """The flat form of `dropout` for tensors on the device of `like`.

    Raises:
        ValueError: p, site or seed is not what `Dropout` says, or the seed is on another device.
    """
    if dropout is None or dropout.p == 0:
        return _NOTHING
    threshold = dropout.threshold
    if not 0 <= dropout.site < 1 << 16:
        raise ValueError(f"dropout.site must be in [0, 65536), got {dropout.site}")
    seed = dropout.seed
    if not isinstance(seed, torch.Tensor) or seed.dtype != torch.int64 or seed.dim() != 0:
        came = f"{seed.dtype} {tuple(seed.shape)}" if isinstance(seed, torch.Tensor) else repr(seed)
        raise ValueError(f"dropout.seed must be a 0-dim int64 tensor, got {came}")
    if seed.device != like.device:
        raise ValueError(
            f"dropout.seed must be on {like.device} as the input is, got {seed.device}"
        )
    return FlatDropout(seed, threshold, dropout.site)


def of_flat(
    seed: torch.Tensor | None, threshold: int, site: int, rows: torch.Tensor | None = None
) -> Dropout | None:
    """The `Dropout` of flat arguments, for composites; None if nothing is dropped."""
    if seed is None or threshold == 0:
        return None
    return Dropout(threshold / 256, seed, site, rows)


def hidden_multiplier(dropout: Dropout | None, like: torch.Tensor) -> torch.Tensor | None:
    """The multiplier of each element of a (tokens, hidden_size) matrix, in the dtype of `like`: 0,
    or the scale of kept elements. None if nothing is dropped."""
    if dropout is None:
        return None
    tokens, hidden_size = like.shape
    keep = hidden_keep_mask(dropout, tokens, hidden_size, like.device)
    return keep.to(like.dtype) * dropout_scale(dropout.threshold)
