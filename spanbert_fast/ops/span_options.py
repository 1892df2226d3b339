"""The span sampler's options and their checks, and the same options in integers."""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction

from spanbert_fast.reference.philox import philox4x32, split_key
from spanbert_fast.reference.span_law import (
    DROPOUT_STREAM,
    SCHEMES,
    SpanLaw,
    length_thresholds,
    threshold,
)

MAX_SPAN_WORDS = 256  # kernels keep a table of lengths in registers or shared memory
_MAX_DENOMINATOR = 10**6

Scheme = str | Mapping[str, float]


def signed64(word: int) -> int:
    """The signed integer with the same low 64 bits."""
    return (word + 2**63) % 2**64 - 2**63


def derived_seed(seed: int, sequence_id: int) -> int:
    """A seed for dropout that is a function of the sampler's seed and a sequence; signed."""
    low, high, _, _ = philox4x32((0, *split_key(sequence_id), DROPOUT_STREAM), split_key(seed))
    return signed64(high << 32 | low)


@dataclasses.dataclass(frozen=True)
class SpanOptions:
    """How spans are drawn and replaced (Joshi et al. 2020, section 3.1; contract C3).

        >>> SpanOptions(mask_ratio=0.2).mask_ratio
        0.2

    Attributes:
        mask_ratio: ceil(mask_ratio * n) of a sequence's n maskable tokens are masked, where
            mask_ratio is read as the nearest fraction with a denominator up to 1,000,000.
        geometric_p, min_span_words, max_span_words: a span's words l are drawn from
            p (1 - p)^(l - 1), clipped to [min, max] and normalised; max is at most 256.
        max_span_targets: how many tokens of a span the span boundary objective predicts: the first.
        replacement: "span": 80 % of the spans become mask tokens, 10 % random tokens, and 10 % stay
            as they are; "token": the same decision is made for each token.
        scheme: what one draw masks. "geometric": whole words, from the anchor's word on; "word":
            the anchor's word; "subword": the anchor; "given": one of the given spans with
            given_probability, else a word (section 6.1). Or a dict of shares, for example
            {"given": 0.5, "geometric": 0.5}.
        given_probability: see scheme.
        endpoints: a span is predicted from the tokens outside its ends ("external"), or from its
            own first and last ("internal").
        complete_words: where the budget ends within a word, mask the whole word, beyond the budget.
        unbiased_edges: spans grow to the right only, so the first tokens of a text are masked less
            often than the others: the first one 4 % of the time, with 10 words. With True the text
            is a ring: a span that reaches a special token continues after it, a span that reaches
            the end continues at the beginning, and every token is masked equally often.

    Raises:
        ValueError: an option is out of its range.
    """

    mask_ratio: float = 0.15
    geometric_p: float = 0.2
    min_span_words: int = 1
    max_span_words: int = 10
    max_span_targets: int = 20
    replacement: str = "span"
    scheme: Scheme = "geometric"
    given_probability: float = 0.5
    endpoints: str = "external"
    complete_words: bool = False
    unbiased_edges: bool = False

    def __post_init__(self) -> None:
        # computed here, so that Dynamo need not trace the fractions in a compiled step
        object.__setattr__(self, "_law", _law(self))

    def __hash__(self) -> int:
        return hash(self.law())

    def law(self) -> SpanLaw:
        """The options in integers, as every implementation of the sampler takes them."""
        return vars(self)["_law"]


def _check_ratio(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        wanted = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be one of {wanted}, got {value!r}")


def _scheme_shares(scheme: Scheme, given_probability: float) -> tuple[float, ...]:
    """The probability of each of SCHEMES in one draw.

    Raises:
        ValueError: an unknown name, shares that are no probabilities, or given spans alone, which
            may not be enough for the budget.
    """
    if isinstance(scheme, str):
        _check_choice("scheme", scheme, SCHEMES)
        if scheme == "given":
            if not 0 < given_probability < 1:
                raise ValueError(f"given_probability must be in (0, 1), got {given_probability}")
            scheme = {"given": given_probability, "word": 1 - given_probability}
        else:
            scheme = {scheme: 1.0}
    for name, share in scheme.items():
        _check_choice("scheme", name, SCHEMES)
        if not 0 <= share <= 1:
            raise ValueError(f"scheme[{name!r}] must be in [0, 1], got {share}")
    if abs(sum(scheme.values()) - 1) > 1e-6:
        raise ValueError(f"scheme must have shares that add up to 1, got {dict(scheme)}")
    shares = tuple(scheme.get(name, 0.0) for name in SCHEMES)
    if shares[0] > 0.999:
        raise ValueError(f'scheme["given"] must be at most 0.999, got {shares[0]}')
    return shares


def _law(options: SpanOptions) -> SpanLaw:
    """Check the options, and return them in integers."""
    shares = _scheme_shares(options.scheme, options.given_probability)
    shortest, longest = options.min_span_words, options.max_span_words
    _check_ratio("mask_ratio", options.mask_ratio)
    _check_ratio("geometric_p", options.geometric_p)
    if shortest < 1:
        raise ValueError(f"min_span_words must be at least 1, got {shortest}")
    if not shortest <= longest <= MAX_SPAN_WORDS:
        raise ValueError(
            f"max_span_words must be in [min_span_words = {shortest}, {MAX_SPAN_WORDS}], "
            f"got {longest}"
        )
    if options.max_span_targets < 1:
        raise ValueError(f"max_span_targets must be at least 1, got {options.max_span_targets}")
    _check_choice("replacement", options.replacement, ("span", "token"))
    _check_choice("endpoints", options.endpoints, ("external", "internal"))
    # 0.15 means 3/20, not the nearest binary fraction: 20 tokens have a budget of exactly 3.
    ratio = Fraction(options.mask_ratio).limit_denominator(_MAX_DENOMINATOR)
    if ratio == 0:
        raise ValueError(f"mask_ratio must be at least 1e-6, got {options.mask_ratio}")
    cumulative = [sum(map(Fraction, shares[: i + 1]), Fraction(0)) for i in range(len(shares))]
    return SpanLaw(
        budget_numerator=ratio.numerator,
        budget_denominator=ratio.denominator,
        min_span_words=shortest,
        length_thresholds=length_thresholds(options.geometric_p, shortest, longest),
        scheme_thresholds=tuple(threshold(part / cumulative[-1]) for part in cumulative[:-1]),
        max_span_targets=options.max_span_targets,
        replace_per_token=options.replacement == "token",
        internal_endpoints=options.endpoints == "internal",
        complete_words=options.complete_words,
        unbiased_edges=options.unbiased_edges,
    )
