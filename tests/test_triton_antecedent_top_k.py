"""The Triton kernel of antecedent_top_k against the reference: ties, tiles, documents."""

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from antecedent_cases import cumulative, tensors_of  # noqa: E402
from spanbert_fast.kernels.antecedent_top_k import antecedent_top_k_fwd  # noqa: E402
from spanbert_fast.ops.antecedent_top_k import TopKInputs  # noqa: E402
from spanbert_fast.reference.antecedent_top_k import antecedent_top_k  # noqa: E402
from spanbert_fast.testing import assert_bitwise_equal  # noqa: E402


@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("documents", [[], [1], [3, 0, 30, 1, 9], [90]])
def test_the_best_of_every_mention(documents, k, poisoned_empty):
    """Sums of integers are exact in any order; there are many ties."""
    tensors = [t.round().to(DEVICE) for t in tensors_of(sum(documents), 3, torch.float32)]
    cu_mentions = cumulative(documents).to(DEVICE)
    got = antecedent_top_k_fwd(TopKInputs(*tensors, cu_mentions, k))
    for ours, expected in zip(got, antecedent_top_k(*tensors, cu_mentions, k), strict=True):
        assert_bitwise_equal(ours, expected)
