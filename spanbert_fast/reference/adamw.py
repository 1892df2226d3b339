"""AdamW's step for one weight, in plain PyTorch."""

import torch


def adamw(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    step: int | torch.Tensor,
    *,
    lr: float | torch.Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weight, exp_avg, exp_avg_sq) after the step of that number, which begins at 1."""
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient**2
    mean, square = exp_avg / (1 - beta1**step), exp_avg_sq / (1 - beta2**step)
    weight = weight - lr * weight_decay * weight
    return weight - lr * mean / (square.sqrt() + eps), exp_avg, exp_avg_sq
