"""antecedent_loss of a long document beside PyTorch with all pairs of mentions in memory.

Products take most of the time: mentions^2 x features operations forward (half of the pairs are
candidates), and twice that backward, where the kernels also compute the scores twice more.
"""

import torch
from op_case import DTYPES, OURS, PYTORCH, OpCase, Provider, leaf

from spanbert_fast.ops.antecedent_loss import antecedent_loss
from spanbert_fast.reference.antecedent_loss import antecedent_loss as reference

VARIANTS = ("bf16", "fp32")
SIZES = {"tiny": (40, 24), "cpu": (2000, 768), "cuda": (8000, 1536)}


def pairs(mentions: int, features: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Queries, keys, mention scores and distance scores."""
    scale = features**-0.25
    return [
        leaf(mentions, features, dtype=dtype, device=device, scale=scale),
        leaf(mentions, features, dtype=dtype, device=device, scale=scale),
        leaf(mentions, dtype=torch.float32, device=device),
        leaf(mentions, 10, dtype=torch.float32, device=device),
    ]


def case(variant: str, device: str, size: str) -> OpCase:
    """One document; clusters of about four mentions."""
    mentions, features = SIZES[size]
    leaves = pairs(mentions, features, DTYPES[variant], device)
    clusters = torch.randint(mentions // 4, (mentions,), device=device)
    cu_mentions = torch.tensor([0, mentions], dtype=torch.int32, device=device)
    product = mentions * mentions * features
    moved = sum(t.nbytes for t in leaves)
    return OpCase(
        op="antecedent_loss",
        variant=variant,
        shape={"mentions": mentions, "features": features},
        dtype=variant,
        leaves=leaves,
        dy=torch.ones((), device=device),
        providers={
            OURS: Provider(lambda *t: antecedent_loss(*t, clusters, cu_mentions).mean()),
            PYTORCH: Provider(lambda *t: reference(*t, clusters, cu_mentions).mean()),
        },
        bytes_moved=(moved, 3 * moved),
        flops=(product, 3 * product),
    )
