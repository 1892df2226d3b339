"""The README.md that is left beside weights: what they are, of what, and how they were made."""

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData

from spanbert_fast.hub import is_repository


def write_card(
    folder: Path, fields: Mapping[str, Any], started_from: str | None, body: str
) -> Path:
    """Write README.md with the Hub's metadata before the text.

    Args:
        fields: of `huggingface_hub.ModelCardData`.
        started_from: a checkpoint as the user has named it; the Hub's names become `base_model`.
    """
    if started_from is not None and is_repository(started_from):
        fields = {**fields, "base_model": started_from}
    data = ModelCardData(library_name="transformers", **fields)
    path = folder / "README.md"
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body.rstrip()}\n").save(path)
    return path


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; of all columns but the first, numbers are meant."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def data_table(files: Mapping[str, str]) -> str:
    """What the data was: a row per name, with the digest of each file."""
    rows = [
        (name, Path(path).name, f"`{_sha256(path)}`" if Path(path).is_file() else "")
        for name, path in files.items()
    ]
    return table(("data", "file", "sha256"), rows)


def versions() -> str:
    """The software that made it."""
    return (
        f"spanbert_fast {version('spanbert-fast')}, transformers {transformers.__version__}, torch "
        f"{torch.__version__}, Python {platform.python_version()}"
    )


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
