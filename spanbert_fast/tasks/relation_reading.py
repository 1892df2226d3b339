"""Reads pairs of entities and their relation from TACRED, SemEval-2010 task 8 and SciERC files."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

from spanbert_fast.data.text_files import decoded_lines, decoded_text, first_line
from spanbert_fast.errors import DataError
from spanbert_fast.schema import parse_json
from spanbert_fast.tasks.base import Bad, Example
from spanbert_fast.tasks.reading import BadItem, json_item, numbered_lines

FORMATS = ("tacred", "semeval", "scierc")
NO_RELATION = {"tacred": "no_relation", "semeval": "Other", "scierc": "no_relation"}
# The Penn Treebank's names of brackets become brackets again, as in the released code.
_BRACKETS = dict(zip(("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), "()[]{}", strict=True))
_SENTENCE = re.compile(r"(\d+)\t\s*(.*)")
_RELATION = re.compile(r"Other|[^\s()]+\(e1,e2\)|[^\s()]+\(e2,e1\)")


class Mention(NamedTuple):
    """An entity in a text.

    Attributes:
        start, end: characters, end exclusive.
        kind: the type; None if the data has no types.
    """

    start: int
    end: int
    kind: str | None


@dataclasses.dataclass
class Pair(Example):
    """Two entities of a sentence.

    Attributes:
        subject, object: e1 and e2 in SemEval's files. They may overlap.
        relation: None if the file does not give it.
    """

    text: str
    subject: Mention
    object: Mention
    relation: str | None


def format_of(path: Path) -> str:
    """The format of a file, from its first line that is not blank.

    Raises:
        DataError: it has none of the `FORMATS`.
    """
    first = first_line(path).strip()
    if first.startswith("["):
        return "tacred"
    if _SENTENCE.match(first):
        return "semeval"
    with contextlib.suppress(ValueError, RecursionError):
        item = json.loads(first)
        if isinstance(item, dict):
            return "scierc" if "sentences" in item else "tacred"
    raise DataError(f"{path}:1: is none of the formats {', '.join(FORMATS)}")


def read_pairs(path: Path, kind: str) -> Iterator[Pair | Bad]:
    """The pairs of a file in order.

    Args:
        kind: "tacred": a JSON list, or one object per line, of id, token, subj_start, subj_end,
            subj_type, the same of obj, and relation; ends are inclusive. "semeval": blocks of a
            number, a tab, a sentence in quotes with <e1> and <e2>; the relation; a comment.
            "scierc": one document per line: sentences (lists of words), ner (per sentence: start,
            end, type) and relations (start, end, start, end, relation), with indices of the
            document's words, ends inclusive; every ordered pair of a sentence's entities is an
            example, "no_relation" where the file does not list it in that order.
            A file may lack relation, or relations.

    Raises:
        DataError: the file as a whole is not in this format.
    """
    return {"tacred": _tacred, "semeval": _semeval, "scierc": _scierc}[kind](path)


# TACRED


def _tacred(path: Path) -> Iterator[Pair | Bad]:
    if not first_line(path).lstrip().startswith("["):
        yield from _from_lines(path, _tacred_pair)
        return
    for number, item in enumerate(parse_json(decoded_text(path), path)):
        yield from _checked(_tacred_pair, item, number, f"{path}, example {number}")


def _tacred_pair(item: dict, number: int, place: str) -> Iterator[Pair]:
    if "token" not in item:
        raise BadItem(f'has no "token", as TACRED has it, but {", ".join(item):.80}')
    words = _words(item["token"], '"token"')
    spans = []
    for role in ("subj", "obj"):
        span = [item.get(f"{role}_{part}") for part in ("start", "end", "type")]
        if [*map(type, span)] != [int, int, str]:
            rule = "must be two whole numbers and a string"
            raise BadItem(f"{role}_start, {role}_end and {role}_type {rule}, got {span}")
        spans.append(span)
    relation = item.get("relation")
    if relation is not None and not (isinstance(relation, str) and relation.strip()):
        raise BadItem(f'"relation" must be a string, got {relation!r}')
    text, offsets = _joined(words)
    subject, object = (_mention(span, offsets, 0) for span in spans)
    yield Pair(_name(item.get("id", number)), place, text, subject, object, relation)


# SemEval-2010 task 8


def _semeval(path: Path) -> Iterator[Pair | Bad]:
    sentence: Pair | Bad | None = None
    for number, line in enumerate(decoded_lines(path), start=1):
        line, place = line.strip(), f"{path}:{number}"
        found = _SENTENCE.fullmatch(line)
        if (found or not line) and sentence is not None:
            yield sentence
            sentence = None
        if found:
            try:
                sentence = _semeval_pair(found[1], found[2], place)
            except BadItem as error:
                sentence = Bad(place, str(error))
        elif line and not line.lower().startswith("comment") and not isinstance(sentence, Bad):
            if sentence is None:
                yield Bad(place, f"must be a number, a tab and a sentence, got {_short(line)}")
            elif sentence.relation is not None or not _RELATION.fullmatch(line):
                rule = "must be one relation, Other or NAME(e1,e2) or NAME(e2,e1)"
                sentence = Bad(place, f"{rule}, got {_short(line)}")
            else:
                sentence.relation = line
    if sentence is not None:
        yield sentence


def _semeval_pair(name: str, sentence: str, place: str) -> Pair:
    if len(sentence) > 1 and sentence[0] == sentence[-1] == '"':
        sentence = sentence[1:-1]
    text, mentions = "", {}
    for part in re.split(r"(<e1>.*?</e1>|<e2>.*?</e2>)", sentence):
        if re.match("<e[12]>", part) and part.endswith(part[:1] + "/" + part[1:4]):
            role, words = part[:4], part[4:-5]
            if role in mentions or not words.strip():
                raise BadItem(f"must have one {role} with words in it, got {_short(sentence)}")
            before = len(text) + len(words) - len(words.lstrip())
            mentions[role] = Mention(before, before + len(words.strip()), None)
            part = words
        text += part
    if len(mentions) < 2 or re.search("</?e[12]>", text):
        raise BadItem(f"must have one <e1>..</e1> and one <e2>..</e2>, got {_short(sentence)}")
    return Pair(name, place, text, mentions["<e1>"], mentions["<e2>"], None)


# SciERC


def _scierc(path: Path) -> Iterator[Pair | Bad]:
    return _from_lines(path, _document)


def _document(item: dict, number: int, place: str) -> Iterator[Pair | Bad]:
    sentences, entities = _list(item, "sentences"), _list(item, "ner")
    relations = [None] * len(sentences)
    if item.get("relations") is not None:
        relations = _list(item, "relations")
    for key, rows in (("ner", entities), ("relations", relations)):
        if len(rows) != len(sentences):
            raise BadItem(f'has {len(sentences)} sentences and {len(rows)} lists in "{key}"')
    for words in sentences:
        _words(words, "a sentence")
    name, first = _name(item.get("doc_key", number)), 0
    for i, words in enumerate(sentences):
        where = f"{place}, sentence {i}"
        try:
            yield from _sentence(words, entities[i], relations[i], first, name, where)
        except BadItem as error:
            yield Bad(where, str(error))
        first += len(words)


def _sentence(
    words: list[str], entities: Any, relations: Any, first: int, name: str, place: str
) -> list[Pair]:
    text, offsets = _joined(words)
    mentions = {}
    for entity in _rows(entities, 2, "ner"):
        mentions[tuple(entity)] = _mention(entity, offsets, first)
    labels: dict[tuple, str] = {}
    for *ends, relation in _rows([] if relations is None else relations, 4, "relations"):
        if labels.setdefault(tuple(ends), relation) != relation:
            raise BadItem(f"has two relations of {ends}: {labels[tuple(ends)]} and {relation}")
    spans = {key[:2] for key in mentions}
    for both in labels:
        if not {both[:2], both[2:]} <= spans or both[:2] == both[2:]:
            raise BadItem(f"has a relation of {list(both)}, which are no two of its entities")
    pairs = []
    for a, b in permutations(mentions, 2):
        if a[:2] == b[:2]:  # the span has two types
            continue
        relation = None if relations is None else labels.get(a[:2] + b[:2], NO_RELATION["scierc"])
        own = f"{name}:{a[0]}-{a[1]},{b[0]}-{b[1]}"
        pairs.append(Pair(own, place, text, mentions[a], mentions[b], relation))
    return pairs


def _rows(rows: Any, numbers: int, name: str) -> list[list]:
    """Rows of `numbers` whole numbers and a string. Further columns, such as a score, are
    dropped."""
    if not isinstance(rows, list):
        raise BadItem(f'"{name}" must hold a list per sentence, got {_short(rows)}')
    for row in rows:
        if not isinstance(row, list) or [*map(type, row)][: numbers + 1] != [int] * numbers + [str]:
            rule = f'a row of "{name}" must be {numbers} whole numbers and a string'
            raise BadItem(f"{rule}, got {_short(row)}")
    return [row[: numbers + 1] for row in rows]


def _from_lines(path: Path, pairs_of: Callable) -> Iterator[Pair | Bad]:
    for number, place, line in numbered_lines(path):
        try:
            item = json_item(line)
        except BadItem as error:
            yield Bad(place, str(error))
        else:
            yield from _checked(pairs_of, item, number, place)


def _checked(pairs_of: Callable, item: Any, number: int, place: str) -> Iterator[Pair | Bad]:
    try:
        if not isinstance(item, dict):
            raise BadItem(f"must be an object, got {_short(item)}")
        yield from pairs_of(item, number, place)
    except BadItem as error:
        yield Bad(place, str(error))


def _joined(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The words as one text, and the characters (start, end) of each."""
    words = [_BRACKETS.get(word.lower(), word) for word in words]
    offsets, start = [], 0
    for word in words:
        offsets.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), offsets


def _mention(span: Sequence, offsets: Sequence[tuple[int, int]], first: int) -> Mention:
    """The words start to end, counted from `first`, both inclusive."""
    start, end, kind = span
    if not first <= start <= end < first + len(offsets):
        inside = f"{first} to {first + len(offsets) - 1}"
        raise BadItem(f"the entity {start} to {end} is not within its sentence, {inside}")
    kind = "_".join(kind.split())  # the type becomes part of a token, which has no blanks
    if not re.fullmatch(r"[^\[\]]+", kind):
        raise BadItem(f"an entity type must have letters and no brackets, got {kind!r}")
    return Mention(offsets[start - first][0], offsets[end - first][1], kind)


def _words(words: Any, name: str) -> list[str]:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadItem(f"{name} must be a list of words, got {_short(words)}")
    if re.search("[\ud800-\udfff]", "".join(words)):
        raise BadItem(f"{name} has half a surrogate pair")
    return words


def _list(item: dict, key: str) -> list:
    if not isinstance(item.get(key), list):
        raise BadItem(f'"{key}" must be a list, got {_short(item.get(key))}')
    return item[key]


def _name(value: Any) -> str:
    return " ".join(str(value).split())  # an id must be on one line, without tabs


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 60 else text[:57] + "...")
