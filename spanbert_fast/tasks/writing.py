"""Writes files of predictions one prediction at a time."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file that has the suffix `.partial` until all of it has been written."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        yield file
    os.replace(partial, path)


class JsonObject:
    """Writes an object entry by entry, in the format of `json.dumps` with an indent of 2."""

    def __init__(self, file: TextIO):
        self._file, self._is_empty = file, True

    def add(self, name: str, value: Any) -> None:
        key, text = (json.dumps(x, indent=2, ensure_ascii=False) for x in (name, value))
        self._file.write("{\n" if self._is_empty else ",\n")
        self._file.write(f"  {key}: " + text.replace("\n", "\n  "))
        self._is_empty = False

    def close(self) -> None:
        self._file.write("{}\n" if self._is_empty else "\n}\n")
