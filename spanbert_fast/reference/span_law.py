"""The law of the span sampler in integers, so that every implementation draws the same (C3).

A number below n is `word * n >> 32`, from a random word in [0, 2**32); what has probability p
happens where `word < round(p * 2**32)`. Both are off by less than n / 2**32.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

# The last word of a counter tells apart what the words are for; the third makes dropout's seeds.
SPAN_STREAM, REPLACEMENT_STREAM, DROPOUT_STREAM = 0, 1, 2
SCHEMES = ("given", "geometric", "word", "subword")  # in the order of their thresholds


def threshold(probability: Fraction) -> int:
    """The t for which `word < t` has this probability."""
    return round(probability * 2**32)


def length_thresholds(geometric_p: float, shortest: int, longest: int) -> tuple[int, ...]:
    """Cumulative thresholds of p (1 - p)^(l - 1) on [shortest, longest]: a length is `shortest`
    and one more for each threshold <= word. In fractions, so that no libm has a say."""
    fail = 1 - Fraction(geometric_p)
    weights = [fail**k for k in range(longest - shortest + 1)]
    total, below, thresholds = sum(weights), Fraction(0), []
    for weight in weights[:-1]:
        below += weight / total
        thresholds.append(threshold(below))
    return tuple(thresholds)


MASK_BELOW, RANDOM_BELOW = threshold(Fraction(8, 10)), threshold(Fraction(9, 10))


class SpanLaw(NamedTuple):
    """The law of the sampler in integers: all that an implementation needs beside the text.

    Attributes:
        budget_numerator, budget_denominator: the mask ratio; a budget is the product rounded up.
        min_span_words, length_thresholds: see `length_thresholds`; a tuple, which is hashable.
        scheme_thresholds: three, cumulative over SCHEMES: a draw's scheme is the number of
            thresholds <= word.
        max_span_targets: places of a span that have a target.
        replace_per_token: replacement is decided for each token, not for each span.
        internal_endpoints: a span is predicted from its own first and last token.
        complete_words: the word in which the budget ends is masked to its end.
        unbiased_edges: a span that reaches the end of the text goes on behind it.
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
        """How many of so many maskable tokens are masked."""
        return -(-maskable * self.budget_numerator // self.budget_denominator)
