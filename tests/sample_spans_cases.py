"""Shared by the tests of the span sampler: random texts and options, and their invariants."""

import itertools

import numpy as np
import torch
from hypothesis import strategies as st

from spanbert_fast.ops.sample_spans import SpanOptions, SpanSample, sample_spans
from spanbert_fast.testing import assert_bitwise_equal

MASK = 4
POOL = torch.tensor(
    [1000, 1001, 1002, 1002]
)  # disjoint from the texts' ids, so that random tokens can be told apart


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


def run(texts, seed=1, sequence_ids=None, pool=POOL, given_spans=None, **options) -> SpanSample:
    """A sample; `options` are those of SpanOptions."""
    input_ids, cu_seqlens, word_starts, special_mask = texts
    if sequence_ids is None:
        sequence_ids = torch.arange(len(cu_seqlens) - 1)
    return sample_spans(
        input_ids,
        cu_seqlens,
        word_starts,
        special_mask=special_mask,
        seed=seed,
        sequence_ids=sequence_ids,
        mask_token_id=MASK,
        random_token_pool=pool,
        given_spans=given_spans,
        options=SpanOptions(**options),
    )


def assert_same(ours: SpanSample, expected: SpanSample) -> None:
    for name, a, b in zip(SpanSample._fields, ours, expected, strict=True):
        assert_bitwise_equal(a, b, name)


def check_invariants(texts, sample: SpanSample, law, given_spans=None, schemes=("geometric",)):
    """Check all that holds for every text and seed, token by token."""
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
    """Some spans in each text without special tokens, in order; some overlap."""
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
    """(texts, options for `run`, SpanOptions) of one set of options."""
    options = dict(options)
    options["min_span_words"], options["max_span_words"] = options.pop("words")
    generator = np.random.default_rng(seed)
    lengths = generator.choice([1, 2, 3, 7, 20, 64, 65, 130], size=num_texts, p=LENGTH_SHARES)
    lengths = lengths.tolist()
    texts = make_texts(
        lengths, seed, continuation=generator.choice([0.0, 0.3, 0.9]), special=seed % 3 * 0.1
    )
    span_options = SpanOptions(**options)
    if span_options.law().scheme_thresholds[0]:
        options["given_spans"] = random_given_spans(texts, seed)
    return texts, options, span_options
