"""Tells what a line of an entity file is: a comment, a word with its tag, or JSON."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from spanbert_fast.data.text_files import plain_suffix
from spanbert_fast.errors import DataError
from spanbert_fast.tasks import entities


def has_tag(row: Sequence[str], column: int) -> bool:
    """Whether the row's tag column holds a tag: the word "#" has one, a comment has none."""
    if not -len(row) <= column < len(row) or len(row) < 2:
        return False
    return bool(re.fullmatch(r"O|[BIESLUM](-\S+)?", row[column].strip()))


def refuse_no_columns(path: Path, first: str) -> None:
    """Raise DataError if the first line or the suffix shows that a file is JSON or CSV."""
    kind = "JSON" if is_json(first) else "CSV" if plain_suffix(path) == ".csv" else None
    if kind is not None:
        raise DataError(
            f"{path}:1: is {kind}; ner reads columns: a word, a blank or tab, and its tag on each "
            "line, and a blank line between sentences"
        )


def with_types(sentences: Sequence[list[str]]) -> None:
    """If all tags of a file are letters without a type, as in biomedical data of one type, give
    them a type, in place."""
    found = {tag for tags in sentences for tag in tags}
    if found <= {*"OBIESLUM"}:
        for tags in sentences:
            tags[:] = [tag if tag == "O" else f"{tag}-{entities.UNTYPED}" for tag in tags]


def is_json(line: str) -> bool:
    """Whether a first line is JSON, or the beginning of a JSON document."""
    line = line.strip()
    if line[:1] not in ("{", "["):
        return False
    try:
        return isinstance(json.loads(line), (dict, list))
    except (ValueError, RecursionError):
        return line in ("{", "[") or line.startswith(('{"', "[{"))
