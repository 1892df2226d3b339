"""Reads and writes the files that every run keeps in its directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.schema import Rule, check, read_json

OPTIONS = "options.json"


def write_json(path: Path, content: dict) -> None:
    """Write the file, or replace it in one step."""
    from spanbert_fast.data.shards import write_whole

    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def read_object(path: Path, rules: Mapping[str, Rule], *, all_of_them: bool = True) -> dict:
    """The JSON object in a file of a run; see `schema.check`.

    Raises:
        DataError: the file is missing, or its content is wrong.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file; is this the directory of a run?")
    return check(path, read_json(path), rules, all_of_them=all_of_them)


def was_started(run: Path) -> bool:
    """Whether there is a run to resume."""
    return (run / OPTIONS).exists()


def refuse_to_replace(run: Path) -> NoReturn:
    """Raise UsageError: the directory holds a run, and a new one replaces it only with
    --overwrite."""
    raise UsageError(
        f"--output-dir {run} already holds a run; go on with --resume, or replace it with "
        "--overwrite"
    )
