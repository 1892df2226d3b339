"""linear_cross_entropy over 28,996 entries beside F.cross_entropy(F.linear(...)) and the libraries.

It is measured in bf16, in fp32, and as in training, with an fp32 weight under bf16 autocast. All
compute the mean, which is what the libraries' kernels offer. Products take nearly all of the time:
2 rows x width x vocab operations forward, and at least twice that backward. PyTorch's own chunked
form keeps memory small, too.
"""

import torch
from op_case import COMPILED, DTYPES, OURS, PYTORCH, OpCase, Provider, compiled, installed, leaf
from torch.nn import functional as F

from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy

VARIANTS = ("bf16", "autocast", "fp32")
SIZES = {"tiny": (20, 96, 500), "cpu": (600, 768, 28_996), "cuda": (4896, 1024, 28_996)}
LIGER, CUT = "liger-kernel", "cut-cross-entropy"


def libraries(targets: torch.Tensor) -> tuple[dict[str, Provider], list[str]]:
    """(providers from installed libraries, names of libraries that are not installed)."""
    providers, missing = {}, []
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # torch 2.13
        options = torch.nn.LinearCrossEntropyOptions()
        providers["PyTorch chunked"] = Provider(
            lambda x, w, b: F.linear_cross_entropy(x, w, targets, linear_bias=b, options=options),
            slow=targets.device.type == "cpu",
        )
    if installed("liger_kernel.transformers"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="mean")
        providers[LIGER] = Provider(lambda x, w, b: liger(w, x, targets, b))
    else:
        missing.append(LIGER)
    if installed("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cut

        providers[CUT] = Provider(lambda x, w, b: cut(x, w, targets, bias=b))
    else:
        missing.append(CUT)
    return providers, missing


def case(variant: str, device: str, size: str) -> OpCase:
    """hidden (rows, hidden_size), weight (vocab_size, hidden_size) and bias."""
    rows, hidden_size, vocab = SIZES[size]
    dtype = "fp32" if variant == "fp32" else "bf16"
    parameter = DTYPES["bf16" if variant == "bf16" else "fp32"]
    leaves = [
        leaf(rows, hidden_size, dtype=DTYPES[dtype], device=device),
        leaf(vocab, hidden_size, dtype=parameter, device=device, scale=0.05),
        leaf(vocab, dtype=parameter, device=device, scale=0.1),
    ]
    targets = torch.randint(vocab, (rows,), device=device)

    def eager(hidden, weight, bias):
        return F.cross_entropy(F.linear(hidden, weight, bias), targets)

    others, missing = libraries(targets)
    product = 2 * rows * hidden_size * vocab
    moved = sum(t.nbytes for t in leaves)
    return OpCase(
        op="linear_cross_entropy",
        variant=variant,
        shape={"rows": rows, "hidden_size": hidden_size, "vocab_size": vocab},
        dtype=dtype,
        leaves=leaves,
        dy=torch.ones((), device=device),
        providers={
            OURS: Provider(lambda x, w, b: linear_cross_entropy(x, w, b, targets).losses.mean()),
            PYTORCH: Provider(eager),
            COMPILED: compiled(eager),
            **others,
        },
        bytes_moved=(moved, 3 * moved),
        flops=(product, 3 * product),
        not_installed=missing,
        autocast=variant == "autocast",
    )
