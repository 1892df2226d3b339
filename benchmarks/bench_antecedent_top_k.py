"""antecedent_top_k of a long document beside torch.topk over all pairs of mentions.

The numbers are whole, so that every order of a sum gives the same bits.
"""

import torch
from bench_antecedent_loss import pairs
from op_case import DTYPES, OURS, PYTORCH, ExactCase

from spanbert_fast.ops.antecedent_top_k import antecedent_top_k
from spanbert_fast.reference.antecedent_top_k import antecedent_top_k as reference

VARIANTS = ("bf16, 1", "bf16, 50", "fp32, 50")  # dtype and k
SIZES = {"tiny": (40, 24), "cpu": (2000, 768), "cuda": (8000, 1536)}


def case(variant: str, device: str, size: str) -> ExactCase:
    """One document."""
    mentions, features = SIZES[size]
    dtype, k = variant.split(", ")
    tensors = [t.detach().round() for t in pairs(mentions, features, DTYPES[dtype], device)]
    # of 0, 1 and -1, few enough for the products to be exact in bf16
    signs = [torch.randint(-1, 2, t.shape, device=device) for t in tensors[:2]]
    kept = [s * (torch.rand(s.shape, device=device) < 0.05) for s in signs]
    tensors[:2] = [t.to(DTYPES[dtype]) for t in kept]
    cu_mentions = torch.tensor([0, mentions], dtype=torch.int32, device=device)
    calls = {
        PYTORCH: lambda: reference(*tensors, cu_mentions, int(k)),
        OURS: lambda: antecedent_top_k(*tensors, cu_mentions, int(k)),
    }
    moved = sum(t.nbytes for t in tensors)
    return ExactCase(
        "antecedent_top_k",
        variant,
        {"mentions": mentions, "features": features, "k": int(k)},
        {OURS: calls[OURS], PYTORCH: calls[PYTORCH]},
        calls,
        (moved, moved),
        dtype=dtype,
        flops=(mentions * mentions * features,) * 2,
    )
