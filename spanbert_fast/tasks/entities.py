"""Entities in tag sequences: schemes, the best allowed path, and scores."""

from collections.abc import Sequence

import numpy as np

SCHEMES = ("bio", "iob1", "iobes", "bilou", "bmes")
UNTYPED = "ENTITY"  # the type of tags that have only a letter
# the same scheme as IOBES, in other letters
_RENAMED = {
    "bilou": {"B": "B", "I": "I", "L": "E", "U": "S"},
    "bmes": {"B": "B", "M": "I", "E": "E", "S": "S"},
}


def scheme_of(sentences: Sequence[Sequence[str]]) -> str:
    """The scheme of tagged sentences: BMES if there is an M-, IOBES if there is an E- or S-, BILOU
    if there is an L- or U-, IOB1 if an entity begins with an I-, else BIO."""
    begins_with_i = False
    if any(tag.startswith("M-") for tags in sentences for tag in tags):
        return "bmes"
    for tags in sentences:
        previous = "O"
        for tag in tags:
            if tag[:2] in ("E-", "S-"):
                return "iobes"
            if tag[:2] in ("L-", "U-"):
                return "bilou"
            if tag.startswith("I-") and (previous == "O" or previous[2:] != tag[2:]):
                begins_with_i = True
            previous = tag
    return "iob1" if begins_with_i else "bio"


def to_bio(tags: Sequence[str], scheme: str) -> list[str]:
    """The same entities as BIO tags.

    Raises:
        ValueError: a tag is none of the scheme's.
    """
    if known := _RENAMED.get(scheme):
        for tag in tags:
            if tag != "O" and (tag[:1] not in known or tag[1:2] != "-" or len(tag) < 3):
                raise ValueError(f"a tag must be O or one of {'/'.join(known)}-TYPE, got {tag!r}")
        tags = [tag if tag == "O" else known[tag[0]] + tag[1:] for tag in tags]
        scheme = "iobes"
    prefixes = {"bio": "BI", "iob1": "BI", "iobes": "BIES"}[scheme]
    bio: list[str] = []
    previous = "O"
    for tag in tags:
        if tag != "O" and (tag[:1] not in prefixes or tag[1:2] != "-" or len(tag) < 3):
            raise ValueError(f"a tag must be O or one of {'/'.join(prefixes)}-TYPE, got {tag!r}")
        if tag == "O":
            bio.append(tag)
        elif tag[0] in "BS":
            bio.append("B" + tag[1:])
        else:  # I and E continue an entity, if the one before has their type
            goes_on = previous != "O" and previous[2:] == tag[2:] and previous[0] not in "ES"
            bio.append(("I" if goes_on else "B") + tag[1:])
        previous = tag
    return bio


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first, last, type) of the entities in BIO tags. As in conlleval, an I that continues nothing
    begins an entity."""
    found: set[tuple[int, int, str]] = set()
    start, kind = None, ""
    for i, tag in enumerate([*tags, "O"]):
        if start is not None and not (tag.startswith("I-") and tag[2:] == kind):
            found.add((start, i - 1, kind))
            start = None
        if tag != "O" and start is None:
            start, kind = i, tag[2:]
    return found


def scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Entity precision, recall and F1 in percent, as conlleval counts (Tjong Kim Sang 2002): an
    entity is right if its first word, last word and type are. A figure without entities is 0."""
    right = of_gold = of_predicted = 0
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        a, b = spans(gold_tags), spans(predicted_tags)
        right, of_gold, of_predicted = right + len(a & b), of_gold + len(a), of_predicted + len(b)
    precision, recall = right / max(of_predicted, 1), right / max(of_gold, 1)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"f1": 100 * f1, "precision": 100 * precision, "recall": 100 * recall}


def best_path(logits: np.ndarray, labels: Sequence[str]) -> list[str]:
    """The BIO tags with the highest sum of logits in which every I follows a B or I of its type.

    Args:
        logits: (words, len(labels)).
    """
    if not len(logits):
        return []
    # allowed[i, j]: label j may follow label i; row -1 is the beginning
    allowed = np.array(
        [
            [not b.startswith("I-") or (a != "O" and a[2:] == b[2:]) for b in labels]
            for a in [*labels, "O"]
        ]
    )
    penalty = np.where(allowed, 0.0, -np.inf)
    best = logits[0] + penalty[-1]
    came_from = []
    for row in logits[1:]:
        through = best[:, None] + penalty[:-1]
        came_from.append(through.argmax(0))
        best = through.max(0) + row
    path = [int(best.argmax())]
    for back in reversed(came_from):
        path.append(int(back[path[-1]]))
    return [labels[i] for i in reversed(path)]
