"""Documents with coreference clusters, and the checks that all readers share."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from spanbert_fast.tasks.base import Bad, Example

Span = tuple[int, int]  # (first word, last word) in the document, both inclusive
Cluster = list[Span]


@dataclasses.dataclass
class Document(Example):
    """A document: sentences of words, and clusters of mentions.

    Attributes:
        part: the part's number, if the file splits documents; else "0".
        sentences: words.
        clusters: mentions as (first word, last word); None if the file has no annotation.
    """

    part: str
    sentences: list[list[str]]
    clusters: list[Cluster] | None

    @property
    def words(self) -> list[str]:
        return [word for sentence in self.sentences for word in sentence]


class OpenMention(NamedTuple):
    """A mention that is still open: its entity, its first word, and its place in the file."""

    entity: str
    start: int
    place: str


class BracketError(ValueError):
    """Brackets that do not match; `place` is the line."""

    def __init__(self, place: str, reason: str):
        super().__init__(reason)
        self.place = place


class Brackets:
    """Makes mentions from brackets; a closing bracket ends the entity's innermost open mention.

    Mentions of different entities may cross; those of one entity cannot in this notation, as a
    closing bracket belongs to the last one that opened.
    """

    def __init__(self) -> None:
        self._open: dict[str, list[OpenMention]] = {}
        self._mentions: dict[str, list[Span]] = {}

    def open(self, entity: str, word: int, place: str) -> None:
        self._open.setdefault(entity, []).append(OpenMention(entity, word, place))
        self._mentions.setdefault(entity, [])  # in the order of their first mention

    def close(self, entity: str, word: int, place: str) -> None:
        if not self._open.get(entity):
            raise BracketError(place, f"closes a mention of {entity} that is not open")
        self._mentions[entity].append((self._open[entity].pop().start, word))

    def clusters(self) -> list[Cluster]:
        """The clusters. Raises BracketError if a mention is still open."""
        for mentions in self._open.values():
            for mention in mentions:
                raise BracketError(mention.place, f"opens a mention of {mention.entity} that no "
                                   "bracket closes")  # fmt: skip
        return [sorted(set(spans)) for spans in self._mentions.values() if spans]


def cluster_fault(clusters: Iterable[Cluster], words: int) -> str | None:
    """The first fault of the clusters, as text; None if there is none."""
    seen: set[Span] = set()
    for cluster in clusters:
        if not cluster:
            return "has a cluster without a mention"
        for start, end in cluster:
            if not 0 <= start <= end < words:
                return f"has the mention [{start}, {end}], which is not within its {words} words"
            if (start, end) in seen:
                return f"has the mention [{start}, {end}] twice"
            seen.add((start, end))
        ordered = sorted(cluster)
        for i, (start, end) in enumerate(ordered):
            for other in ordered[i + 1 :]:
                if other[0] > end:
                    break
                if start < other[0] and end < other[1]:
                    return f"has crossing mentions [{start}, {end}] and {list(other)} in a cluster"
    return None


def checked(document: Document, names: set[tuple[str, str]]) -> Document | Bad:
    """The document, or a `Bad` that says why it cannot be used.

    Args:
        names: those of the documents before; this one's is added.
    """
    if not any(document.sentences):
        return Bad(document.place, f"the document {document.id} has no words")
    if (document.id, document.part) in names:
        part = f" part {document.part}" if document.part != "0" else ""
        return Bad(document.place, f"a document before it is called {document.id}{part} too")
    names.add((document.id, document.part))
    fault = cluster_fault(document.clusters or [], len(document.words))
    return document if fault is None else Bad(document.place, f"{document.id} {fault}")
