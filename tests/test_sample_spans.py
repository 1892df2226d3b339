"""The span sampler: invariants on random texts, and C6."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_spans_cases import (
    OPTIONS,
    assert_same,
    check_invariants,
    make_texts,
    random_case,
    run,
)
from spanbert_fast.ops.span_options import SpanOptions, derived_seed
from spanbert_fast.testing import assert_bitwise_equal


@settings(max_examples=100, deadline=None, derandomize=True)
@given(options=OPTIONS, seed=st.integers(0, 2**31))
def test_invariants(options, seed):
    """The sampler keeps its invariants on 100,000 random texts."""
    texts, options, span_options = random_case(options, seed, num_texts=1000)
    sample = run(texts, seed=seed, **options)
    scheme = options["scheme"]
    schemes = (scheme,) if isinstance(scheme, str) else tuple(scheme)
    law = span_options.law()
    check_invariants(texts, sample, law, options.get("given_spans"), schemes)


def test_whole_words_and_given_spans_are_what_was_asked_for():
    texts = make_texts([40] * 50, continuation=0.4)
    _, cu_seqlens, word_starts, _ = texts
    sample = run(texts, scheme="word", complete_words=True)
    masked = torch.zeros(2000, dtype=torch.bool)
    masked[sample.mlm_positions] = True
    begins = word_starts | (torch.arange(2000) % 40 == 0)
    word = begins.cumsum(0) - 1
    hits, sizes = torch.bincount(word, weights=masked.double()), torch.bincount(word)
    assert ((hits == 0) | (hits == sizes)).all(), "words are masked as a whole"

    spans = torch.tensor([[k * 40 + 10, k * 40 + 12] for k in range(50)])
    sample = run(texts, scheme={"given": 0.999, "subword": 0.001}, given_spans=spans)
    hit = torch.isin(spans[:, 0], sample.mlm_positions)
    assert hit.sum() >= 48  # one draw in a thousand is of another kind


def test_masks_depend_on_text_id_and_seed_only():
    lengths = [5, 1, 200, 33, 64, 17, 512, 2]
    texts = make_texts(lengths, special=0.1)
    input_ids, cu_seqlens, word_starts, special = texts
    ids = torch.tensor([3, 2**45 + 1, -9, 0, 77, 2**62, 5, 6])
    whole = run(texts, seed=99, sequence_ids=ids)

    def piece(order):
        spans = [slice(int(cu_seqlens[i]), int(cu_seqlens[i + 1])) for i in order]
        cu = torch.tensor([0, *itertools.accumulate(lengths[i] for i in order)], dtype=torch.int32)
        part = (
            torch.cat([input_ids[s] for s in spans]),
            cu,
            torch.cat([word_starts[s] for s in spans]),
            torch.cat([special[s] for s in spans]),
        )
        sample = run(part, seed=99, sequence_ids=ids[list(order)])
        return torch.cat([whole.input_ids[s] for s in spans]), sample

    for order in ([7, 2, 0, 1, 6, 4, 3, 5], [6], [1], [0, 1, 2, 3]):
        expected, sample = piece(order)
        assert_bitwise_equal(sample.input_ids, expected)
    assert not torch.equal(run(texts, seed=98, sequence_ids=ids).input_ids, whole.input_ids)
    assert not torch.equal(run(texts, seed=99, sequence_ids=ids + 1).input_ids, whole.input_ids)
    assert_same(run(texts, seed=-7), run(texts, seed=2**64 - 7))  # a seed is modulo 2**64


def test_derived_seeds_differ():
    seeds = {derived_seed(s, i) for s in (0, 1, -1) for i in range(200)}
    assert len(seeds) == 600 and all(-(2**63) <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("lengths", [[], [1], [1, 1, 1], [8192], [3, 700, 1, 129]])
def test_shapes(lengths):
    texts = make_texts(lengths)
    sample = run(texts)
    check_invariants(texts, sample, SpanOptions().law())
    assert [t.dtype for t in sample] == [*[torch.int64] * 6, torch.int32, torch.int64, torch.int8]
    assert sample.span_boundaries.shape == (len(sample.cu_span_lengths) - 1, 2)
    assert sample.input_ids is not texts[0]
    if lengths == [1]:
        assert sample.mlm_positions.tolist() == [0] and len(sample.span_boundaries) == 0


def test_non_contiguous_inputs():
    texts = make_texts([50, 7])
    strided = tuple(torch.stack([t, t], 1)[:, 0] for t in texts)
    assert not strided[0].is_contiguous()
    assert_same(run(strided), run(texts))
