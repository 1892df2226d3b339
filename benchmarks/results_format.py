"""The one format of results: a JSON object with where it was measured, and records.

    {"benchmark": NAME, "environment": {...}, "commit": ..., "threads": N, "results": [...]}

`environment` is what `spanbert-fast env --json` prints. Every result has what identifies it (case,
shape, dtype), for each provider its seconds and whether it was checked, and nothing that was not
measured.
"""

import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
_NEEDED = ("benchmark", "environment", "commit", "threads", "results")


def commit() -> str | None:
    """The repository's commit, with a + where files differ from it."""
    run = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty=+", "--abbrev=40"]
    try:
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def document(benchmark: str, threads: int, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What a result file holds."""
    from spanbert_fast.commands.env import environment

    return {
        "benchmark": benchmark,
        "commit": commit(),
        "environment": environment(),
        "threads": threads,
        "results": results,
    }


def write_document(path: Path, content: dict[str, Any]) -> None:
    """Write a result file, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_document(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: it is not one, in one line with its name.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    missing = [name for name in _NEEDED if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{path}: no result file, it has no {missing[0]!r}")
    return content


def machine_name() -> str:
    """A file name for this machine: what computes, and how many cores of it there are."""
    import os

    from spanbert_fast.commands.env import environment

    model = environment()["cpu"].get("model") or platform.machine()
    name = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return f"{name}-{os.cpu_count()}-cores"
