"""What a line of a file of named entities is: a comment, a word with its tag, or JSON."""

import json
import re
from collections.abc import Sequence


def has_tag(row: Sequence[str], column: int) -> bool:
    """Whether a row has a tag in its column, as that of the word "#" does."""
    if not -len(row) <= column < len(row) or len(row) < 2:
        return False
    return bool(re.fullmatch(r"O|[BIESLU]-\S+", row[column].strip()))


def is_json(line: str) -> bool:
    """Whether a first line begins a JSON document, or is one."""
    line = line.strip()
    if line[:1] not in ("{", "["):
        return False
    try:
        return isinstance(json.loads(line), (dict, list))
    except (ValueError, RecursionError):
        return line in ("{", "[") or line.startswith(('{"', "[{"))
