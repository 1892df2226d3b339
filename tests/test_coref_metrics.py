"""The coreference metrics on examples of the literature, checked by hand; and the assignment."""

import itertools
import random

import numpy as np
import pytest

from spanbert_fast.tasks.assignment import best_assignment
from spanbert_fast.tasks.coref_metrics import coreference_scores


def clusters_of(*texts):
    """Clusters from strings; each letter is a mention."""
    return [[(ord(letter), ord(letter)) for letter in text] for text in texts]


def figures(key, response, **options):
    return coreference_scores([clusters_of(*key)], [clusters_of(*response)], **options)


def test_the_example_of_pradhan_et_al_2014():
    """Key {a b c} {d e f g}; response {a b} {c d} {f g h i}: the numbers of their section 5."""
    got = figures(("abc", "defg"), ("ab", "cd", "fghi"))
    # MUC: recall (2 - 1 + 4 - 2 ... = (3 - 2) + (4 - 3)) / (2 + 3); precision (1 + 0 + 1) / 5
    assert got["muc_recall"] == pytest.approx(100 * 2 / 5)
    assert got["muc_precision"] == pytest.approx(100 * 2 / 5)
    # B3: recall (4/3 + 1/3 + 1/4 + 4/4) / 7; precision (2 + 1/2 + 1/2 + 1) / 8
    assert got["b3_recall"] == pytest.approx(100 * (4 / 3 + 1 / 3 + 1 / 4 + 1) / 7)
    assert got["b3_precision"] == pytest.approx(100 * 4 / 8)
    # CEAF-e: {a b c} with {a b}, 4/5; {d e f g} with {f g h i}, 4/8
    assert got["ceafe_recall"] == pytest.approx(100 * 1.3 / 2)
    assert got["ceafe_precision"] == pytest.approx(100 * 1.3 / 3)
    # LEA: recall (3 * 1/3 + 4 * 1/6) / 7; precision (2 * 1 + 2 * 0 + 4 * 1/6) / 8
    assert got["lea_recall"] == pytest.approx(100 * (1 + 2 / 3) / 7)
    assert got["lea_precision"] == pytest.approx(100 * (2 + 2 / 3) / 8)
    assert got["mention_recall"] == pytest.approx(100 * 6 / 7)
    assert got["mention_precision"] == pytest.approx(100 * 6 / 8)
    f1 = [got[f"{name}_f1"] for name in ("muc", "b3", "ceafe")]
    assert got["conll_f1"] == pytest.approx(sum(f1) / 3)


def test_what_is_right_is_100_and_what_is_empty_is_0():
    right = figures(("abc", "de", "f"), ("de", "f", "abc"))
    assert all(value == pytest.approx(100) for value in right.values())
    assert set(figures((), ()).values()) == {0.0}
    assert figures(("ab",), ())["conll_f1"] == 0.0
    assert figures((), ("ab",))["conll_f1"] == 0.0


def test_singletons_count_where_they_are_asked_for():
    key, response = ("ab", "c"), ("ab", "d")
    assert figures(key, response, singletons=False)["conll_f1"] == pytest.approx(100)
    both = figures(key, response)
    assert both["muc_f1"] == pytest.approx(100)  # only links count
    assert both["b3_f1"] == both["lea_f1"] == pytest.approx(100 * 2 / 3)
    assert both["ceafe_f1"] == pytest.approx(50)
    # LEA: only a cluster of one matches a cluster of one
    assert figures(("a",), ("ab",))["lea_f1"] == 0.0


def test_documents_are_summed_before_they_are_divided():
    key, response = [clusters_of("ab"), clusters_of("abcd")], [clusters_of("ab"), []]
    got = coreference_scores(key, response)
    assert got["muc_recall"] == pytest.approx(25) and got["muc_precision"] == pytest.approx(100)
    assert got["b3_recall"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("seed", range(20))
def test_the_assignment_is_the_best_of_all(seed):
    draw = random.Random(seed)
    lefts, rights = draw.randint(1, 5), draw.randint(1, 5)
    weights = {
        pair: draw.choice((0.25, 0.5, draw.random()))
        for pair in itertools.product(range(lefts), range(rights))
        if draw.random() < 0.6
    }
    chosen = best_assignment(weights)
    assert len({a for a, _ in chosen}) == len({b for _, b in chosen}) == len(chosen)
    matrix = np.array([[weights.get((a, b), 0.0) for b in range(5)] for a in range(5)])
    best = max(
        sum(matrix[a, order[a]] for a in range(5)) for order in itertools.permutations(range(5))
    )
    assert sum(weights[pair] for pair in chosen) == pytest.approx(best)
