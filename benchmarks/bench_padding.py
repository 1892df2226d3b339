"""unpad and pad of a batch that is half padding beside PyTorch's gather and scatter.

Rows are read and written once; `pad` also writes zeros at padding. All results have the same bits,
and each op is the backward of the other.
"""

import torch
from op_case import COMPILED, DTYPES, OURS, PYTORCH, OpCase, Provider, compiled, leaf

from spanbert_fast.ops.padding import pad, take_tokens

VARIANTS = ("bf16, unpad", "bf16, pad")
SIZES = {"tiny": (4, 16, 96), "cpu": (16, 512, 768), "cuda": (128, 512, 1024)}


def case(variant: str, device: str, size: str) -> OpCase:
    """Sequences of every length from 1 to the longest one."""
    batch, seqlen, hidden = SIZES[size]
    name, _, direction = variant.partition(", ")
    lengths = torch.linspace(1, seqlen, batch, device=device).long()
    real = torch.arange(seqlen, device=device) < lengths[:, None]
    indices = real.flatten().nonzero().squeeze(1)
    packed, padded = (len(indices), hidden), (batch, seqlen, hidden)
    unpads = direction == "unpad"
    x, dy = (
        leaf(*shape, dtype=DTYPES[name], device=device)
        for shape in ((padded, packed) if unpads else (packed, padded))
    )

    def eager(x):
        if unpads:
            return x.flatten(0, 1).index_select(0, indices)
        rows = x.new_zeros((batch * seqlen, hidden)).index_copy(0, indices, x)
        return rows.unflatten(0, (batch, seqlen))

    def ours(x):
        return take_tokens(x, indices) if unpads else pad(x, indices, batch, seqlen)

    tokens = min(x.nbytes, dy.nbytes)
    forward, backward = tokens + dy.nbytes, tokens + x.nbytes
    return OpCase(
        op="padding",
        variant=variant,
        shape={"batch": batch, "seqlen": seqlen, "tokens": len(indices), "hidden_size": hidden},
        dtype=name,
        leaves=[x],
        dy=dy.detach(),
        providers={
            OURS: Provider(ours),
            PYTORCH: Provider(eager),
            COMPILED: compiled(eager),
        },
        bytes_moved=(forward, forward + backward),
        floor=0.0,
    )
