"""`sample_spans`: mask spans of packed text and list what the two objectives predict."""

import torch

from spanbert_fast import _extension
from spanbert_fast.ops import _common
from spanbert_fast.ops._span_checks import check_tensors, check_values
from spanbert_fast.ops._span_law import Scheme, signed64, span_law
from spanbert_fast.reference import sample_spans as reference
from spanbert_fast.reference.sample_spans import SpanSample
from spanbert_fast.reference.span_law import SpanLaw

__all__ = ["SpanSample", "sample_spans", "sample_spans_fixed", "span_capacity", "span_law"]


def sample_spans(
    input_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    word_starts: torch.Tensor,
    *,
    seed: int,
    sequence_ids: torch.Tensor,
    mask_ratio: float = 0.15,
    geometric_p: float = 0.2,
    min_span_words: int = 1,
    max_span_words: int = 10,
    max_span_targets: int = 20,
    replacement: str = "span",
    scheme: Scheme = "geometric",
    given_spans: torch.Tensor | None = None,
    given_probability: float = 0.5,
    endpoints: str = "external",
    complete_words: bool = False,
    unbiased_edges: bool = False,
    mask_token_id: int,
    random_token_pool: torch.Tensor,
    special_mask: torch.Tensor | None = None,
) -> SpanSample:
    """Mask spans of every sequence (Joshi et al. 2020, section 3.1; contract C3).

    A sequence's masks are a function of its text, its sequence id, the seed and the options, bit
    for bit, on every device, in whatever batch and at whatever place in it. Spans of one sequence
    that touch or overlap are one span.

    Args:
        input_ids: int64 (total_tokens,), every id in [0, 2**31).
        cu_seqlens: int32 (batch + 1,), prefix sums of the lengths; no sequence is empty.
        word_starts: bool (total_tokens,), whether a token begins a word. The first token of a
            sequence and one behind a special token always do.
        seed: any 64-bit integer.
        sequence_ids: int64 (batch,), what tells the sequences of a training run apart.
        mask_ratio: ceil(mask_ratio * n) of a sequence's n maskable tokens are masked, where
            mask_ratio is read as the nearest fraction with a denominator up to 1,000,000.
        geometric_p, min_span_words, max_span_words: a span's words l are drawn from
            p (1 - p)^(l - 1), clipped to [min, max] and normalised; max is at most 256.
        max_span_targets: tokens of a span that the span boundary objective predicts, its first.
        replacement: what becomes of masked tokens, "span": 80 % of the spans become the mask
            token, 10 % random tokens, 10 % stay; "token": the same for each token.
        scheme: how a draw masks. "geometric": whole words from the anchor's on; "word": the
            anchor's word; "subword": the anchor; "given": with given_probability one of
            given_spans, else a word (section 6.1). Or the share of each, for example
            {"given": 0.5, "geometric": 0.5}.
        given_spans: int64 (num_given, 2), first and last row of spans in the packed text, in
            rising order of their first; with a share of "given" only.
        given_probability: see scheme.
        endpoints: a span is predicted from the tokens outside its ends ("external"), or from its
            own first and last ("internal").
        complete_words: mask the word in which the budget ends to its end, over the budget.
        unbiased_edges: spans grow to the right only, so the first tokens of a text are masked less
            often than the others: 4 % at the first, for 10 words. With True the text is a ring: a
            span that reaches a special token or the end goes on behind it, at the end from the
            beginning on, and every token has the same chance.
        mask_token_id: the mask token's id.
        random_token_pool: int64 (pool,), what random tokens are drawn from, all alike; ids that
            are there several times are drawn more often.
        special_mask: bool (total_tokens,), the tokens that are never masked nor predicted from.
            No span goes over them.

    Returns:
        A `SpanSample`. A span beside a special token or an end of its sequence has no targets with
        external endpoints; it is in span_starts and span_ends, but not in span_boundaries.

    Raises:
        ValueError, TypeError: an argument is not as above; named with what came.
    """
    law = span_law(
        mask_ratio=mask_ratio,
        geometric_p=geometric_p,
        min_span_words=min_span_words,
        max_span_words=max_span_words,
        max_span_targets=max_span_targets,
        replacement=replacement,
        scheme=scheme,
        given_probability=given_probability,
        endpoints=endpoints,
        complete_words=complete_words,
        unbiased_edges=unbiased_edges,
    )
    sample, counts = sample_spans_fixed(
        input_ids,
        cu_seqlens,
        word_starts,
        seed=seed,
        sequence_ids=sequence_ids,
        law=law,
        mask_token_id=mask_token_id,
        random_token_pool=random_token_pool,
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
    law: SpanLaw,
    mask_token_id: int,
    random_token_pool: torch.Tensor,
    given_spans: torch.Tensor | None = None,
    special_mask: torch.Tensor | None = None,
) -> tuple[SpanSample, torch.Tensor]:
    """`sample_spans` with shapes that do not depend on what is drawn, for CUDA graphs.

    Args:
        law: the options, `span_law(mask_ratio=..., ...)`; the rest as in `sample_spans`.

    Returns:
        The sample, in which every field that is counted has `span_capacity` elements, and the
        counts, int32 (5,) on the same device: masked tokens, spans, spans with targets, targets,
        and 1 where the input was refused. Behind the counts stand positions and boundaries 0,
        targets -100 (no loss), empty spans (start 0, end -1), and cu_span_lengths' last value.

    Raises:
        ValueError, TypeError: as `sample_spans`; but what GPU tensors hold is not read on the host,
            and only the last count tells that it was refused. The other fields mean nothing then.
    """
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
    if _extension._C is None or _common.runs_reference():
        check_values(input_ids, cu_seqlens, given_spans, random_token_pool, special_mask)
        sample = reference.sample_spans(
            input_ids,
            cu_seqlens,
            word_starts,
            seed=seed,
            sequence_ids=sequence_ids,
            law=law,
            mask_token_id=mask_token_id,
            random_token_pool=random_token_pool,
            given_spans=given_spans,
            special_mask=special_mask,
        )
        return reference.with_capacity(sample, capacity)
    *fields, counts = torch.ops.spanbert_fast.sample_spans(
        input_ids,
        cu_seqlens,
        word_starts,
        special_mask,
        given_spans,
        random_token_pool,
        sequence_ids,
        signed64(seed),
        mask_token_id,
        law.budget_numerator,
        law.budget_denominator,
        law.min_span_words,
        law.length_thresholds,
        law.scheme_thresholds,
        law.max_span_targets,
        law.replace_per_token,
        law.internal_endpoints,
        law.complete_words,
        law.unbiased_edges,
        capacity,
    )
    on_host = input_ids.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_host and counts[-1]:
        check_values(input_ids, cu_seqlens, given_spans, random_token_pool, special_mask)
    return SpanSample(*fields), counts


def span_capacity(law: SpanLaw, total_tokens: int, batch: int) -> int:
    """The most tokens that this law can mask in so many sequences of so many tokens in all."""
    if law.complete_words:
        return total_tokens
    rounded_up = total_tokens * law.budget_numerator // law.budget_denominator + batch
    return min(total_tokens, rounded_up)


if _extension._C is not None:

    @torch.library.register_fake("spanbert_fast::sample_spans")
    def _(input_ids, cu_seqlens, *arguments):
        capacity = arguments[-1]
        longs = [input_ids.new_empty(capacity) for _ in range(5)]
        return (
            torch.empty_like(input_ids),
            *longs[:2],
            input_ids.new_empty((capacity, 2)),
            *longs[2:4],
            cu_seqlens.new_empty(capacity + 1),
            longs[4],
            input_ids.new_empty(capacity, dtype=torch.int8),
            cu_seqlens.new_empty(5),
        )
