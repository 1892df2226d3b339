"""The law of the span sampler in integers, so that every implementation draws the same (C3).

A random number below n is `word * n >> 32`, for a random word in [0, 2**32). An event of
probability p happens if `word < round(p * 2**32)`. Both are off by less than n / 2**32.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

# The last word of a counter says what the random words are for; stream 2 gives dropout's seeds.
SPAN_STREAM, REPLACEMENT_STREAM, DROPOUT_STREAM = 0, 1, 2
SCHEMES = ("given", "geometric", "word", "subword")  # in the order of their thresholds


def threshold(probability: Fraction) -> int:
    """The t such that `word < t` has this probability."""
    return round(probability * 2**32)


def length_thresholds(geometric_p: float, shortest: int, longest: int) -> tuple[int, ...]:
    """Cumulative thresholds of p (1 - p)^(l - 1) on [shortest, longest]. A length is `shortest`
    plus the number of thresholds <= word. Fractions make them the same on every machine."""
    fail = 1 - Fraction(geometric_p)
    weights = [fail**k for k in range(longest - shortest + 1)]
    total, below, thresholds = sum(weights), Fraction(0), []
    for weight in weights[:-1]:
        below += weight / total
        thresholds.append(threshold(below))
    return tuple(thresholds)


MASK_BELOW, RANDOM_BELOW = threshold(Fraction(8, 10)), threshold(Fraction(9, 10))


class SpanLaw(NamedTuple):
    """The sampler's options in integers: all that an implementation needs beside the text.

    Attributes:
        budget_numerator, budget_denominator: the mask ratio; a budget is the product rounded up.
        min_span_words, length_thresholds: see `length_thresholds`; a tuple, which is hashable.
        scheme_thresholds: three cumulative ones over SCHEMES. The number of thresholds <= word is
            the index of a draw's scheme.
        max_span_targets: places of a span that have a target.
        replace_per_token: replacement is decided for each token, not for each span.
        internal_endpoints: a span is predicted from its own first and last token.
        complete_words: a word in which the budget ends is masked to its end.
        unbiased_edges: a span that reaches the end of the text continues at its beginning.
    """

    budget_numerator: int
    budget_denominator: int
    min_span_words: int
    length_thresholds: Sequence[int]
    scheme_thresholds: Sequence[int]
    max_span_targets: int
    replace_per_token: bool
    internal_endpoints: bool
    complete_words: bool
    unbiased_edges: bool

    def budget(self, maskable: int) -> int:
        """How many of `maskable` tokens are masked."""
        return -(-maskable * self.budget_numerator // self.budget_denominator)
