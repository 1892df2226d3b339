"""The span sampler: invariants on random texts, C6, and that all implementations are one."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_fast import _extension
from spanbert_fast.ops._common import use_backend
from spanbert_fast.ops._span_law import derived_seed, span_law
from spanbert_fast.ops.sample_spans import (
    SpanSample,
    sample_spans,
    sample_spans_fixed,
    span_capacity,
)
from spanbert_fast.testing import assert_bitwise_equal

MASK = 4
POOL = torch.tensor([1000, 1001, 1002, 1002])  # disjoint from the texts' ids: origins show


def make_texts(lengths, seed=0, continuation=0.3, special=0.0, ids=(5, 900)):
    """(input_ids, cu_seqlens, word_starts, special_mask) of random ragged texts."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    input_ids = torch.randint(*ids, (total,), generator=generator)
    word_starts = torch.rand(total, generator=generator) >= continuation
    special_mask = torch.rand(total, generator=generator) < special
    keep = cu_seqlens[:-1] + (torch.rand(len(lengths), generator=generator) * cu_seqlens.diff())
    special_mask[keep.long()] = False  # a maskable token in every sequence
    return input_ids, cu_seqlens, word_starts, special_mask


def run(texts, seed=1, sequence_ids=None, **options) -> SpanSample:
    input_ids, cu_seqlens, word_starts, special_mask = texts
    if sequence_ids is None:
        sequence_ids = torch.arange(len(cu_seqlens) - 1)
    options = {"mask_token_id": MASK, "random_token_pool": POOL, **options}
    return sample_spans(
        input_ids,
        cu_seqlens,
        word_starts,
        special_mask=special_mask,
        seed=seed,
        sequence_ids=sequence_ids,
        **options,
    )


def assert_same(ours: SpanSample, expected: SpanSample) -> None:
    for name, a, b in zip(SpanSample._fields, ours, expected, strict=True):
        assert_bitwise_equal(a, b, name)


# --- invariants ----------------------------------------------------------------------------------


def check_invariants(texts, sample: SpanSample, law, given_spans=None, schemes=("geometric",)):
    """All that holds for every text and seed, token by token."""
    input_ids, cu_seqlens, word_starts, special = (t.numpy() for t in texts)
    fields = {name: t.numpy() for name, t in sample._asdict().items()}
    total = len(input_ids)
    masked = np.zeros(total, dtype=bool)
    masked[fields["mlm_positions"]] = True
    assert masked.sum() == len(fields["mlm_positions"]) and not (masked & special).any()
    assert (np.diff(fields["mlm_positions"]) > 0).all()
    assert (fields["mlm_targets"] == input_ids[masked]).all()
    assert (fields["input_ids"][~masked] == input_ids[~masked]).all()

    sequence = np.repeat(np.arange(len(cu_seqlens) - 1), np.diff(cu_seqlens))
    for begin, end in itertools.pairwise(cu_seqlens):
        spent, budget = masked[begin:end].sum(), law.budget(int((~special[begin:end]).sum()))
        assert spent == budget or (law.complete_words and spent > budget), "the budget is spent"

    starts, ends = fields["span_starts"], fields["span_ends"]
    assert (starts <= ends).all() and (sequence[starts] == sequence[ends]).all()
    covered = np.zeros(total + 1, dtype=int)
    np.add.at(covered, starts, 1)
    np.add.at(covered, ends + 1, -1)
    assert (covered.cumsum()[:-1] == masked).all(), "spans are the masked tokens, none twice"
    touching = (starts[1:] == ends[:-1] + 1) & (sequence[starts[1:]] == sequence[ends[:-1]])
    assert not touching.any(), "merged spans do not touch"

    opens = word_starts | (np.arange(total) == cu_seqlens[sequence]) | np.roll(special, 1)
    if set(schemes) <= {"geometric", "word"}:
        assert opens[starts].all(), "spans start at words"
        if law.complete_words:
            inside = np.append(~opens, False) & ~np.append(special, True)
            cut = inside[ends + 1] & (np.append(sequence, -1)[ends + 1] == sequence[ends])
            assert not cut.any(), "and end with words"

    wanted, counts, targets = [], [], []
    for first, last in zip(starts, ends, strict=True):
        left, right = (first, last) if law.internal_endpoints else (first - 1, last + 1)
        low, high = cu_seqlens[sequence[first]], cu_seqlens[sequence[first] + 1]
        if low <= left and right < high and not special[left] and not special[right]:
            assert law.internal_endpoints or not (masked[left] or masked[right])
            wanted.append([left, right])
            counts.append(min(last - first + 1, law.max_span_targets))
            targets += list(input_ids[first : first + counts[-1]])
    assert fields["span_boundaries"].tolist() == wanted
    assert fields["cu_span_lengths"].tolist() == [0, *itertools.accumulate(counts)]
    assert fields["sbo_targets"].tolist() == targets

    kinds = np.where(fields["input_ids"] == MASK, 0, np.where(fields["input_ids"] >= 1000, 1, 2))
    if law.replace_per_token:
        assert (fields["span_replacements"] == -1).all()
    else:
        for kind, first, last in zip(fields["span_replacements"], starts, ends, strict=True):
            assert (kinds[first : last + 1] == kind).all()
    assert (fields["input_ids"][kinds == 2] == input_ids[kinds == 2]).all()


OPTIONS = st.fixed_dictionaries(
    {
        "mask_ratio": st.sampled_from([0.15, 0.01, 0.5, 1.0, 0.3333]),
        "geometric_p": st.sampled_from([0.2, 0.05, 1.0]),
        "words": st.sampled_from([(1, 10), (1, 1), (3, 4), (2, 256)]),
        "max_span_targets": st.sampled_from([20, 1, 3]),
        "replacement": st.sampled_from(["span", "token"]),
        "scheme": st.sampled_from(
            [
                "geometric",
                "word",
                "subword",
                "given",
                {"geometric": 0.5, "word": 0.25, "subword": 0.25},
                {"given": 0.8, "geometric": 0.2},
            ]
        ),
        "endpoints": st.sampled_from(["external", "internal"]),
        "complete_words": st.booleans(),
        "unbiased_edges": st.booleans(),
    }
)


LENGTH_SHARES = [0.1, 0.1, 0.2, 0.3, 0.24, 0.02, 0.02, 0.02]


def random_given_spans(texts, seed):
    """Some spans in each text that hold no special token, in order, overlapping at times."""
    _, cu_seqlens, _, special = texts
    generator = np.random.default_rng(seed)
    spans = []
    for begin, end in itertools.pairwise(cu_seqlens.tolist()):
        for first in sorted(generator.integers(begin, end, size=generator.integers(0, 5))):
            last = min(first + generator.integers(0, 6), end - 1)
            if not special[first : last + 1].any():
                spans.append((first, last))
    return torch.tensor(spans, dtype=torch.int64).reshape(-1, 2)


def random_case(options, seed, num_texts):
    """(texts, options for sample_spans, law) of one set of options."""
    options = dict(options)
    options["min_span_words"], options["max_span_words"] = options.pop("words")
    generator = np.random.default_rng(seed)
    lengths = generator.choice([1, 2, 3, 7, 20, 64, 65, 130], size=num_texts, p=LENGTH_SHARES)
    lengths = lengths.tolist()
    texts = make_texts(
        lengths, seed, continuation=generator.choice([0.0, 0.3, 0.9]), special=seed % 3 * 0.1
    )
    law = span_law(**options)
    if law.scheme_thresholds[0]:
        options["given_spans"] = random_given_spans(texts, seed)
    return texts, options, law


@settings(max_examples=100, deadline=None, derandomize=True)
@given(options=OPTIONS, seed=st.integers(0, 2**31))
def test_invariants(options, seed):
    """On 100,000 random texts."""
    texts, options, law = random_case(options, seed, num_texts=1000)
    sample = run(texts, seed=seed, **options)
    scheme = options["scheme"]
    schemes = (scheme,) if isinstance(scheme, str) else tuple(scheme)
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
    assert hit.sum() >= 48  # one in a thousand draws is of another kind


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
    check_invariants(texts, sample, span_law())
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


# --- the compiled implementation -----------------------------------------------------------------

compiled = pytest.mark.skipif(
    _extension._C is None, reason="installed without the compiled extension"
)
devices = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=compiled),
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
        ),
    ],
)


def on(device, texts, options):
    def moved(value):
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return tuple(t.to(device) for t in texts), {k: moved(v) for k, v in options.items()}


def run_fixed(texts, law, seed=1, **arguments):
    input_ids, cu_seqlens, word_starts, special_mask = texts
    return sample_spans_fixed(
        input_ids,
        cu_seqlens,
        word_starts,
        special_mask=special_mask,
        seed=seed,
        sequence_ids=torch.arange(len(cu_seqlens) - 1, device=input_ids.device),
        law=law,
        mask_token_id=MASK,
        random_token_pool=POOL.to(input_ids.device),
        **arguments,
    )


@devices
@settings(max_examples=150, deadline=None, derandomize=True)
@given(options=OPTIONS, seed=st.integers(0, 2**63))
def test_every_implementation_draws_the_same(device, options, seed):
    texts, options, law = random_case(options, seed % 2**31, num_texts=20)
    with use_backend("reference"):
        expected = run(texts, seed=seed, **options)
        expected_fixed, expected_counts = run_fixed(
            texts, law, seed, given_spans=options.get("given_spans")
        )
    texts, options = on(device, texts, options)
    pool, ids = POOL.to(device), torch.arange(20, device=device)
    sample = run(texts, seed=seed, sequence_ids=ids, random_token_pool=pool, **options)
    assert_same(SpanSample(*(t.cpu() for t in sample)), expected)
    fixed, counts = run_fixed(texts, law, seed, given_spans=options.get("given_spans"))
    assert_same(SpanSample(*(t.cpu() for t in fixed)), expected_fixed)
    assert_bitwise_equal(counts.cpu(), expected_counts)


@devices
@pytest.mark.parametrize("lengths", [[], [1], [63, 64, 65], [8192, 1, 5000]])
def test_every_implementation_does_the_same_on_odd_shapes(device, lengths):
    texts = make_texts(lengths, special=0.05)
    with use_backend("reference"):
        expected = run(texts)
    moved, _ = on(device, texts, {})
    ids = torch.arange(len(lengths), device=device)
    sample = run(moved, sequence_ids=ids, random_token_pool=POOL.to(device))
    assert_same(SpanSample(*(t.cpu() for t in sample)), expected)


@compiled
def test_threads_make_no_difference():
    texts = make_texts([64, 700, 3, 512, 130] * 60, special=0.01)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(texts)
        torch.set_num_threads(2)
        assert_same(run(texts), expected)
    finally:
        torch.set_num_threads(threads)


SCRIPT = """
import sys, torch
from spanbert_fast.ops.sample_spans import sample_spans
texts = torch.load(sys.argv[1])
torch.save(tuple(sample_spans(*texts, seed=1, sequence_ids=torch.arange(4), mask_token_id=4,
    random_token_pool=torch.tensor([1000, 1001, 1002, 1002]))), sys.argv[2])
"""


@compiled
def test_cpus_without_our_instructions_draw_the_same(tmp_path):
    texts = make_texts([64, 700, 3, 130])[:3]
    torch.save(texts, tmp_path / "texts.pt")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "texts.pt", tmp_path / "sample.pt"],
        check=True,
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
    )
    sample = SpanSample(*torch.load(tmp_path / "sample.pt"))
    assert_same(sample, run((*texts, None)))


def test_fixed_shapes_hold_the_sample_and_nothing_else():
    texts = make_texts([40, 7, 130], special=0.1)
    law, sample = span_law(), run(texts)
    fixed, counts = run_fixed(texts, law)
    capacity = span_capacity(law, 177, 3)
    assert capacity == 29  # 177 * 3 // 20 + 3
    masked, spans, with_targets, targets, refused = counts.tolist()
    assert refused == 0 and masked == len(sample.mlm_positions)
    counted = {
        "mlm_positions": (masked, 0),
        "mlm_targets": (masked, -100),
        "span_boundaries": (with_targets, 0),
        "span_starts": (spans, 0),
        "span_ends": (spans, -1),
        "cu_span_lengths": (with_targets + 1, targets),
        "sbo_targets": (targets, -100),
        "span_replacements": (spans, -1),
    }
    assert_bitwise_equal(fixed.input_ids, sample.input_ids)
    for name, (count, filling) in counted.items():
        field = getattr(fixed, name)
        assert len(field) == capacity + (name == "cu_span_lengths")
        assert_bitwise_equal(field[:count], getattr(sample, name), name)
        assert (field[count:] == filling).all(), name
    assert span_capacity(span_law(complete_words=True), 177, 3) == 177
    assert span_capacity(span_law(mask_ratio=1.0), 177, 3) == 177


@compiled
def test_opcheck_and_compile():
    texts = make_texts([40, 7, 130], special=0.1)
    law = span_law(scheme={"geometric": 0.5, "word": 0.5})
    input_ids, cu_seqlens, word_starts, special_mask = texts
    torch.library.opcheck(
        torch.ops.spanbert_fast.sample_spans.default,
        (
            input_ids, cu_seqlens, word_starts, special_mask, None, POOL, torch.arange(3), 1, MASK,
            3, 20, 1, law.length_thresholds, law.scheme_thresholds, 20, False, False, False, False,
            span_capacity(law, 177, 3),
        ),
    )  # fmt: skip
    function = torch.compile(run_fixed, fullgraph=True, backend="aot_eager")
    sample, counts = function(texts, law)
    expected, expected_counts = run_fixed(texts, law)
    assert_same(sample, expected)
    assert_bitwise_equal(counts, expected_counts)
