"""The rows of a tuned.json, merged and written."""

import json
from collections.abc import Sequence
from pathlib import Path


def merged(old: Sequence[dict], new: Sequence[dict]) -> list[dict]:
    """Rows of tuned.json; new ones replace old ones for the same kernel, chip and facts."""

    def key(row: dict) -> tuple:
        return row["kernel"], row["chip"], sorted(row["facts"].items())

    rows = {str(key(row)): row for row in (*old, *new)}
    return sorted(rows.values(), key=key)


def write_rows(path: Path, new: Sequence[dict]) -> None:
    """Merge rows into a tuned.json, one to a line."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    lines = ",\n".join(f"  {json.dumps(row)}" for row in merged(old, new))
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
