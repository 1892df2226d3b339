"""The span sampler follows the law of the released sampler, and its documentation."""

import numpy as np
import pytest
import scipy.stats
import torch

from spanbert_fast.ops.sample_spans import SpanOptions, sample_spans
from spanbert_fast.reference import sample_spans as reference

MASK = 4
# disjoint from the texts' ids, so that the origin of an id shows
POOL = torch.tensor([1000, 1001, 1002, 1002])

# Measured on the released code: mean and standard error per sequence, on two texts. Our text
# is another: independent words with the same distribution of lengths. In the first text 2.2 % of
# the words have several pieces; their lengths reproduce the mask rate of continuations (20.5 %).
# Other choices move no figure by more than 0.4 %, which is the slack beside 4 standard errors.
ORACLE = {
    ("wiki", 512): {"draws": (22.4675, 0.0186), "drawn": (20.7888, 0.0160),
                    "merged": (18.8552, 0.0147), "words": (3.9238, 0.0032),
                    "pieces": (4.0838, 0.0034), "no_target": (0.01010, 0.00012)},
    ("wiki", 510): {"draws": (22.4550, 0.0263), "drawn": (20.7690, 0.0225),
                    "merged": (18.8363, 0.0206), "words": (3.9263, 0.0046),
                    "pieces": (4.0879, 0.0048), "no_target": (0.01033, 0.00016)},
    ("wiki", 128): {"draws": (6.3600, 0.0136), "drawn": (5.9201, 0.0116),
                    "merged": (5.4113, 0.0106), "words": (3.5555, 0.0077),
                    "pieces": (3.6959, 0.0081), "no_target": (0.03831, 0.00058)},
    ("wiki", 64): {"draws": (3.4804, 0.0098), "drawn": (3.2721, 0.0084),
                   "merged": (3.0303, 0.0078), "words": (3.1780, 0.0090),
                   "pieces": (3.3001, 0.0093), "no_target": (0.06811, 0.00102)},
    ("novels", 512): {"draws": (21.0603, 0.0262), "drawn": (19.4959, 0.0225),
                      "merged": (17.7089, 0.0206), "words": (3.9096, 0.0047),
                      "pieces": (4.3481, 0.0053), "no_target": (0.01082, 0.00017)},
}  # fmt: skip
# shares of words with 1, 2, ... pieces
WORD_LENGTHS = {
    "wiki": [0.9777, 0.01672, 0.00418, 0.00105, 0.00035],
    "novels": [0.94755, 0.02850, 0.01737, 0.00580, 0.00068, 0.00010],
}
# merged spans' lengths in words on the first text at 512, of 754,206 spans; the last: over 14
MERGED_WORDS = [170618, 132958, 105098, 83493, 67357, 54212, 43396, 34553, 28128, 22546, 3865, 2648,
                1822, 1296, 2216]  # fmt: skip
# mask rates of the first positions on the first text at 512, of 40,000 sequences
FIRST_POSITIONS = [0.04213, 0.0767, 0.10075, 0.11815, 0.13, 0.1386, 0.14458, 0.1482]


def word_starts_like(text, total, generator):
    lengths = generator.choice(
        np.arange(1, len(WORD_LENGTHS[text]) + 1), size=total, p=WORD_LENGTHS[text]
    )
    starts = np.zeros(lengths.sum(), dtype=bool)
    starts[lengths.cumsum() - lengths] = True
    return starts


def simulate(text, seqlen, sequences, **options):
    """The figures per sequence, and the masks, for blocks that begin at a word."""
    law = SpanOptions(**options).law()
    generator = np.random.default_rng(2020)
    stream = word_starts_like(text, 200_000, generator)
    begins = generator.choice(np.flatnonzero(stream[:-seqlen]), size=sequences)
    ids = torch.arange(sequences)
    blocks = reference.draw_words(7, ids, 0)
    lengths, figures, masks, words = [], [], np.zeros((sequences, seqlen), dtype=bool), []
    for i, begin in enumerate(begins):
        starts = stream[begin : begin + seqlen].tolist()
        drawn = []

        def recorded(i=i, drawn=drawn):
            for draw in reference._draws(7, ids[i], blocks[i]):
                drawn.append(draw[0])
                yield draw

        spans, draws = reference.draw_spans(starts, [True] * seqlen, [], law, recorded())
        lengths += [1 + np.searchsorted(law.length_thresholds, w, side="right") for w in drawn]
        masks[i, [token for span in spans for token in span]] = True
        edges = np.diff(np.concatenate([[False], masks[i], [False]]).astype(int))
        first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
        number = np.cumsum(starts)
        in_words = number[last] - number[first] + 1
        words += in_words.tolist()
        lost = ((first == 0) | (last == seqlen - 1)).sum()
        figures.append((draws, len(spans), len(first), in_words.sum(), masks[i].sum(), lost))
    return np.array(lengths), np.array(figures), masks, np.array(words)


def ratio_with_error(numerator, denominator):
    ratio = numerator.sum() / denominator.sum()
    residual = numerator - ratio * denominator
    return ratio, residual.std() / denominator.mean() / len(residual) ** 0.5


@pytest.mark.parametrize(
    ("text", "seqlen", "sequences"),
    [("wiki", 512, 8000), ("wiki", 510, 4000), ("wiki", 128, 8000), ("wiki", 64, 8000),
     ("novels", 512, 4000)],
)  # fmt: skip
def test_same_law_as_the_released_sampler(text, seqlen, sequences):
    lengths, figures, masks, words = simulate(text, seqlen, sequences)
    draws, drawn, merged, in_words, pieces, lost = figures.T.astype(float)
    ones = np.ones(sequences)
    ours = {
        "draws": ratio_with_error(draws, ones),
        "drawn": ratio_with_error(drawn, ones),
        "merged": ratio_with_error(merged, ones),
        "words": ratio_with_error(in_words, merged),
        "pieces": ratio_with_error(pieces, merged),
        "no_target": ratio_with_error(lost, merged),
    }
    for name, (mean, error) in ours.items():
        wanted, wanted_error = ORACLE[text, seqlen][name]
        allowed = 4 * np.hypot(error, wanted_error) + 0.004 * wanted
        assert abs(mean - wanted) <= allowed, (name, mean, wanted, allowed)
    assert (pieces == -(-seqlen * 15 // 100)).all()

    # Lengths are drawn from the exact law, whether or not the draw is used.
    law = 0.8 ** np.arange(10)
    counts = np.bincount(lengths, minlength=11)[1:]
    assert scipy.stats.chisquare(counts, len(lengths) * law / law.sum()).pvalue > 1e-3

    if (text, seqlen) == ("wiki", 512):
        ours_merged = np.bincount(np.minimum(words, 15))[1:]
        table = np.array([ours_merged, MERGED_WORDS])
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3
        for place, wanted in enumerate(FIRST_POSITIONS):
            error = (wanted * (1 - wanted) * (1 / sequences + 1 / 40_000)) ** 0.5
            assert abs(masks[:, place].mean() - wanted) < 4 * error + 0.002, place
        assert abs(masks[:, 8:].mean() - 0.1508) < 0.001


def test_a_ring_has_no_edges():
    _, _, masks, _ = simulate("wiki", 512, 4000, unbiased_edges=True)
    rates = masks.mean(0)
    # 77 of 512; the standard error of a position's rate is 0.0057
    assert np.abs(rates[:10] - 77 / 512).max() < 4 * 0.0057
    # neighbouring positions are correlated
    assert abs(rates[:10].mean() - 77 / 512) < 4 * 0.0057 / 10**0.5 * 2


@pytest.mark.parametrize("replacement", ["span", "token"])
def test_replacement_shares(replacement):
    total = 400 * 512
    sample = sample_spans(
        torch.randint(5, 900, (total,)),
        torch.arange(0, total + 1, 512, dtype=torch.int32),
        torch.rand(total) > 0.03,
        seed=1,
        sequence_ids=torch.arange(400),
        options=SpanOptions(replacement=replacement),
        mask_token_id=MASK,
        random_token_pool=POOL,
    )
    masked = sample.input_ids[sample.mlm_positions]
    kinds = torch.where(masked == MASK, 0, torch.where(masked >= 1000, 1, 2))
    counted = kinds if replacement == "token" else sample.span_replacements
    counts = torch.bincount(counted.long(), minlength=3).numpy()
    assert scipy.stats.chisquare(counts, counts.sum() * np.array([0.8, 0.1, 0.1])).pvalue > 1e-3
    shares = torch.bincount(kinds, minlength=3) / len(kinds)
    assert (shares - torch.tensor([0.8, 0.1, 0.1])).abs().max() < 0.02

    # Random tokens follow the pool, which has 1002 twice.
    drawn = torch.bincount(masked[kinds == 1] - 1000).numpy()
    expected = drawn.sum() * np.array([0.25, 0.25, 0.5])
    assert scipy.stats.chisquare(drawn, expected).pvalue > 1e-3
