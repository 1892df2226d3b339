"""The model card, a README.md beside the weights: what the model is and how it was trained."""

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
        started_from: the checkpoint, as the user named it; a Hub name becomes `base_model`.
    """
    if started_from is not None and is_repository(started_from):
        fields = {**fields, "base_model": started_from}
    data = ModelCardData(library_name="transformers", **fields)
    path = folder / "README.md"
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body.rstrip()}\n").save(path)
    return path


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; all columns but the first are aligned as numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def data_table(files: Mapping[str, str]) -> str:
    """A table of the data: a row per name, with the digest of each file."""
    rows = [
        (name, Path(path).name, f"`{_sha256(path)}`" if Path(path).is_file() else "")
        for name, path in files.items()
    ]
    return table(("data", "file", "sha256"), rows)


def versions() -> str:
    """The versions of the software."""
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
