"""What a line of a file of named entities is: a comment, a word with its tag, or JSON."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from spanbert_fast.data.text_files import plain_suffix
from spanbert_fast.errors import DataError
from spanbert_fast.tasks import entities


def has_tag(row: Sequence[str], column: int) -> bool:
    """Whether a row has a tag in its column, as that of the word "#" does."""
    if not -len(row) <= column < len(row) or len(row) < 2:
        return False
    return bool(re.fullmatch(r"O|[BIESLUM](-\S+)?", row[column].strip()))


def refuse_no_columns(path: Path, first: str) -> None:
    """Raise DataError where a file is JSON or CSV, by its first line or its suffix."""
    kind = "JSON" if is_json(first) else "CSV" if plain_suffix(path) == ".csv" else None
    if kind is not None:
        raise DataError(
            f"{path}:1: is {kind}; ner reads columns: a word, a blank or tab, and its tag on each "
            "line, and a blank line between sentences"
        )


def with_types(sentences: Sequence[list[str]]) -> None:
    """Give the tags of a file a type, in place, where all are letters alone, as those of biomedical
    sets of one type are."""
    found = {tag for tags in sentences for tag in tags}
    if found <= {*"OBIESLUM"}:
        for tags in sentences:
            tags[:] = [tag if tag == "O" else f"{tag}-{entities.UNTYPED}" for tag in tags]


def is_json(line: str) -> bool:
    """Whether a first line begins a JSON document, or is one."""
    line = line.strip()
    if line[:1] not in ("{", "["):
        return False
    try:
        return isinstance(json.loads(line), (dict, list))
    except (ValueError, RecursionError):
        return line in ("{", "[") or line.startswith(('{"', "[{"))
