"""What the readers of several tasks share: lines with their places, JSON, and bad items."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spanbert_fast.data.text_files import decoded_lines


class BadItem(ValueError):
    """What is wrong with one item of a file. The reader catches it and yields a `Bad`."""


def numbered_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """(number, place, line) of each line that is not blank; a place is PATH:NUMBER."""
    for number, line in enumerate(decoded_lines(path), start=1):
        if line.strip():
            yield number, f"{path}:{number}", line


def json_item(text: str) -> Any:
    """The value that a line of JSON holds.

    Raises:
        BadItem: it is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number or a nesting may be too long
        raise BadItem(f"not JSON ({error})") from error
