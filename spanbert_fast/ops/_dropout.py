"""The dropout arguments that several ops share: one check, one meaning."""

import torch

from spanbert_fast.reference.dropout import dropout_threshold


def check_dropout(
    dropout_p: float,
    dropout_seed: torch.Tensor | None,
    dropout_site: int,
    like: torch.Tensor,
) -> int:
    """The byte threshold of `dropout_p`; raises unless site and seed are valid, and the seed lies
    beside `like`."""
    threshold = dropout_threshold(dropout_p)
    if threshold == 0:
        return 0
    if not 0 <= dropout_site < 1 << 16:
        raise ValueError(f"dropout_site must be in [0, 65536), got {dropout_site}")
    if dropout_seed is None:
        raise ValueError(f"dropout_seed must be given with dropout_p > 0, got {dropout_p} and None")
    if dropout_seed.dtype != torch.int64 or dropout_seed.dim() != 0:
        raise ValueError(
            "dropout_seed must be a 0-dim int64 tensor, got "
            f"{dropout_seed.dtype} {tuple(dropout_seed.shape)}"
        )
    if dropout_seed.device != like.device:
        raise ValueError(
            f"dropout_seed must be on {like.device} as the input is, got {dropout_seed.device}"
        )
    return threshold
