"""dropout_add_layer_norm beside F.layer_norm(F.dropout(x + x_bias) + residual).

The forward reads x and the residual and writes y; the backward reads dy, x and the residual and
writes both gradients.
"""

import torch
from op_case import COMPILED, DTYPES, OURS, PYTORCH, OpCase, Provider, compiled, leaf
from torch.nn import functional as F

from spanbert_fast.ops.dropout import Dropout
from spanbert_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm

VARIANTS = ("bf16, p=.1", "bf16, p=0", "fp32, p=.1", "fp32, p=0")
SIZES = {"tiny": (32, 96), "cpu": (4096, 768), "cuda": (32_768, 1024)}


def case(variant: str, device: str, size: str) -> OpCase:
    """x and residual (tokens, hidden_size), the norm's parameters and x's bias."""
    tokens, hidden = SIZES[size]
    name, _, p = variant.partition(", p=")
    dtype, dropout_p = DTYPES[name], float(p)
    seed = torch.tensor(2019, device=device)
    shapes = ((tokens, hidden), (tokens, hidden), (hidden,), (hidden,), (hidden,))
    leaves = [leaf(*shape, dtype=dtype, device=device) for shape in shapes]
    dy = leaf(tokens, hidden, dtype=dtype, device=device).detach()

    def ours(p: float):
        dropout = Dropout(p, seed) if p else None
        return lambda x, residual, weight, bias, x_bias: dropout_add_layer_norm(
            x, residual, weight, bias, x_bias=x_bias, dropout=dropout
        )

    def eager(p: float):
        def function(x, residual, weight, bias, x_bias):
            z = F.dropout(x + x_bias, p) + residual
            return F.layer_norm(z, (hidden,), weight, bias, 1e-12)

        return function

    def forms(make):
        return make(dropout_p), make(0.0) if dropout_p else None

    return OpCase(
        op="dropout_add_layer_norm",
        variant=variant,
        shape={"tokens": tokens, "hidden_size": hidden},
        dtype=name,
        leaves=leaves,
        dy=dy,
        providers={
            OURS: Provider(*forms(ours)),
            PYTORCH: Provider(*forms(eager)),
            COMPILED: compiled(*forms(eager)),
        },
        bytes_moved=(3 * dy.nbytes, 8 * dy.nbytes),
    )
