"""Span sampling: which tokens of a text are masked, and what replaces them (contract C3).

Joshi et al. 2020 (arXiv 1907.10529), section 3.1, and the released code. A sequence of n maskable
tokens has a budget of ceil(mask_ratio * n). Until it is spent: draw a length in words and an
anchor; draw again if the anchor is masked already; go back to the start of the anchor's word and
mask whole words to the right, until the length, the end of the text or the budget is reached. Spans
that touch become one.

All randomness comes from words of Philox4x32-10, keyed by the seed, with the counter
`(number, sequence id low, sequence id high, stream)`:

    stream 0, number = draw:                     (length, anchor, scheme, given span)
    stream 1, number = position in its sequence: (replacement, random token, unused, unused)

Therefore the masks of a sequence depend on its text, its id and the seed, and on nothing else.
Every choice is made in integers and is the same everywhere: see `spanbert_fast.reference.span_law`.
"""

import bisect
from collections.abc import Iterator
from typing import NamedTuple

import torch

from spanbert_fast.reference.philox import philox4x32, split_key
from spanbert_fast.reference.span_law import (
    MASK_BELOW,
    RANDOM_BELOW,
    REPLACEMENT_STREAM,
    SCHEMES,
    SPAN_STREAM,
    SpanLaw,
)

MASKED, RANDOM, KEPT, PER_TOKEN = 0, 1, 2, -1  # the values of SpanSample.span_replacements
DRAWS_AT_ONCE = 32

Draw = tuple[int, int, int, int]


class SpanSample(NamedTuple):
    """Masked text and its targets. Positions are rows of the packed batch, in rising order.

    Attributes:
        input_ids: int64 (total_tokens,), the text with its masks.
        mlm_positions, mlm_targets: int64 (num_masked,), every masked token and what it was.
        span_boundaries: int64 (num_spans, 2), the two tokens from which a span is predicted, for
            the spans that have targets: those between two maskable tokens of their sequence (with
            internal endpoints: all). A span beside a special token or an end has none.
        span_starts, span_ends: int64 (num_merged_spans,), both inclusive, of every span.
        cu_span_lengths: int32 (num_spans + 1,), prefix sums of the target counts of the spans of
            span_boundaries: each span's length, at most max_span_targets.
        sbo_targets: int64 (cu_span_lengths[-1],), the tokens that these spans were.
        span_replacements: int8 (num_merged_spans,), what replaced each span: 0 mask tokens, 1
            random tokens, 2 its own tokens; -1 if the decision was made for each token.
    """

    input_ids: torch.Tensor
    mlm_positions: torch.Tensor
    mlm_targets: torch.Tensor
    span_boundaries: torch.Tensor
    span_starts: torch.Tensor
    span_ends: torch.Tensor
    cu_span_lengths: torch.Tensor
    sbo_targets: torch.Tensor
    span_replacements: torch.Tensor


def draw_words(seed: int, sequence_ids: torch.Tensor, first: int) -> list[list[Draw]]:
    """DRAWS_AT_ONCE draws of each sequence, from draw number `first` on."""
    numbers = torch.arange(first, first + DRAWS_AT_ONCE)
    low, high = split_key(sequence_ids.cpu()[:, None])
    words = philox4x32((numbers, low, high, torch.tensor(SPAN_STREAM)), split_key(seed))
    return torch.stack(words, -1).tolist()


def _draws(seed: int, sequence_id: torch.Tensor, block: list[Draw]) -> Iterator[Draw]:
    """An endless iterator over a sequence's draws; `block` holds the first ones."""
    first = 0
    while True:
        yield from block
        first += DRAWS_AT_ONCE
        (block,) = draw_words(seed, sequence_id[None], first)


def _words_from(
    start: int, num_words: int, starts: list[bool], maskable: list[bool], ring: bool
) -> Iterator[int]:
    """The tokens of `num_words` words from a word's start on, up to a special token or the end. In
    a ring they continue after the special token, and at the end from the beginning."""
    i, words = start, 0
    while True:
        if i == len(maskable) or not maskable[i]:
            if not ring:
                return
            i = i % len(maskable)
            while not maskable[i]:
                i = (i + 1) % len(maskable)
        if starts[i]:
            if words == num_words:
                return
            words += 1
        yield i
        i += 1


def draw_spans(
    word_starts: list[bool],
    maskable: list[bool],
    given: list[tuple[int, int]],
    law: SpanLaw,
    draws: Iterator[Draw],
) -> tuple[list[list[int]], int]:
    """Draw the spans of one sequence.

    Args:
        word_starts, maskable: one per token. A token at the beginning or after a special token
            starts a word, whatever word_starts says.
        given: (start, end), both inclusive, of the given spans.

    Returns:
        The tokens of each span as it was drawn (they may overlap), and the number of draws.
    """
    starts = [w or i == 0 or not maskable[i - 1] for i, w in enumerate(word_starts)]
    positions = [i for i, free in enumerate(maskable) if free]
    budget = law.budget(len(positions))
    masked: set[int] = set()
    spans, num_draws = [], 0
    while len(masked) < budget:
        length_word, anchor_word, scheme_word, given_word = next(draws)
        num_draws += 1
        scheme = SCHEMES[bisect.bisect_right(law.scheme_thresholds, scheme_word)]
        if scheme == "given":
            if not given:
                continue
            anchor, last = given[given_word * len(given) >> 32]
        else:
            anchor = positions[anchor_word * len(positions) >> 32]
        if anchor in masked:
            continue
        if scheme == "given":
            tokens = iter(range(anchor, last + 1))
        elif scheme == "subword":
            tokens = iter((anchor,))
        else:
            while not starts[anchor]:
                anchor -= 1
            num_words = 1
            if scheme == "geometric":
                longer = bisect.bisect_right(law.length_thresholds, length_word)
                num_words = law.min_span_words + longer
            tokens = _words_from(anchor, num_words, starts, maskable, law.unbiased_edges)
        span = []
        for i in tokens:
            if len(masked) >= budget and (starts[i] or not law.complete_words):
                break
            masked.add(i)
            span.append(i)
        spans.append(span)
    return spans, num_draws


def masked_tokens(
    cu_seqlens: torch.Tensor,
    word_starts: torch.Tensor,
    maskable: torch.Tensor,
    given_spans: torch.Tensor | None,
    seed: int,
    sequence_ids: torch.Tensor,
    law: SpanLaw,
) -> torch.Tensor:
    """bool (total_tokens,) on the CPU: which tokens are masked."""
    masked = torch.zeros(word_starts.shape[0], dtype=torch.bool)
    bounds = cu_seqlens.tolist()
    starts_list, maskable_list = word_starts.tolist(), maskable.tolist()
    given = [] if given_spans is None else given_spans.tolist()
    given_starts = [start for start, _ in given]
    blocks = draw_words(seed, sequence_ids, 0)
    for i, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        own = slice(bisect.bisect_left(given_starts, begin), bisect.bisect_left(given_starts, end))
        spans, _ = draw_spans(
            starts_list[begin:end],
            maskable_list[begin:end],
            [(start - begin, last - begin) for start, last in given[own]],
            law,
            _draws(seed, sequence_ids[i], blocks[i]),
        )
        masked[[begin + token for span in spans for token in span]] = True
    return masked


def sample_spans(
    input_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    word_starts: torch.Tensor,
    *,
    seed: int,
    sequence_ids: torch.Tensor,
    law: SpanLaw,
    mask_token_id: int,
    random_token_pool: torch.Tensor,
    given_spans: torch.Tensor | None = None,
    special_mask: torch.Tensor | None = None,
) -> SpanSample:
    """Mask spans of every sequence; the arguments as in `spanbert_fast.ops.sample_spans`."""
    device = input_ids.device
    maskable = torch.ones_like(word_starts) if special_mask is None else ~special_mask
    masked = masked_tokens(
        cu_seqlens, word_starts, maskable, given_spans, seed, sequence_ids, law
    ).to(device)
    lengths = cu_seqlens.diff()
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    place = torch.arange(len(input_ids), device=device) - cu_seqlens[sequence]
    is_first, is_last = place == 0, place == lengths[sequence] - 1

    span_starts = (masked & (is_first | ~masked.roll(1))).nonzero().squeeze(1)
    span_ends = (masked & (is_last | ~masked.roll(-1))).nonzero().squeeze(1)
    span_lengths = span_ends - span_starts + 1
    mlm_positions = masked.nonzero().squeeze(1)
    mlm_targets = input_ids[mlm_positions]

    low, high = split_key(sequence_ids[sequence[mlm_positions]])
    stream = torch.tensor(REPLACEMENT_STREAM, device=device)
    replacement_word, token_word, _, _ = philox4x32(
        (place[mlm_positions], low, high, stream), split_key(seed)
    )
    replacement = (replacement_word >= MASK_BELOW).to(torch.int8)
    replacement += replacement_word >= RANDOM_BELOW
    if law.replace_per_token:
        span_replacements = torch.full_like(span_starts, PER_TOKEN, dtype=torch.int8)
    else:  # the random word of a span's first token decides
        span_replacements = replacement[span_lengths.cumsum(0) - span_lengths]
        replacement = torch.repeat_interleave(span_replacements, span_lengths)
    random_tokens = random_token_pool[token_word * len(random_token_pool) >> 32]
    replaced = torch.where(replacement == RANDOM, random_tokens, mlm_targets)
    replaced = torch.where(replacement == MASKED, mask_token_id, replaced)

    if law.internal_endpoints:
        has_targets = torch.ones_like(span_starts, dtype=torch.bool)
        boundaries = torch.stack([span_starts, span_ends], 1)
    else:
        has_left, has_right = ~is_first & maskable.roll(1), ~is_last & maskable.roll(-1)
        has_targets = has_left[span_starts] & has_right[span_ends]
        boundaries = torch.stack([span_starts - 1, span_ends + 1], 1)
    target_counts = span_lengths[has_targets].clamp(max=law.max_span_targets)
    cu_span_lengths = torch.zeros(len(target_counts) + 1, dtype=torch.int32, device=device)
    cu_span_lengths[1:] = target_counts.cumsum(0)
    target_starts = torch.repeat_interleave(span_starts[has_targets], target_counts)
    target_spans = torch.repeat_interleave(cu_span_lengths[:-1], target_counts)
    target_places = torch.arange(len(target_starts), device=device) - target_spans
    return SpanSample(
        input_ids=input_ids.scatter(0, mlm_positions, replaced),
        mlm_positions=mlm_positions,
        mlm_targets=mlm_targets,
        span_boundaries=boundaries[has_targets],
        span_starts=span_starts,
        span_ends=span_ends,
        cu_span_lengths=cu_span_lengths,
        sbo_targets=input_ids[target_starts + target_places],
        span_replacements=span_replacements,
    )


def with_capacity(sample: SpanSample, capacity: int) -> tuple[SpanSample, torch.Tensor]:
    """The sample in fields of `capacity` elements, and the counts of elements in use; see
    `spanbert_fast.ops.sample_spans.sample_spans_fixed`."""

    def padded(field: torch.Tensor, filling: int, size: int = capacity) -> torch.Tensor:
        rest = field.new_full((size - len(field), *field.shape[1:]), filling)
        return torch.cat([field, rest])

    counts = [len(sample.mlm_positions), len(sample.span_starts), len(sample.span_boundaries)]
    counts += [len(sample.sbo_targets), 0]
    full = SpanSample(
        input_ids=sample.input_ids,
        mlm_positions=padded(sample.mlm_positions, 0),
        mlm_targets=padded(sample.mlm_targets, -100),
        span_boundaries=padded(sample.span_boundaries, 0),
        span_starts=padded(sample.span_starts, 0),
        span_ends=padded(sample.span_ends, -1),
        cu_span_lengths=padded(sample.cu_span_lengths, len(sample.sbo_targets), capacity + 1),
        sbo_targets=padded(sample.sbo_targets, -100),
        span_replacements=padded(sample.span_replacements, PER_TOKEN),
    )
    return full, torch.tensor(counts, dtype=torch.int32, device=sample.input_ids.device)
