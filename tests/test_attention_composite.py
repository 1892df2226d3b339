"""varlen_attention out of PyTorch's operators: its precision under the caller's autocast."""

import pytest
import torch

from spanbert_fast.ops._attention_composite import (
    grouped_bwd,
    grouped_fwd,
    padded_bwd,
    padded_fwd,
)
from spanbert_fast.testing import assert_bitwise_equal

LENGTHS, HEADS, HEAD_DIM = [9, 1, 17], 2, 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "forward, backward", [(grouped_fwd, grouped_bwd), (padded_fwd, padded_bwd)]
)
def test_autocast_changes_no_bit(forward, backward, dtype):
    """Scores are sums in fp32: autocast would round them to bf16, by 0.06 where they are 10."""
    q, k, v, dout = ((3 * torch.randn(sum(LENGTHS), HEADS, HEAD_DIM)).to(dtype) for _ in range(4))
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0, dtype=torch.int32)
    last = (cu_seqlens, max(LENGTHS), HEAD_DIM**-0.5, torch.tensor(5), 26, 3)

    def run():
        out, lse = forward(q, k, v, *last)
        return out, lse, *backward(dout, q, k, v, out, lse, *last)

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        found = run()
    for ours, theirs in zip(found, expected, strict=True):
        assert_bitwise_equal(ours, theirs)
