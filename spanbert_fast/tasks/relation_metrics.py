"""The figures of relation extraction: TACRED's, and the official ones of SemEval-2010 task 8."""

import re
from collections import Counter
from collections.abc import Sequence


def micro_scores(
    gold: Sequence[str], predicted: Sequence[str], negative: str = "no_relation"
) -> dict[str, float]:
    """Micro-averaged precision, recall and F1 over all relations but `negative`, and the accuracy
    over all pairs, in percent. As in TACRED's scorer, the precision is 100 if nothing is
    predicted."""
    pairs = list(zip(gold, predicted, strict=True))
    right = sum(a == b != negative for a, b in pairs)
    guessed = sum(b != negative for _, b in pairs)
    there = sum(a != negative for a, _ in pairs)
    precision = right / guessed if guessed else 1.0
    recall = right / there if there else 0.0
    figures = {"f1": _f1(precision, recall), "precision": precision, "recall": recall}
    figures["accuracy"] = sum(a == b for a, b in pairs) / max(len(pairs), 1)
    return {name: 100.0 * value for name, value in figures.items()}


def semeval_scores(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """The official figures of SemEval-2010 task 8 (Hendrickx et al. 2010), in percent.

    (9+1)-way with directionality: a relation in the wrong direction is wrong, and counts against
    the precision and the recall of that relation. Precision, recall and F1 are means over the
    relations of the gold data, Other left out; `f1` is the official score. micro_f1 is over all
    their pairs together, accuracy over all pairs.
    """
    pairs = list(zip(gold, predicted, strict=True))
    right = Counter(_undirected(a) for a, b in pairs if a == b)
    of_gold = Counter(_undirected(a) for a, _ in pairs)
    of_predicted = Counter(_undirected(b) for _, b in pairs)
    relations = sorted(of_gold.keys() - {"Other"})
    precision = {r: right[r] / max(of_predicted[r], 1) for r in relations}
    recall = {r: right[r] / of_gold[r] for r in relations}
    total_right, total_gold, total_predicted = (
        sum(counts[r] for r in relations) for counts in (right, of_gold, of_predicted)
    )
    micro = _f1(total_right / max(total_predicted, 1), total_right / max(total_gold, 1))
    count = max(len(relations), 1)
    return {
        "f1": 100.0 * sum(_f1(precision[r], recall[r]) for r in relations) / count,
        "precision": 100.0 * sum(precision.values()) / count,
        "recall": 100.0 * sum(recall.values()) / count,
        "micro_f1": 100.0 * micro,
        "accuracy": 100.0 * sum(a == b for a, b in pairs) / max(len(pairs), 1),
    }


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _undirected(relation: str) -> str:
    return re.sub(r"\(e[12],e[12]\)$", "", relation)
