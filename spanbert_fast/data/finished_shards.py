"""The shards that an interrupted `prepare` has finished, and the text of each."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from spanbert_fast.data.shards import Shard, write_whole
from spanbert_fast.errors import DataError
from spanbert_fast.schema import ANYTHING, TEXT, check, list_of, one_of, read_json, whole

UNFINISHED = "unfinished.json"
_FORMAT = "spanbert_fast.unfinished.1"
_SHARD_RULES = {"rows": whole(0, 2**63 - 1), "text": TEXT}


class FinishedShard(NamedTuple):
    """A complete shard.

    Attributes:
        file: its name.
        rows: number of its documents, counting those without a token.
        text: a digest of these documents.
    """

    file: str
    rows: int
    text: str


def shard_name(number: int) -> str:
    """The name of the file of a shard."""
    return f"shard-{number:05d}.safetensors"


def text_digest(text: str) -> bytes:
    """A digest of 8 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def joined_digest(digests: Iterable[bytes]) -> str:
    """One digest for several documents, from their digests."""
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()


def write_finished(
    directory: Path, shards: Iterable[FinishedShard], made_with: Mapping[str, Any]
) -> None:
    """Write the list of finished shards.

    Args:
        made_with: the other values that decide the content of the shards.
    """
    rows = [shard._asdict() for shard in shards]
    content = {"format": _FORMAT, **made_with, "shards": rows}
    write_whole(directory / UNFINISHED, json.dumps(content, indent=2).encode())


def whole_shards(
    directory: Path, documents: Iterable[Mapping[str, str]], made_with: Mapping[str, Any]
) -> list[FinishedShard]:
    """The first shards of an interrupted run, up to the first that these documents would change."""
    if not (directory / UNFINISHED).is_file():
        return []
    path = directory / UNFINISHED
    rules = {"format": one_of(_FORMAT), **{k: one_of(v) for k, v in made_with.items()}}
    found: list[FinishedShard] = []
    try:
        content = check(path, read_json(path), {**rules, "shards": list_of(ANYTHING)})
        rows = iter(documents)
        for number, entry in enumerate(content["shards"]):
            entry = check(path, entry, {"file": one_of(shard_name(number)), **_SHARD_RULES})
            Shard.open(directory / entry["file"], made_with["tokenizer"])
            digests = [text_digest(row["text"]) for row in islice(rows, entry["rows"])]
            if len(digests) < entry["rows"] or joined_digest(digests) != entry["text"]:
                break
            found.append(FinishedShard(**{name: entry[name] for name in FinishedShard._fields}))
    except DataError:  # damaged, or from another tokenizer or version: it is written again
        pass
    return found
