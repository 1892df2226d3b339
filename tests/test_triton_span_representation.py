"""The Triton kernels of span_representation against fp64: spans of any length and order."""

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from spanbert_fast.kernels.span_representation import (  # noqa: E402
    span_representation_bwd,
    span_representation_fwd,
)
from spanbert_fast.ops.span_representation import SpanInputs  # noqa: E402
from spanbert_fast.reference.span_representation import span_representation  # noqa: E402
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than  # noqa: E402

SPANS = {
    "all rows": ([0], [17]),
    "crossing, nested, twice, in any order": ([9, 0, 5, 5, 5, 13], [12, 17, 5, 14, 14, 17]),
    "none": ([], []),
}


def peer(tensors, starts, ends, dy, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    firsts, lasts, *inner = leaves
    names = dict(zip(("inner", "logits"), inner, strict=False))
    y = span_representation(firsts, lasts, starts, ends, **names)
    return y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_inner", [True, False])
@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
def test_no_worse_than_pytorch(spans, with_inner, dtype, poisoned_empty):
    starts, ends = (torch.tensor(i, dtype=torch.int64, device=DEVICE) for i in spans)
    shapes = ((18, 5), (18, 70), (18, 80), (18,))
    tensors = [torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes]
    tensors[3] = tensors[3].float()
    if not with_inner:
        tensors = tensors[:2]
    dy = torch.randn(len(starts), 155 if with_inner else 75, device=DEVICE).to(dtype)
    inputs = SpanInputs(*tensors, *([] if with_inner else [None, None]), starts, ends)
    y, lse = span_representation_fwd(inputs)
    got = (y, *span_representation_bwd(dy, inputs, y, lse)[: len(tensors)])
    like = peer(tensors, starts, ends, dy, dtype)
    truth = peer(tensors, starts, ends, dy, torch.double)
    assert_bitwise_equal(y[:, :75], like[0][:, :75])
    for name, a, b, c in zip(("y", "a", "b", "c", "logits"), got, like, truth, strict=False):
        # values of up to 4 in sums of six
        floor = torch.finfo(dtype).eps * (4 + (c.abs().max().item() if c.numel() else 0))
        assert_no_worse_than(a, b, c, floor=floor, name=name)
