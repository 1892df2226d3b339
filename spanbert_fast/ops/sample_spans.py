"""`sample_spans`: masks spans of packed text and lists what the two objectives predict."""

from typing import NamedTuple

import torch

from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._register import has_cpu_kernel, register
from spanbert_fast.ops._span_checks import check_tensors, check_values
from spanbert_fast.ops.span_options import SpanOptions, signed64
from spanbert_fast.reference import sample_spans as reference
from spanbert_fast.reference.sample_spans import SpanSample
from spanbert_fast.reference.span_law import SpanLaw

__all__ = ["SpanOptions", "SpanSample", "sample_spans", "sample_spans_fixed", "span_capacity"]

_DEFAULTS = SpanOptions()


def sample_spans(
    input_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    word_starts: torch.Tensor,
    *,
    seed: int,
    sequence_ids: torch.Tensor,
    mask_token_id: int,
    random_token_pool: torch.Tensor,
    options: SpanOptions | None = None,
    given_spans: torch.Tensor | None = None,
    special_mask: torch.Tensor | None = None,
) -> SpanSample:
    """Mask spans of every sequence (Joshi et al. 2020, section 3.1; contract C3).

    The masks of a sequence depend on its text, its sequence id, the seed and the options. They do
    not depend on the device, the batch, or the sequence's place in it. Spans of one sequence that
    touch or overlap become one span.

        >>> text, every = torch.arange(100, 140), torch.ones(40, dtype=torch.bool)
        >>> sample = sample_spans(
        ...     text, torch.tensor([0, 40], dtype=torch.int32), every, seed=1, mask_token_id=103,
        ...     sequence_ids=torch.tensor([0]), random_token_pool=text,
        ... )
        >>> len(sample.mlm_targets)  # 15 % of 40
        6

    Args:
        input_ids: int64 (total_tokens,), every id in [0, 2**31).
        cu_seqlens: int32 (batch + 1,), prefix sums of the lengths; no sequence is empty.
        word_starts: bool (total_tokens,), whether a token begins a word. The first token of a
            sequence always does, and so does a token after a special token.
        seed: any 64-bit integer.
        sequence_ids: int64 (batch,), a different number for each sequence of a training run.
        mask_token_id: the mask token's id.
        random_token_pool: int64 (pool,), the ids that random tokens are drawn from, uniformly; an
            id that occurs several times is drawn more often.
        options: default `SpanOptions()`, those of the paper.
        given_spans: int64 (num_given, 2), first and last row of spans in the packed text, in
            rising order of their first row; only with a share of "given" in options.scheme.
        special_mask: bool (total_tokens,), the tokens that are never masked and never predicted
            from. No span contains one.

    Returns:
        A `SpanSample`. With external endpoints, a span beside a special token or an end of its
        sequence has no targets: it is in span_starts and span_ends, but not in span_boundaries.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it and its value.
    """
    sample, counts = sample_spans_fixed(
        input_ids,
        cu_seqlens,
        word_starts,
        seed=seed,
        sequence_ids=sequence_ids,
        mask_token_id=mask_token_id,
        random_token_pool=random_token_pool,
        options=options,
        given_spans=given_spans,
        special_mask=special_mask,
    )
    masked, spans, with_targets, targets, refused = counts.tolist()
    if refused:
        check_values(input_ids, cu_seqlens, given_spans, random_token_pool, special_mask)
    return SpanSample(
        input_ids=sample.input_ids,
        mlm_positions=sample.mlm_positions[:masked],
        mlm_targets=sample.mlm_targets[:masked],
        span_boundaries=sample.span_boundaries[:with_targets],
        span_starts=sample.span_starts[:spans],
        span_ends=sample.span_ends[:spans],
        cu_span_lengths=sample.cu_span_lengths[: with_targets + 1],
        sbo_targets=sample.sbo_targets[:targets],
        span_replacements=sample.span_replacements[:spans],
    )


def sample_spans_fixed(
    input_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    word_starts: torch.Tensor,
    *,
    seed: int,
    sequence_ids: torch.Tensor,
    mask_token_id: int,
    random_token_pool: torch.Tensor,
    options: SpanOptions | None = None,
    given_spans: torch.Tensor | None = None,
    special_mask: torch.Tensor | None = None,
) -> tuple[SpanSample, torch.Tensor]:
    """`sample_spans` with shapes that do not depend on the draws, for CUDA graphs.

        >>> text, every = torch.arange(100, 140), torch.ones(40, dtype=torch.bool)
        >>> sample, counts = sample_spans_fixed(
        ...     text, torch.tensor([0, 40], dtype=torch.int32), every, seed=1, mask_token_id=103,
        ...     sequence_ids=torch.tensor([0]), random_token_pool=text,
        ... )
        >>> len(sample.mlm_targets), int(counts[0])  # capacity and count
        (7, 6)

    Args:
        others: as in `sample_spans`.

    Returns:
        The sample and its counts. Every field whose length depends on the draws has `span_capacity`
        elements. The counts are int32 (5,) on the same device: masked tokens, spans, spans with
        targets, targets, and 1 if the input was refused. The elements beyond a count are positions
        and boundaries 0, targets -100 (no loss), empty spans (start 0, end -1), and the last value
        of cu_span_lengths.

    Raises:
        ValueError, TypeError: as `sample_spans`. The host does not read the values of GPU tensors:
            there only the last count tells that they were refused, and the other fields are void.
    """
    law = (options or _DEFAULTS).law()
    uses_given = law.scheme_thresholds[0] > 0
    check_tensors(
        input_ids, cu_seqlens, word_starts, sequence_ids, given_spans, uses_given,
        random_token_pool, special_mask,
    )  # fmt: skip
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be a 64-bit integer, got {seed}")
    if not 0 <= mask_token_id < 2**31:
        raise ValueError(f"mask_token_id must be in [0, 2**31), got {mask_token_id}")
    capacity = span_capacity(law, input_ids.shape[0], cu_seqlens.shape[0] - 1)
    text = SpanText(
        input_ids, cu_seqlens, word_starts, special_mask, given_spans, random_token_pool,
        sequence_ids,
    )  # fmt: skip
    arguments = (signed64(seed), mask_token_id)
    if runs_reference():
        *fields, counts = _composite(text, *arguments, law, capacity)
    else:
        *fields, counts = _sample_spans.op(*text, *arguments, *law, capacity)
    on_host = input_ids.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_host and counts[-1]:
        check_values(input_ids, cu_seqlens, given_spans, random_token_pool, special_mask)
    return SpanSample(*fields), counts


def span_capacity(law: SpanLaw, total_tokens: int, batch: int) -> int:
    """The most tokens that this law can mask in `batch` sequences of `total_tokens` together."""
    if law.complete_words:
        return total_tokens
    rounded_up = total_tokens * law.budget_numerator // law.budget_denominator + batch
    return min(total_tokens, rounded_up)


class SpanText(NamedTuple):
    """The tensors that the registered function takes; see `sample_spans`."""

    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    word_starts: torch.Tensor
    special_mask: torch.Tensor | None
    given_spans: torch.Tensor | None
    random_token_pool: torch.Tensor
    sequence_ids: torch.Tensor


class FixedSample(NamedTuple):
    """A `SpanSample` of fixed shapes, and its counts; see `sample_spans_fixed`."""

    input_ids: torch.Tensor
    mlm_positions: torch.Tensor
    mlm_targets: torch.Tensor
    span_boundaries: torch.Tensor
    span_starts: torch.Tensor
    span_ends: torch.Tensor
    cu_span_lengths: torch.Tensor
    sbo_targets: torch.Tensor
    span_replacements: torch.Tensor
    counts: torch.Tensor


def _composite(
    text: SpanText, seed: int, mask_token_id: int, law: SpanLaw, capacity: int
) -> FixedSample:
    check_values(
        text.input_ids, text.cu_seqlens, text.given_spans, text.random_token_pool,
        text.special_mask,
    )  # fmt: skip
    sample = reference.sample_spans(
        text.input_ids,
        text.cu_seqlens,
        text.word_starts,
        seed=seed,
        sequence_ids=text.sequence_ids,
        law=law,
        mask_token_id=mask_token_id,
        random_token_pool=text.random_token_pool,
        given_spans=text.given_spans,
        special_mask=text.special_mask,
    )
    full, counts = reference.with_capacity(sample, capacity)
    return FixedSample(*full, counts)


def _fake(text: SpanText, seed, mask_token_id, law: SpanLaw, capacity):
    ids, ints = text.input_ids, text.cu_seqlens
    return FixedSample(
        input_ids=torch.empty_like(ids),
        mlm_positions=ids.new_empty(capacity),
        mlm_targets=ids.new_empty(capacity),
        span_boundaries=ids.new_empty((capacity, 2)),
        span_starts=ids.new_empty(capacity),
        span_ends=ids.new_empty(capacity),
        cu_span_lengths=ints.new_empty(capacity + 1),
        sbo_targets=ids.new_empty(capacity),
        span_replacements=ids.new_empty(capacity, dtype=torch.int8),
        counts=ints.new_empty(5),
    )


# With the extension, no composite is registered: it would make the host wait for a GPU at every
# sequence.
_sample_spans = register(
    "sample_spans", _composite, _fake, with_composite=not has_cpu_kernel("sample_spans")
)
