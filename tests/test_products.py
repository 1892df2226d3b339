"""Matrix products inside parallel regions: their bits do not depend on the thread."""

import pytest
import torch

from spanbert_fast._extension import _C
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.testing import assert_bitwise_equal

pytestmark = pytest.mark.skipif(_C is None, reason="needs the extension")


@pytest.fixture
def threads(request):
    """Set the number of PyTorch's threads for a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3, 4], indirect=True)
@pytest.mark.parametrize("shape", [(1, 1, 1), (37, 64, 256), (256, 768, 384), (540, 40, 100)])
def test_every_thread_makes_the_same_product(shape, threads):
    """The call returns only if there are this many threads, each of which waits for the others."""
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    out = torch.full((threads, rows, columns), torch.nan)
    _C.products_of_threads(a.data_ptr(), b.data_ptr(), out.data_ptr(), rows, inner, columns)
    # the error bound of a sum of `inner` products of size 1, each rounded
    torch.testing.assert_close(out[0], a @ b, rtol=1e-5, atol=1e-6 * inner)
    for product in out[1:]:
        assert_bitwise_equal(product, out[0])


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twenty_calls_have_one_result(dtype, threads):
    """Threads take blocks of the vocabulary by chance, which must not affect the result."""
    hidden = torch.randn(90, 64).to(dtype).requires_grad_()
    weight = torch.randn(1500, 64).to(dtype).requires_grad_()
    bias, targets = torch.randn(1500, requires_grad=True), torch.randint(1500, (90,))

    def run():
        losses = linear_cross_entropy(hidden, weight, bias, targets).losses
        return losses.detach(), *torch.autograd.grad(losses.sum(), (hidden, weight, bias))

    expected = run()
    for _ in range(19):
        for a, b in zip(run(), expected, strict=True):
            assert_bitwise_equal(a, b)
