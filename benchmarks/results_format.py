"""The format of all results: a JSON object that says where it was measured, with records.

    {"benchmark": NAME, "environment": {...}, "commit": ..., "device": "cpu" or "cuda",
     "threads": N, "results": [...]}

`environment` is the output of `spanbert-fast env --json`. Every result has what identifies it
(case, shape, dtype), each provider's seconds and whether it was right, the libraries that are not
installed, and why something was not measured. A result that is older than the others of its file
has its own `commit`.
"""

import datetime
import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
NOT_MEASURED = "not measured"
_NEEDED = ("benchmark", "environment", "commit", "threads", "results")


def commit() -> str | None:
    """The repository's commit, with a + where files differ from it."""
    run = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty=+", "--abbrev=40"]
    try:
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def document(
    benchmark: str, threads: int, results: list[dict[str, Any]], device: str = "cpu"
) -> dict[str, Any]:
    """The content of a result file."""
    from spanbert_fast.commands.env import environment

    return {
        "benchmark": benchmark,
        "commit": commit(),
        "environment": environment(),
        "device": device,
        "threads": threads,
        "results": results,
    }


def write_document(path: Path, content: dict[str, Any]) -> None:
    """Write a result file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_document(path: Path) -> dict[str, Any]:
    """The content of a result file.

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


def beside(result: dict[str, Any], provider: str) -> str:
    """The speed-up of ours; empty for ours, and if one of the two was wrong."""
    found = result["speedups"].get(provider)
    return "" if found is None else f"{found['median']:.2f}"


def without(result: dict[str, Any]) -> list[tuple[str, str]]:
    """(provider, why it has no figure)."""
    missing = [(name, "not installed") for name in result.get("not_installed", ())]
    late = result.get("not_measured") or {}
    return missing + [(name, f"{NOT_MEASURED}: {why}") for name, why in late.items()]


def why_not(record: dict[str, Any]) -> str:
    """Why a record of the op suite has no figures."""
    if isinstance(record.get("not_measured"), str):
        return f"{NOT_MEASURED}: {record['not_measured']}"
    if "raised" in record:
        return f"raised {record['raised']}"
    if "providers" not in record:
        return f"{NOT_MEASURED} in this form: the file is older"
    raised = record["providers"]["ours"].get("raised")
    return f"raised {raised}" if raised else "ours is wrong"


def machine_name(device: str = "cpu") -> str:
    """The folder name of this machine's results: a CPU, its number of cores and its instructions
    (one model name may have several), whose history is kept, or a GPU and the date."""
    import os

    from spanbert_fast.commands.env import environment

    found = environment()
    if device == "cuda":
        today = datetime.date.today().isoformat()
        return f"{file_name(found['gpus'][0].partition(',')[0])}-{today}"
    cpu = found["cpu"]
    model = cpu.get("model") or platform.machine()
    return file_name(f"{model} {os.cpu_count()} cores {cpu['isa_level']}")


def file_name(text: str) -> str:
    """The text in a form that can be part of a path."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
