"""antecedent_top_k against the reference: any k, ties, documents, tiles, bad input."""

import pytest
import torch

from antecedent_cases import DOCUMENTS, cumulative, tensors_of
from spanbert_fast.ops.antecedent_top_k import antecedent_top_k
from spanbert_fast.reference.antecedent_loss import antecedent_scores
from spanbert_fast.reference.antecedent_top_k import antecedent_top_k as reference
from spanbert_fast.testing import assert_bitwise_equal


def roundings(tensors: list[torch.Tensor], dtype: torch.dtype) -> float:
    """The largest error of a score. In a sum of n products, in any order, each term is rounded at
    most n times, by half an eps of the sum of all absolute values (Higham 2002, section 4.2); the
    truth in fp64 is rounded as often. Sums are at least in fp32, and 16-bit products may be rounded
    once to their own dtype."""
    queries, keys, scores, distances = (t.double() for t in tensors)
    if len(scores) == 0:
        return 0.0
    wide = torch.promote_types(dtype, torch.float32)
    largest = (queries.abs() @ keys.abs().T).max() + 2 * scores.abs().max() + distances.abs().max()
    error = (queries.shape[1] + 3) * torch.finfo(wide).eps * largest.item()
    if dtype != wide:
        error += torch.finfo(dtype).eps / 2 * (queries @ keys.T).abs().max().item()
    return error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 5, 50])
@pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_the_best_of_every_mention(documents, k, dtype, poisoned_empty):
    mentions, cu_mentions = sum(documents), cumulative(documents)
    tensors = tensors_of(mentions, 24, dtype)
    scores, antecedents = antecedent_top_k(*tensors, cu_mentions, k)
    exact = antecedent_scores(*(t.double() for t in tensors), cu_mentions)
    best, _ = reference(*(t.double() for t in tensors), cu_mentions, k)
    near = roundings(tensors, dtype)
    torch.testing.assert_close(scores.double(), best, rtol=0, atol=near)
    assert torch.equal(antecedents < 0, best == -torch.inf)
    theirs = exact.gather(1, antecedents.clamp(min=0)) if mentions else best
    # two nearly equal antecedents may change places, as both scores have an error
    theirs = theirs.where(antecedents >= 0, -torch.inf)
    torch.testing.assert_close(theirs, best, rtol=0, atol=2 * near)
    for row in antecedents.tolist():
        assert len({*row} - {-1}) == sum(i >= 0 for i in row), "one of them comes twice"


def test_of_equals_the_first_comes_first():
    """Sums of integers are exact in any order; there are many ties, over several tiles."""
    tensors = [t.round() for t in tensors_of(600, 3, torch.float32)]
    cu_mentions = cumulative([530, 70])
    got = antecedent_top_k(*tensors, cu_mentions, 9)
    for ours, expected in zip(got, reference(*tensors, cu_mentions, 9), strict=True):
        assert_bitwise_equal(ours, expected)


def test_same_bits_for_any_number_of_threads(each_thread_count):
    tensors = tensors_of(353, 24, torch.float32)
    each_thread_count(lambda: antecedent_top_k(*tensors, cumulative([200, 3, 150]), 4))


def test_no_gradient_and_bad_input():
    tensors = [t.requires_grad_() for t in tensors_of(5, 4, torch.float32)]
    scores, antecedents = antecedent_top_k(*tensors, cumulative([5]), 2)
    assert not scores.requires_grad and antecedents.dtype == torch.int64
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        antecedent_top_k(*tensors, cumulative([5]), 0)
    with pytest.raises(ValueError, match="cu_mentions must end at 5, got 4"):
        antecedent_top_k(*tensors, cumulative([4]), 2)
