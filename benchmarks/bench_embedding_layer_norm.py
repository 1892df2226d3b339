"""embedding_layer_norm of 4,096 tokens, 28,996 x 768 word embeddings, beside torch.nn.functional.

The forward reads a word's row for each token and writes y; the tables of positions and types stay
in cache. The backward reads dy and the rows again and writes the word embeddings' gradient, which
is dense, zeros and all: that is most of its bytes.
"""

import pytest
import torch
from common import TINY, compare, step
from torch.nn import functional as F

from spanbert_fast import _extension
from spanbert_fast.ops._common import use_backend
from spanbert_fast.ops.embedding_layer_norm import embedding_layer_norm
from spanbert_fast.testing import assert_no_worse_than

TOKENS, HIDDEN, VOCAB = (32, 96, 50) if TINY else (4096, 768, 28_996)
POSITIONS, TYPES = 512, 2
SEED = torch.tensor(2019)

pytestmark = pytest.mark.skipif(
    _extension._C is None, reason="installed without the compiled extension"
)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("count", [1, 2], ids=["1 thread", "2 threads"])
def test_against_pytorch(benchmark, capsys, request, threads, count, dtype, backward):
    threads(count)
    # word frequencies fall as in text, by rank
    words = torch.multinomial(1 / torch.arange(1, VOCAB + 1), TOKENS, replacement=True)
    ids = (words, torch.arange(TOKENS) % POSITIONS, torch.zeros(TOKENS, dtype=torch.int64))
    shapes = ((VOCAB, HIDDEN), (POSITIONS, HIDDEN), (TYPES, HIDDEN), (HIDDEN,), (HIDDEN,))
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    dy = torch.randn(TOKENS, HIDDEN).to(dtype)

    def ours(*tables):
        return embedding_layer_norm(*ids, *tables, dropout_p=0.1, dropout_seed=SEED)

    def theirs(word, position, token_type, weight, bias):
        rows = F.embedding(ids[0], word) + F.embedding(ids[1], position)
        z = rows + F.embedding(ids[2], token_type)
        return F.dropout(F.layer_norm(z, (HIDDEN,), weight, bias, 1e-12), 0.1)

    def run(function):
        return step(function, leaves, dy, backward)

    results = run(ours)
    with use_backend("reference"):  # PyTorch's own operators with the same mask
        peer = run(ours)
        wide = [t.detach().double().requires_grad_() for t in leaves]
        truth = step(ours, wide, dy.double(), backward)
    for result, same_dtype, exact in zip(results, peer, truth, strict=True):
        # one unit in the last place of the largest, where the peer is right by luck
        floor = torch.finfo(dtype).eps * exact.abs().max().item()
        assert_no_worse_than(result, same_dtype, exact, floor=floor)
    rows_read, table = dy.nbytes, leaves[0].nbytes
    compare(
        benchmark,
        capsys,
        f"embedding_layer_norm {request.node.callspec.id}",
        lambda: run(ours),
        lambda: run(theirs),
        rows_read + dy.nbytes + (dy.nbytes + rows_read + table if backward else 0),
    )
