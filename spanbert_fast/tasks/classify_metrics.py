"""The figures of classification and of regression, in percent."""

from collections.abc import Sequence

import numpy as np

CLASS_FIGURES = ("accuracy", "f1", "mcc")
NUMBER_FIGURES = ("pearson", "spearman")


def class_figures(
    gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """accuracy, f1 (of labels[1] where there are two, else the mean over those that occur) and mcc
    (Gorodkin 2004, R_K), in percent; 0 where one is not defined."""
    names = [*dict.fromkeys((*labels, *gold, *predicted))]
    index = {name: i for i, name in enumerate(names)}
    confusion = np.zeros((len(names), len(names)), np.int64)  # rows are gold classes
    np.add.at(confusion, ([index[x] for x in gold], [index[x] for x in predicted]), 1)
    right, of_gold, of_predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    sums = of_gold + of_predicted
    f1 = np.divide(2.0 * right, sums, out=np.zeros(len(names)), where=sums > 0)
    total = len(gold)
    # Python's integers: the product of two squares may exceed 2**63
    c, s = int(right.sum()), total
    spread_of_gold, spread_of_predicted = (
        s * s - sum(int(n) ** 2 for n in counts) for counts in (of_gold, of_predicted)
    )
    covariance = c * s - sum(int(p) * int(g) for p, g in zip(of_predicted, of_gold, strict=True))
    spread = (spread_of_gold * spread_of_predicted) ** 0.5
    figures = {
        "accuracy": c / total,
        "f1": f1[1] if len(labels) == 2 else f1[sums > 0].mean(),
        "mcc": covariance / spread if spread else 0.0,
    }
    return {name: 100.0 * float(value) for name, value in figures.items()}


def number_figures(gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """The correlations pearson and spearman in percent; 0 if all numbers of one side are equal."""
    if len(set(gold)) < 2 or len(set(predicted)) < 2:
        return dict.fromkeys(NUMBER_FIGURES, 0.0)
    sides = [np.asarray(side, np.float64) for side in (gold, predicted)]
    return {
        "pearson": 100.0 * _correlation(*sides),
        "spearman": 100.0 * _correlation(*map(_ranks, sides)),
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    # scaled first, so that squares of tiny and huge numbers neither vanish nor overflow
    x, y = (side - side.mean() for side in (x / np.abs(x).max(), y / np.abs(y).max()))
    norms = np.linalg.norm(x), np.linalg.norm(y)
    if not all(norms):  # the numbers differ by no more than rounding
        return 0.0
    return float(np.clip((x / norms[0]) @ (y / norms[1]), -1.0, 1.0))


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each number; equal numbers share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
