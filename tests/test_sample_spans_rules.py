"""The span sampler's rules, one by one, on hand-made draws."""

import itertools
from fractions import Fraction

import torch

from spanbert_fast.ops.span_options import SpanOptions
from spanbert_fast.reference import sample_spans as reference
from spanbert_fast.reference.philox import philox4x32, split_key


def draw(law, *, words=1, anchor, maskable, scheme="geometric", given=(0, 1)):
    """The four random words of a draw that makes these choices."""
    longer = words - law.min_span_words
    length_word = law.length_thresholds[longer - 1] if longer else 0
    shares = dict(zip(("given", "geometric", "word"), law.scheme_thresholds, strict=True))
    below = [0, *law.scheme_thresholds]
    scheme_word = below[[*shares, "subword"].index(scheme)]
    # the smallest word whose product with n reaches the choice
    anchor_word = -(-(anchor << 32) // maskable)
    given_word = -(-(given[0] << 32) // given[1])
    return length_word, anchor_word, scheme_word, given_word


WORDS = [True, True, False, False, True, True, False, True, True, True]  # 7 words of 10 tokens


def spans_of(draws, law, word_starts=WORDS, maskable=None, given_spans=()):
    maskable = [True] * len(word_starts) if maskable is None else maskable
    drawn = iter(draws)
    spans, number = reference.draw_spans(word_starts, maskable, list(given_spans), law, drawn)
    assert not list(drawn), "every draw that was made by hand is used"
    return spans, number


def test_a_span_starts_at_its_word_and_takes_whole_words():
    law = SpanOptions(mask_ratio=0.6).law()
    spans, number = spans_of([draw(law, words=3, anchor=2, maskable=10)], law)
    assert spans == [[1, 2, 3, 4, 5, 6]] and number == 1


def test_the_budget_cuts_the_last_word_unless_words_are_completed():
    law = SpanOptions(mask_ratio=0.3).law()
    spans, _ = spans_of([draw(law, words=3, anchor=0, maskable=10)], law)
    assert spans == [[0, 1, 2]]
    law = SpanOptions(mask_ratio=0.3, complete_words=True).law()
    spans, _ = spans_of([draw(law, words=3, anchor=0, maskable=10)], law)
    assert spans == [[0, 1, 2, 3]]


def test_a_masked_anchor_is_drawn_again_and_a_span_may_run_over_masked_words():
    law = SpanOptions(mask_ratio=0.5).law()
    draws = [
        draw(law, words=1, anchor=4, maskable=10),
        draw(law, words=5, anchor=4, maskable=10),  # masked already
        draw(law, words=3, anchor=3, maskable=10),  # the span goes on over word 4 to word 5
    ]
    spans, number = spans_of(draws, law)
    assert spans == [[4], [1, 2, 3, 4, 5]] and number == 3  # the budget cuts word 5


def test_a_span_ends_at_the_end_and_at_special_tokens():
    law = SpanOptions(mask_ratio=0.5).law()
    maskable = [True] * 10
    maskable[5] = False  # the word's second piece then begins a word
    draws = [
        draw(law, words=10, anchor=8, maskable=9),  # the maskable token number 8 is token 9
        draw(law, words=10, anchor=1, maskable=9),
    ]
    spans, _ = spans_of(draws, law, maskable=maskable)
    assert spans == [[9], [1, 2, 3, 4]]
    draws = [draw(law, words=9, anchor=5, maskable=9), draw(law, words=1, anchor=0, maskable=9)]
    spans, _ = spans_of(draws, law, maskable=maskable)
    assert spans == [[6, 7, 8, 9], [0]]


def test_in_a_ring_a_span_goes_on_behind_special_tokens_and_the_end():
    law = SpanOptions(mask_ratio=1.0, unbiased_edges=True).law()
    maskable = [False, *[True] * 3, False, *[True] * 4, False]
    spans, _ = spans_of([draw(law, words=10, anchor=3, maskable=7)], law, maskable=maskable)
    assert spans == [[5, 6, 7, 8, 1, 2, 3]]


def test_schemes_choose_what_a_draw_masks():
    law = SpanOptions(mask_ratio=0.6, scheme={"given": 0.4, "word": 0.2, "subword": 0.4}).law()
    draws = [
        draw(law, anchor=0, maskable=10, scheme="given", given=(1, 2)),
        draw(law, anchor=0, maskable=10, scheme="given", given=(1, 2)),  # masked already
        draw(law, words=9, anchor=6, maskable=10, scheme="word"),
        draw(law, words=9, anchor=3, maskable=10, scheme="subword"),
    ]
    spans, number = spans_of(draws, law, given_spans=[(0, 1), (7, 9)])
    assert spans == [[7, 8, 9], [5, 6], [3]] and number == 4
    # without given spans, such a draw is repeated
    law = SpanOptions(mask_ratio=0.1, scheme="given").law()
    draws = [
        draw(law, anchor=0, maskable=10, scheme="given"),
        draw(law, anchor=9, maskable=10, scheme="word"),
    ]
    assert spans_of(draws, law) == ([[9]], 2)


def test_draws_are_numbered_words_of_philox():
    ids = torch.tensor([5, -1, 2**40])
    for first in (0, 64):
        blocks = reference.draw_words(-7, ids, first)
        for sequence, block in zip(ids.tolist(), blocks, strict=True):
            for k in (0, 31):
                counter = (first + k, *split_key(sequence), 0)
                assert tuple(block[k]) == philox4x32(counter, split_key(-7))
    # the generator continues from block to block
    first_block = reference.draw_words(-7, ids, 0)[1]
    made = list(itertools.islice(reference._draws(-7, ids[1], first_block), 70))
    assert made[64:] == reference.draw_words(-7, ids, 64)[1][:6]


def test_the_law_is_exact():
    law = SpanOptions().law()
    weights = [Fraction(4, 5) ** k for k in range(10)]
    for k, bound in enumerate(law.length_thresholds, 1):
        assert abs(bound - 2**32 * sum(weights[:k]) / sum(weights)) <= 0.51
    # the budget follows the decimal ratio: 0.15 * 140 is 21.000000000000004 in floating point
    assert [law.budget(n) for n in (1, 20, 21, 60, 140, 512, 2**31 - 1)] == [
        1, 3, 4, 9, 21, 77, -(-(2**31 - 1) * 3 // 20)
    ]  # fmt: skip
    assert SpanOptions(mask_ratio=1.0).law().budget(7) == 7
    assert SpanOptions(geometric_p=1.0).law().length_thresholds == (2**32,) * 9
    # half of the draws take given spans, the others words
    shares = SpanOptions(scheme="given", given_probability=0.5).law().scheme_thresholds
    assert shares == (2**31, 2**31, 2**32)
