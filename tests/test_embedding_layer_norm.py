"""embedding_layer_norm against fp64 and torch.nn's own modules."""

import pytest
import torch
from torch.nn import functional as F

from spanbert_fast import use_backend
from spanbert_fast._extension import _C
from spanbert_fast.ops.dropout import Dropout
from spanbert_fast.ops.embedding_layer_norm import embedding_layer_norm
from spanbert_fast.reference.dropout import hidden_keep_mask
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than, rounding_floor

SEED = torch.tensor(99)
CPU = torch.device("cpu")
VOCAB, POSITIONS, TYPES = 50, 20, 2


def make(tokens, hidden, dtype):
    ids = (
        torch.randint(VOCAB, (tokens,)),
        torch.randint(POSITIONS, (tokens,)),
        torch.randint(TYPES, (tokens,)),
    )
    shapes = ((VOCAB, hidden), (POSITIONS, hidden), (TYPES, hidden), (hidden,), (hidden,))
    return ids, [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 32), (61, 96), (300, 67), (5, 3)])
def test_no_worse_than_pytorch(shape, dtype, dropout_p, poisoned_empty):
    ids, tables = make(*shape, dtype)
    dy = torch.randn(shape).to(dtype)
    dropout = Dropout(dropout_p, SEED, 24)

    def ours(*tables):
        return embedding_layer_norm(*ids, *tables, padding_idx=3, dropout=dropout)

    def peer(word, position, token_type, weight, bias):
        z = F.embedding(ids[0], word, padding_idx=3) + F.embedding(ids[1], position)
        y = F.layer_norm(z + F.embedding(ids[2], token_type), shape[1:], weight, bias, 1e-12)
        if dropout_p:
            y = torch.where(hidden_keep_mask(dropout, *shape, CPU), y * (256 / 192), 0)
        return y

    def run(function, cast):
        leaves = [t.detach().to(cast).requires_grad_() for t in tables]
        y = function(*leaves)
        return y, *torch.autograd.grad(y, leaves, dy.to(cast))

    got, like = run(ours, dtype), run(peer, dtype)
    with use_backend("reference"):
        truth = run(ours, torch.float64)
    names = ("y", "dword", "dposition", "dtype", "dweight", "dbias")
    for name, a, b, c in zip(names, got, like, truth, strict=True):
        # The peer may be exact by luck in a table row that few tokens read.
        assert_no_worse_than(a, b, c, floor=rounding_floor(a, shape[0]), name=name)
    assert (got[1][3] == 0).all(), "the padding row has no gradient"


@pytest.mark.parametrize("hidden_size", [768, 130])
def test_the_mask_is_the_reference_s(hidden_size):
    ids, (word, position, token_type, weight, bias) = make(70, hidden_size, torch.float32)
    bias = bias.fill_(50.0).requires_grad_()  # only dropped elements are zero
    dropout = Dropout(0.1, SEED, 7)
    y = embedding_layer_norm(*ids, word, position, token_type, weight, bias, dropout=dropout)
    expected = hidden_keep_mask(dropout, 70, hidden_size, CPU)
    assert torch.equal(y != 0, expected)
    # the backward's mask: with one row at a time, dbias shows which elements are kept
    for row in (0, 33, 69):
        (dbias,) = torch.autograd.grad(y[row].sum(), bias, retain_graph=True)
        assert torch.equal(dbias != 0, expected[row])


def test_float32_tables_under_autocast():
    ids, tables = make(40, 50, torch.float32)
    tables = [t.requires_grad_() for t in tables]
    exact = embedding_layer_norm(*ids, *tables)
    with torch.autocast("cpu", torch.bfloat16):
        y = embedding_layer_norm(*ids, *tables)
    assert_bitwise_equal(y.detach(), exact.detach().bfloat16())
    dy = torch.randn(40, 50).bfloat16()
    ours = torch.autograd.grad(y, tables, dy)
    assert [g.dtype for g in ours] == [torch.float32] * 5
    for a, b in zip(ours, torch.autograd.grad(exact, tables, dy.float()), strict=True):
        assert_bitwise_equal(a, b)


def test_tables_and_inputs_of_different_dtypes():
    (_, positions, types), (word, position, token_type, weight, bias) = make(9, 24, torch.float32)
    embeds = torch.randn(9, 24).bfloat16().requires_grad_()
    arguments = (word, position, token_type.half().requires_grad_(), weight, bias)
    y = embedding_layer_norm(None, positions, types, *arguments, inputs_embeds=embeds)
    assert y.dtype == torch.bfloat16
    with use_backend("reference"):
        truth = embedding_layer_norm(
            None,
            positions,
            types,
            *(t.double() for t in arguments),
            inputs_embeds=embeds.double(),
        )
    torch.testing.assert_close(y.double(), truth, rtol=2**-8, atol=1e-5)
    gradients = torch.autograd.grad(y.float().sum(), (embeds, arguments[2]))
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float16]


@pytest.mark.skipif(_C is None, reason="PyTorch's own operators promise less")
def test_same_bits_for_any_number_of_threads(each_thread_count):
    ids, tables = make(1500, 72, torch.float32)
    dy = torch.randn(1500, 72)

    def run():
        leaves = [t.detach().requires_grad_() for t in tables]
        y = embedding_layer_norm(*ids, *leaves, dropout=Dropout(0.1, SEED))
        return y, *torch.autograd.grad(y, leaves, dy)

    each_thread_count(run)


def test_inputs_embeds_stand_in_for_words():
    (words, positions, types), tables = make(9, 16, torch.float64)
    embeds = tables[0][words].requires_grad_()
    from_ids = embedding_layer_norm(words, positions, types, *tables)
    given = embedding_layer_norm(None, positions, types, *tables, inputs_embeds=embeds)
    assert_bitwise_equal(given.detach(), from_ids)
    assert torch.autograd.gradcheck(
        lambda e: embedding_layer_norm(None, positions, types, *tables, inputs_embeds=e), (embeds,)
    )


def test_gradcheck_compile():
    ids, tables = make(7, 6, torch.float64)
    tables = [t.requires_grad_() for t in tables]

    def function(*tables):
        return embedding_layer_norm(*ids, *tables, dropout=Dropout(0.5, SEED))

    assert torch.autograd.gradcheck(function, tables)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(*tables), function(*tables))


def test_bad_input():
    (words, positions, types), tables = make(5, 8, torch.float32)
    words[2] = VOCAB
    with pytest.raises(ValueError, match=r"input_ids must be in \[0, 50\), got 50"):
        embedding_layer_norm(words, positions, types, *tables)
    words[2] = -1
    with pytest.raises(ValueError, match=r"input_ids must be in \[0, 50\), got -1"):
        embedding_layer_norm(words, positions, types, *tables)
    words[2] = 0
    with pytest.raises(ValueError, match=r"position_ids must be in \[0, 20\), got 20"):
        embedding_layer_norm(words, torch.full((5,), 20), types, *tables)
    with pytest.raises(ValueError, match=r"token_type_ids must have shape \(5,\), got \(4,\)"):
        embedding_layer_norm(words, positions, types[:4], *tables)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        embedding_layer_norm(None, positions, types, *tables)
    with pytest.raises(ValueError, match="token_type_ids and token_type_embeddings must be given"):
        embedding_layer_norm(words, positions, None, *tables)
    with pytest.raises(TypeError, match="input_ids must be int64, got torch.int32"):
        embedding_layer_norm(words.int(), positions, types, *tables)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 32), (61, 67)])
def test_without_token_types(shape, dtype, poisoned_empty):
    """The result equals PyTorch's and the reference's; the other tables have the gradients that
    they have with a table of zeros."""
    (words, positions, types), (word, position, _, weight, bias) = make(*shape, dtype)
    tables, dy = (word, position, weight, bias), torch.randn(shape).to(dtype)
    dropout = Dropout(0.25, SEED, 24)

    def ours(word, position, *norm):
        arguments = (words, positions, None, word, position, None, *norm)
        return embedding_layer_norm(*arguments, dropout=dropout)

    def peer(word, position, weight, bias):
        z = F.embedding(words, word) + F.embedding(positions, position)
        y = F.layer_norm(z, shape[1:], weight, bias, 1e-12)
        return torch.where(hidden_keep_mask(dropout, *shape, CPU), y * (256 / 192), 0)

    def run(function, cast):
        leaves = [t.detach().to(cast).requires_grad_() for t in tables]
        y = function(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, dy.to(cast))

    got, like = run(ours, dtype), run(peer, dtype)
    with use_backend("reference"):
        truth = run(ours, torch.float64)
    names = ("y", "dword", "dposition", "dweight", "dbias")
    for name, a, b, c in zip(names, got, like, truth, strict=True):
        # as above; in fp64 the peer is the truth, and ours may differ by some roundings
        assert_no_worse_than(a, b, c, floor=rounding_floor(a, shape[0]), name=name)

    def of_zeros(word, position, *norm):
        nothing = torch.zeros(TYPES, shape[1], dtype=word.dtype)
        arguments = (words, positions, types, word, position, nothing, *norm)
        return embedding_layer_norm(*arguments, dropout=dropout)

    for a, b in zip(got, run(of_zeros, dtype), strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.skipif(_C is None, reason="needs the extension")
def test_a_large_gradient_takes_the_memory_of_the_last_one():
    vocab, hidden = 40_000, 48  # 7.7 MB
    tables = [torch.randn(n, hidden) for n in (vocab, POSITIONS, TYPES)]
    word, *others = [*tables, torch.ones(hidden), torch.zeros(hidden)]
    word.requires_grad_()

    def gradient(first):
        ids = torch.arange(first, first + 7)
        y = embedding_layer_norm(ids, ids % 5, ids % 2, word, *others)
        return torch.autograd.grad(y[:, 0].sum(), word)[0]

    def check(gradient, first):
        rows = gradient.abs().sum(1)
        assert (rows[first : first + 7] > 0).all() and (rows > 0).sum() == 7

    one, two = gradient(100), gradient(30_000)
    assert one.data_ptr() != two.data_ptr()
    check(one, 100)
    free = one.data_ptr()
    del one
    three = gradient(200)
    assert three.data_ptr() == free
    check(three, 200)  # nothing of the previous call remains
    check(two, 30_000)
    torch.use_deterministic_algorithms(True)
    del three
    try:
        check(gradient(300), 300)
    finally:
        torch.use_deterministic_algorithms(False)
