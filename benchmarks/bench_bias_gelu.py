"""bias_gelu of a feed-forward's activations beside F.gelu(x + bias).

The forward reads x and writes y; the backward reads dy and x and writes dx.
"""

from op_case import COMPILED, DTYPES, OURS, PYTORCH, OpCase, Provider, compiled, leaf
from torch.nn import functional as F

from spanbert_fast.ops.bias_gelu import bias_gelu

VARIANTS = ("bf16", "fp32")
SIZES = {"tiny": (32, 96), "cpu": (4096, 3072), "cuda": (32_768, 4096)}


def case(variant: str, device: str, size: str) -> OpCase:
    """x (tokens, features) and a bias."""
    tokens, features = SIZES[size]
    dtype = DTYPES[variant]
    leaves = [leaf(*s, dtype=dtype, device=device) for s in ((tokens, features), (features,))]
    dy = leaf(tokens, features, dtype=dtype, device=device).detach()

    def eager(x, bias):
        return F.gelu(x + bias)

    return OpCase(
        op="bias_gelu",
        variant=variant,
        shape={"tokens": tokens, "features": features},
        dtype=variant,
        leaves=leaves,
        dy=dy,
        providers={
            OURS: Provider(bias_gelu),
            PYTORCH: Provider(eager),
            COMPILED: compiled(eager),
        },
        bytes_moved=(2 * dy.nbytes, 5 * dy.nbytes),
    )
