"""The one-to-one assignment with the largest sum of weights, most of which are 0."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

Pair = tuple[int, int]


def best_assignment(weights: Mapping[Pair, float]) -> list[Pair]:
    """The pairs of an assignment whose sum of weights is the largest.

    Parts that no weight connects are solved one by one, so the cubic time is that of the largest
    part. In coreference most parts are a single cluster on each side.

    Args:
        weights: (left, right) -> weight above 0; pairs that are missing weigh 0.
    """
    chosen = []
    for lefts, rights in _parts(weights):
        matrix = np.array([[weights.get((a, b), 0.0) for b in rights] for a in lefts])
        for i, j in _dense(matrix):
            if matrix[i, j] > 0:
                chosen.append((lefts[i], rights[j]))
    return chosen


def _parts(weights: Mapping[Pair, float]) -> list[tuple[list[int], list[int]]]:
    """The connected parts, each as the numbers of its left and its right members."""
    of_left, of_right = defaultdict(list), defaultdict(list)
    for a, b in weights:
        of_left[a].append(b)
        of_right[b].append(a)
    seen: set[int] = set()
    parts = []
    for first in of_left:
        if first in seen:
            continue
        lefts, rights, waiting = {first}, set(), [first]
        while waiting:
            for b in of_left[waiting.pop()]:
                if b not in rights:
                    rights.add(b)
                    new = [a for a in of_right[b] if a not in lefts]
                    lefts.update(new)
                    waiting += new
        seen |= lefts
        parts.append((sorted(lefts), sorted(rights)))
    return parts


def _dense(weights: np.ndarray) -> list[Pair]:
    """The Hungarian method by shortest augmenting paths (Kuhn 1955; Jonker and Volgenant 1987):
    potentials u and v keep every reduced cost at 0 or more; each row's path is O(columns^2)."""
    if weights.shape[0] > weights.shape[1]:
        return [(i, j) for j, i in _dense(weights.T)]
    costs = weights.max() - weights
    rows, columns = costs.shape
    u, v = np.zeros(rows + 1), np.zeros(columns + 1)
    # the row of each column; the last entry is the start of the path
    row_of = np.full(columns + 1, -1)
    for row in range(rows):
        row_of[columns] = row
        distance = np.full(columns, np.inf)
        came_from = np.full(columns, columns)
        done = np.zeros(columns + 1, bool)
        column = columns
        while row_of[column] >= 0:
            done[column] = True
            i = row_of[column]
            reduced = costs[i] - u[i] - v[:columns]
            nearer = ~done[:columns] & (reduced < distance)
            distance[nearer] = reduced[nearer]
            came_from[nearer] = column
            free = np.where(done[:columns], np.inf, distance)
            following = int(free.argmin())
            step = free[following]
            u[row_of[done.nonzero()[0]]] += step
            v[done] -= step
            distance[~done[:columns]] -= step
            column = following
        while column != columns:
            previous = came_from[column]
            row_of[column] = row_of[previous]
            column = previous
    return [(int(row_of[j]), j) for j in range(columns) if row_of[j] >= 0]
