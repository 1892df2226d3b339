"""antecedent_loss against fp64: documents of any size, tiles, gradients, bad input."""

import pytest
import torch

from antecedent_cases import DOCUMENTS, clusters_of, cumulative, tensors_of
from spanbert_fast import use_backend
from spanbert_fast.ops.antecedent_loss import antecedent_loss
from spanbert_fast.reference.antecedent_loss import antecedent_loss as reference
from spanbert_fast.testing import assert_bitwise_equal, assert_no_worse_than

NAMES = ("losses", "dqueries", "dkeys", "dmention_scores", "ddistance_scores")


def run(function, tensors, clusters, cu_mentions, dlosses, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    losses = function(*leaves, clusters, cu_mentions)
    return losses, *torch.autograd.grad(losses, leaves, dlosses.to(losses.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("features", [1, 40])
@pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_no_worse_than_pytorch(documents, features, dtype, poisoned_empty):
    mentions, cu_mentions = sum(documents), cumulative(documents)
    tensors, clusters = tensors_of(mentions, features, dtype), clusters_of(mentions)
    dlosses = torch.rand(mentions)
    arguments = (tensors, clusters, cu_mentions, dlosses)
    got, truth = (run(antecedent_loss, *arguments, dtype), run(reference, *arguments, torch.double))
    like = run(reference, *arguments, dtype)
    assert got[0].dtype == torch.float32
    for name, a, b, c in zip(NAMES, got, like, truth, strict=True):
        # the peer may be exact by luck: one unit of the largest value, and of scores of up to 8
        floor = torch.finfo(dtype).eps * (8 + (c.abs().max().item() if c.numel() else 0))
        assert_no_worse_than(a, b, c, floor=floor, name=name)


def test_a_mention_without_a_gold_antecedent_has_none():
    x, zeros, cu_mentions = torch.zeros(3, 2), torch.zeros(3, 10), cumulative([3])
    scores = torch.zeros(3)
    alone = antecedent_loss(x, x, scores, zeros, torch.tensor([0, 1, -1]), cu_mentions)
    torch.testing.assert_close(alone, torch.tensor([1.0, 2.0, 3.0]).log())
    # two mentions without a cluster do not share one
    no_cluster = antecedent_loss(x, x, scores, zeros, torch.tensor([-1, -1, -1]), cu_mentions)
    torch.testing.assert_close(no_cluster, alone)
    # two gold antecedents among three candidates and "none"
    two = antecedent_loss(x, x, scores, zeros, torch.tensor([4, 4, 4]), cu_mentions)
    torch.testing.assert_close(two[2], torch.tensor(3 / 2).log())


def test_distances_fall_into_the_released_code_s_ten_buckets():
    mentions = 70
    x, cu_mentions = torch.zeros(mentions, 1), cumulative([mentions])
    distance_scores = torch.zeros(mentions, 10, dtype=torch.double, requires_grad=True)
    zeros = torch.zeros(mentions, dtype=torch.double)
    clusters = torch.full((mentions,), -1)
    losses = antecedent_loss(x.double(), x.double(), zeros, distance_scores, clusters, cu_mentions)
    (gradient,) = torch.autograd.grad(losses[-1], distance_scores)
    # 69 candidates and "none" with equal scores: a bucket's share is its number of distances
    counts = torch.tensor([0, 1, 1, 1, 1, 3, 8, 16, 32, 6], dtype=torch.double)
    torch.testing.assert_close(gradient[-1], counts / mentions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype, each_thread_count):
    documents = [200, 3, 150]
    tensors, clusters = tensors_of(353, 24, dtype), clusters_of(353)
    each_thread_count(
        lambda: run(
            antecedent_loss, tensors, clusters, cumulative(documents), torch.ones(353), dtype
        )
    )


def test_non_contiguous_autocast_gradcheck_compile():
    tensors, clusters, cu_mentions = (
        tensors_of(9, 4, torch.float32),
        clusters_of(9),
        cumulative([9]),
    )
    first = antecedent_loss(*tensors, clusters, cu_mentions)
    turned = [t.t().contiguous().t() if t.dim() == 2 else t for t in tensors]
    assert_bitwise_equal(antecedent_loss(*turned, clusters, cu_mentions), first)
    with torch.autocast("cpu", torch.bfloat16):
        assert antecedent_loss(*tensors, clusters, cu_mentions).dtype == torch.float32
    wide = [t.double().requires_grad_() for t in tensors]

    def function(*leaves):
        return antecedent_loss(*leaves, clusters, cu_mentions)

    assert torch.autograd.gradcheck(function, wide)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(*wide), function(*wide))


def test_the_reference_backend():
    tensors, clusters, cu_mentions = (
        tensors_of(9, 4, torch.float32),
        clusters_of(9),
        cumulative([9]),
    )
    with use_backend("reference"):
        got = antecedent_loss(*tensors, clusters, cu_mentions)
    assert_bitwise_equal(got, reference(*tensors, clusters, cu_mentions))


def test_bad_input():
    queries, keys, scores, distances = tensors_of(5, 4, torch.float32)
    clusters, cu_mentions = clusters_of(5), cumulative([2, 3])

    def call(**changed):
        arguments = {
            "queries": queries,
            "keys": keys,
            "mention_scores": scores,
            "distance_scores": distances,
            "clusters": clusters,
            "cu_mentions": cu_mentions,
        }
        return antecedent_loss(**{**arguments, **changed})

    with pytest.raises(ValueError, match=r"keys must have shape \(5, 4\), got \(5, 3\)"):
        call(keys=keys[:, :3])
    with pytest.raises(ValueError, match=r"distance_scores must have shape \(5, 10\), got"):
        call(distance_scores=distances[:, :9])
    with pytest.raises(TypeError, match="clusters must be torch.int64|clusters must be int64"):
        call(clusters=clusters.int())
    with pytest.raises(ValueError, match="cu_mentions must end at 5, got 4"):
        call(cu_mentions=cumulative([4]))
    with pytest.raises(TypeError, match="mention_scores must be float16"):
        call(mention_scores=clusters)
