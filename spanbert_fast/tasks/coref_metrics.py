"""The metrics of coreference resolution, computed as in the reference scorer.

Every metric has a recall and a precision over all documents: numerators and denominators are summed
before they are divided (Pradhan et al. 2014, the CoNLL scorer v8). K are the clusters of the key,
R those of the response:

- MUC (Vilain et al. 1995): sum over K of (|k| - parts of k in R) / sum of (|k| - 1).
- B3 (Bagga and Baldwin 1998): for each mention, the share of its key cluster that is also in its
  response cluster.
- CEAF-e (Luo 2005): the best one-to-one alignment of clusters by 2 |k & r| / (|k| + |r|), over the
  number of clusters.
- LEA (Moosavi and Strube 2016): the share of each cluster's links that are found, weighted by its
  size; a cluster of one has a link to itself.

The CoNLL F1 is the mean of the F1 of MUC, B3 and CEAF-e.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from spanbert_fast.tasks.assignment import best_assignment
from spanbert_fast.tasks.coref_documents import Cluster, Span


class Ratio(NamedTuple):
    """A figure's numerator and denominator."""

    numerator: float
    denominator: float


Owners = dict[Span, int]  # the cluster of each mention


def _owners(clusters: Sequence[Cluster]) -> Owners:
    return {span: number for number, cluster in enumerate(clusters) for span in cluster}


def muc(of: Sequence[Cluster], other: Sequence[Cluster], owners: Owners) -> Ratio:
    """The recall of the clusters `of` in `other`. With the two exchanged it is the precision."""
    numerator = denominator = 0
    for cluster in of:
        parts = {owners.get(span) for span in cluster} - {None}
        alone = sum(span not in owners for span in cluster)
        numerator += len(cluster) - len(parts) - alone
        denominator += len(cluster) - 1
    return Ratio(numerator, denominator)


def b_cubed(of: Sequence[Cluster], other: Sequence[Cluster], owners: Owners) -> Ratio:
    """See `muc`."""
    numerator, denominator = 0.0, 0
    for cluster in of:
        counts: dict[int, int] = defaultdict(int)
        for span in cluster:
            if span in owners:
                counts[owners[span]] += 1
        numerator += sum(count * count for count in counts.values()) / len(cluster)
        denominator += len(cluster)
    return Ratio(numerator, denominator)


def lea(of: Sequence[Cluster], other: Sequence[Cluster], owners: Owners) -> Ratio:
    """See `muc`."""
    numerator, denominator = 0.0, 0
    for cluster in of:
        size = len(cluster)
        denominator += size
        if size == 1:
            owner = owners.get(cluster[0])
            numerator += owner is not None and len(other[owner]) == 1
            continue
        counts: dict[int, int] = defaultdict(int)
        for span in cluster:
            if span in owners:
                counts[owners[span]] += 1
        links = sum(count * (count - 1) // 2 for count in counts.values())
        numerator += size * links / (size * (size - 1) / 2)
    return Ratio(numerator, denominator)


def ceaf_e(of: Sequence[Cluster], other: Sequence[Cluster], owners: Owners) -> Ratio:
    """See `muc`; the numerator is the same in both directions."""
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for number, cluster in enumerate(of):
        for span in cluster:
            if span in owners:
                shared[number, owners[span]] += 1
    weights = {(a, b): 2 * count / (len(of[a]) + len(other[b])) for (a, b), count in shared.items()}
    chosen = best_assignment(weights)
    return Ratio(sum(weights[pair] for pair in chosen), len(of))


def mentions(of: Sequence[Cluster], other: Sequence[Cluster], owners: Owners) -> Ratio:
    """The share of the mentions of `of` that `other` has."""
    spans = [span for cluster in of for span in cluster]
    return Ratio(sum(span in owners for span in spans), len(spans))


METRICS: dict[str, Callable[[Sequence[Cluster], Sequence[Cluster], Owners], Ratio]] = {
    "muc": muc,
    "b3": b_cubed,
    "ceafe": ceaf_e,
    "lea": lea,
    "mention": mentions,
}


def without_singletons(clusters: Iterable[Cluster]) -> list[Cluster]:
    """The clusters of two mentions or more."""
    return [cluster for cluster in clusters if len(cluster) > 1]


def coreference_scores(
    gold: Sequence[Sequence[Cluster]],
    predicted: Sequence[Sequence[Cluster]],
    *,
    singletons: bool = True,
) -> dict[str, float]:
    """All figures in percent, over all documents: `conll_f1`, and the F1, precision and recall of
    each metric. A figure with a denominator of 0 is 0, as in the reference scorer.

    Args:
        singletons: count clusters of one as well; else they are left out on both sides.
    """
    sums = {name: [[0.0, 0.0], [0.0, 0.0]] for name in METRICS}
    for key, response in zip(gold, predicted, strict=True):
        if not singletons:
            key, response = without_singletons(key), without_singletons(response)
        key_owners, response_owners = _owners(key), _owners(response)
        for name, metric in METRICS.items():
            recall, precision = (
                metric(key, response, response_owners),
                metric(response, key, key_owners),
            )
            for total, ratio in zip(sums[name], (recall, precision), strict=True):
                total[0] += ratio.numerator
                total[1] += ratio.denominator
    figures: dict[str, float] = {}
    for name, totals in sums.items():
        r, p = (a / b if b else 0.0 for a, b in totals)
        f1 = 2 * p * r / (p + r) if p + r else 0.0
        figures |= {f"{name}_f1": f1, f"{name}_precision": p, f"{name}_recall": r}
    conll = sum(figures[f"{name}_f1"] for name in ("muc", "b3", "ceafe")) / 3
    return {name: 100.0 * value for name, value in {"conll_f1": conll, **figures}.items()}
