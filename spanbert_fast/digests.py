"""Digests of all files of a checkpoint. They are written last, so that a reader can name damage.

`digests.json` holds the size and the BLAKE2b digest of each file beside it, and those values of the
configuration that change what the weights compute and that no tensor's shape shows.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILE = "digests.json"
_FORMAT = "spanbert_fast.digests.1"
# The number of attention heads changes no shape, and the norms' eps has no tensor.
_CONFIG_FIELDS = ("num_attention_heads", "layer_norm_eps")


def write_digests(folder: Path, config: Any = None) -> None:
    """Write the digests of all files under a folder, and flush all of it to the disk.

    Args:
        config: a configuration whose `_CONFIG_FIELDS` are written, too.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path != folder / FILE:
            files[path.relative_to(folder).as_posix()] = {
                "bytes": path.stat().st_size,
                "blake2b": _digest(path),
            }
            flush(path)
    values = {name: getattr(config, name) for name in _CONFIG_FIELDS if hasattr(config, name)}
    content = {"format": _FORMAT, "config": values, "files": files}
    with open(folder / FILE, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
    flush(folder / FILE)
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        flush(path)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path, only: Iterable[str] | None = None) -> str | None:
    """What is wrong with a folder that has digests; None if nothing is.

    Args:
        only: names of the files to check; None for all that have a digest.
    """
    content = _read(folder)
    if isinstance(content, str):
        return content
    files = content["files"]
    for name in files if only is None else only:
        expected = files.get(name)
        path = folder / name
        if expected is None:
            return f"{name} has no digest in {FILE}"
        if not path.is_file():
            return f"{name} is missing"
        size, written = path.stat().st_size, expected["bytes"]
        if size != written:
            return f"{name} has {size:,} bytes where {written:,} were written"
        if _digest(path) != expected["blake2b"]:
            return f"{name} does not have the digest that was written: it is corrupt"
    return None


def another_config(folder: Path, config: Any) -> str | None:
    """How a configuration differs from that of the weights; None if it does not."""
    content = _read(folder)
    if isinstance(content, str):
        return content
    for name, written in content["config"].items():
        if getattr(config, name, written) != written:
            return f"{name} is {getattr(config, name)}, its weights were written with {written}"
    return None


def _read(folder: Path) -> dict | str:
    """The content of the folder's digests.json, or what is wrong with it."""
    if not (folder / FILE).is_file():
        return f"{FILE}, which is written last, is missing"
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        whole = content["format"] == _FORMAT and isinstance(content["config"], dict)
        for entry in content["files"].values():
            whole &= [*map(type, (entry["bytes"], entry["blake2b"]))] == [int, str]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    return content if whole else f"{FILE} is corrupt"


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
