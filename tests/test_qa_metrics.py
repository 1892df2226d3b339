"""Exact match, F1 and the no-answer threshold against hand-worked cases and brute force."""

import random

import pytest

from spanbert_fast.tasks.qa_metrics import (
    answer_scores,
    best_threshold,
    exact_match,
    normalized,
    squad_figures,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Cat,\n sat", "cat sat"),
        ("A.B. an apple", "ab apple"),  # points are removed before articles
        ("theatre and Athens", "theatre and athens"),
        ("the", ""),
        ("!?", ""),
        ("", ""),
        ("a-the", "athe"),
        ("STRASSE Straße É", "strasse straße é"),
        ("«the»", "« »"),  # only ASCII punctuation is removed
        ("a—b", "—b"),
    ],
)
def test_normalized(text, wanted):
    assert normalized(text) == wanted


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "f1"),
    [
        ("the Normans", "Normans!", 1, 1),
        ("in the 10th century", "10th century", 0, 4 / 5),
        ("cat cat dog", "cat dog dog", 0, 2 / 3),  # a word counts as often as both have it
        ("cat", "dog", 0, 0),
        ("", "dog", 0, 0),
        ("cat", "the", 0, 0),
        ("", "", 1, 0),  # as in SQuAD 1.1's script
    ],
)
def test_one_answer(prediction, gold, exact, f1):
    assert exact_match(prediction, gold) == exact
    assert token_f1(prediction, gold) == pytest.approx(f1)
    assert token_f1(gold, prediction) == pytest.approx(f1)


def test_the_gold_answer_that_suits_best_counts():
    golds = ["big red dog", "dog", "dogs"]
    assert answer_scores("a dog", golds) == (1.0, 1.0)
    assert answer_scores("red dog", golds) == (0.0, pytest.approx(4 / 5))
    assert answer_scores("red cat", ["dog", "dog"]) == (0.0, 0.0)


def test_no_answer():
    for version_2 in (False, True):
        assert answer_scores("", [], version_2=version_2) == (1.0, 1.0)
        assert answer_scores("dog", [], version_2=version_2) == (0.0, 0.0)
    # a gold answer that normalises to nothing
    assert answer_scores("the", ["The"]) == (1.0, 0.0)
    assert answer_scores("the", ["The"], version_2=True) == (1.0, 1.0)
    assert answer_scores("the", ["The", "dog"], version_2=True) == (0.0, 0.0)


def score_under(threshold, scores, odds, answerable):
    """The definition: a question with higher odds is left unanswered."""
    given = [
        score if o <= threshold else float(not has)
        for score, o, has in zip(scores, odds, answerable, strict=True)
    ]
    return sum(given) / len(given)


@pytest.mark.parametrize("seed", range(60))
def test_best_threshold_is_the_best_and_the_lowest_such(seed):
    draw = random.Random(seed)
    number = draw.randint(1, 9)
    answerable = [draw.random() < 0.6 for _ in range(number)]
    scores = [draw.choice([0.0, 0.4, 1.0]) if has else 0.0 for has in answerable]
    odds = [draw.choice([-2.0, -0.5, 1.0, draw.gauss(0, 3)]) for _ in range(number)]  # with ties
    every = [min(odds) - 1.0, *sorted(odds)]
    best, threshold = best_threshold(scores, odds, answerable)
    found = [score_under(t, scores, odds, answerable) for t in every]
    assert best == pytest.approx(max(found))
    assert score_under(threshold, scores, odds, answerable) == pytest.approx(max(found))
    assert threshold == every[next(i for i, f in enumerate(found) if f > max(found) - 1e-9)]


def test_best_threshold_where_it_pays_to_answer_nothing():
    best, threshold = best_threshold([0.0, 0.0], [-3.0, 2.0], [True, False])
    assert (best, threshold) == (0.5, -4.0)


def test_figures_of_version_1():
    golds = [["dog"], ["cat"], ["y"]]
    figures = squad_figures(["the dog", "red cat", "x"], [9.0, -9.0, 0.0], golds)
    assert figures == {
        "exact": pytest.approx(100 / 3),
        "f1": pytest.approx(100 * (1 + 2 / 3) / 3),
        "total": 3,
    }


# exact: 1, 0, -, 1, -; f1: 1, 2/3, -, 1, - ("-": no answer, wrong if one is given)
PREDICTIONS = ["dog", "red cat", "x", "the y", "z"]
ODDS = [-3.0, -1.0, -2.0, 4.0, 5.0]
ANSWERS = [["dog"], ["cat", "bird"], [], ["y"], []]


def test_figures_of_version_2():
    figures = squad_figures(PREDICTIONS, ODDS, ANSWERS, choose=True)
    # in order of the odds, the sum of F1 is 2, 3, 2, 2 2/3, 3 2/3, 2 2/3
    assert figures["best_f1"] == figures["f1"] == pytest.approx(100 * (3 + 2 / 3) / 5)
    assert figures["best_f1_thresh"] == 4.0
    # the sum of exact matches is 2, 3, 2, 2, 3, 2: the first of the two best counts
    assert figures["best_exact"] == pytest.approx(60.0)
    assert figures["best_exact_thresh"] == -3.0
    assert figures["exact"] == pytest.approx(60.0)  # with the threshold for F1
    assert figures["total"] == 5
    assert figures["HasAns_total"] == 3 and figures["NoAns_total"] == 2
    assert figures["HasAns_exact"] == pytest.approx(200 / 3)
    assert figures["HasAns_f1"] == pytest.approx(100 * (2 + 2 / 3) / 3)
    assert figures["NoAns_exact"] == figures["NoAns_f1"] == 50.0


def test_figures_under_a_given_threshold():
    given = squad_figures(PREDICTIONS, ODDS, ANSWERS, -2.5)
    assert given["exact"] == given["f1"] == pytest.approx(60.0)
    assert given["HasAns_f1"] == pytest.approx(100 / 3) and given["NoAns_f1"] == 100.0
    chosen = squad_figures(PREDICTIONS, ODDS, ANSWERS, -2.5, choose=True)
    assert chosen["f1"] == chosen["best_f1"] == given["best_f1"] > given["f1"]
    every = squad_figures(PREDICTIONS, ODDS, ANSWERS)  # every question is answered
    assert every["NoAns_f1"] == 0.0
    assert every["f1"] == pytest.approx(100 * (2 + 2 / 3) / 5)


def test_figures_where_no_question_has_an_answer():
    figures = squad_figures(["x", "y"], [3.0, 4.0], [[], []], choose=True)
    assert figures["f1"] == figures["NoAns_exact"] == figures["best_exact"] == 100.0
    assert figures["best_f1_thresh"] == 2.0 and "HasAns_f1" not in figures
