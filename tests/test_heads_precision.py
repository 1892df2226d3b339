"""The heads' norms under autocast: gradients of their parameters are sums in fp32 (contract C5)."""

import pytest
import torch

from spanbert_fast.nn import MaskedLMHead, SpanBoundaryHead
from spanbert_fast.testing import assert_no_worse_than

HIDDEN, ROWS = 64, 1500


def masked_lm() -> tuple[torch.nn.LayerNorm, torch.Tensor]:
    head = MaskedLMHead(HIDDEN, vocab_size=11)
    return head.transform.LayerNorm, head(torch.randn(ROWS, HIDDEN))


def span_boundary() -> tuple[torch.nn.LayerNorm, torch.Tensor]:
    head = SpanBoundaryHead(HIDDEN, vocab_size=11, max_span_targets=3)
    starts = torch.arange(ROWS // 3)
    ends = 3 * torch.arange(ROWS // 3 + 1, dtype=torch.int32)
    hidden_states = torch.randn(ROWS, HIDDEN)
    return head.layer_norm2, head(hidden_states, torch.stack([starts, starts + 4], 1), ends, ROWS)


@pytest.mark.parametrize("head", [masked_lm, span_boundary])
def test_a_norms_gradients_are_summed_in_fp32(head):
    """The norm begins as the identity, so y is its n: the bias gets the sum of dy, the weight the
    sum of dy n."""
    with torch.autocast("cpu", torch.bfloat16):
        norm, y = head()
    dy = torch.randn(ROWS, HIDDEN).to(y.dtype)
    dweight, dbias = torch.autograd.grad(y, (norm.weight, norm.bias), dy)
    wide, n = dy.double(), y.detach().double()
    # the same sums in fp32; the floor is a unit in the last place of the ROWS terms
    floor = torch.finfo(torch.float32).eps * ROWS
    for ours, terms, name in ((dweight, wide * n, "dweight"), (dbias, wide, "dbias")):
        assert_no_worse_than(ours, terms.float().sum(0), terms.sum(0), floor=floor, name=name)
