"""The Triton kernels of antecedent_loss against fp64: documents, tiles, gradients."""

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from antecedent_cases import clusters_of, cumulative, tensors_of  # noqa: E402
from spanbert_fast.kernels.antecedent_loss import (  # noqa: E402
    antecedent_loss_bwd,
    antecedent_loss_fwd,
)
from spanbert_fast.ops.antecedent_loss import LossInputs  # noqa: E402
from spanbert_fast.reference.antecedent_loss import antecedent_loss  # noqa: E402
from spanbert_fast.testing import assert_no_worse_than  # noqa: E402

DOCUMENTS = {"one mention": [1], "ragged": [3, 0, 30, 1, 9], "two tiles": [90], "none": []}


def peer(tensors, clusters, cu_mentions, dlosses, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    losses = antecedent_loss(*leaves, clusters, cu_mentions)
    gradients = torch.autograd.grad(losses, leaves, dlosses.to(losses.dtype))
    return losses.detach(), *gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_no_worse_than_pytorch(documents, dtype, poisoned_empty):
    mentions, cu_mentions = sum(documents), cumulative(documents).to(DEVICE)
    queries, keys, *scores = (t.to(DEVICE) for t in tensors_of(mentions, 20, torch.float32))
    tensors = (queries.to(dtype), keys.to(dtype), *scores)  # as the op gives them
    clusters, dlosses = clusters_of(mentions).to(DEVICE), torch.rand(mentions, device=DEVICE)
    inputs = LossInputs(*tensors, clusters, cu_mentions)
    losses, *saved = antecedent_loss_fwd(inputs)
    got = (losses, *antecedent_loss_bwd(dlosses, inputs, *saved))
    arguments = (tensors, clusters, cu_mentions, dlosses)
    like, truth = peer(*arguments, dtype), peer(*arguments, torch.double)
    names = ("losses", "dqueries", "dkeys", "dmention_scores", "ddistance_scores")
    for name, a, b, c in zip(names, got, like, truth, strict=True):
        # the peer may be exact by luck: one unit of the largest value, and of scores of up to 8
        floor = torch.finfo(dtype).eps * (8 + (c.abs().max().item() if c.numel() else 0))
        assert_no_worse_than(a, b, c, floor=floor, name=name)
