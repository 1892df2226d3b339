"""Memory-mapped shards of a tokenised corpus.

A shard is one safetensors file of four tensors:

    tokens            uint16 or uint32 (num_tokens,), no special tokens
    word_start_bits   uint8 (ceil(num_tokens / 8),), the lowest bit first
    line_offsets      int64 (num_lines + 1,), in tokens
    document_offsets  int64 (num_documents + 1,), in lines

and, under the metadata key `shard`, a JSON header: format, tokenizer (its fingerprint), vocab_size
and a digest of the tensors and of the rest of the header. The same content gives the same bytes. A
shard is written under another name and renamed when it is complete, so a file with a shard's name
is a complete shard.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from spanbert_fast.errors import DataError
from spanbert_fast.schema import TEXT, check, one_of, regular_file, whole

_FORMAT = "spanbert_fast.shard.1"
# larger than any vocabulary, and small enough for a table of this size to fit into memory
_MOST_TOKENS = 1 << 24
_HEADER_RULES = {
    "format": one_of(_FORMAT),
    "tokenizer": TEXT,
    "vocab_size": whole(1, _MOST_TOKENS),
    "digest": TEXT,
}
_DTYPES = {
    "tokens": (np.uint16, np.uint32),
    "word_start_bits": (np.uint8,),
    "line_offsets": (np.int64,),
    "document_offsets": (np.int64,),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """A part of a tokenised corpus. Its arrays are read-only views of the mapped file.

    Attributes:
        path: the file.
        tokenizer: fingerprint of the tokenizer that made the ids.
        vocab_size: every id is below this.
        tokens: uint16 or uint32 (num_tokens,).
        word_start_bits: uint8 (ceil(num_tokens / 8),), the lowest bit first.
        line_offsets: int64 (num_lines + 1,), prefix sums of the lines' tokens; no line is empty.
        document_offsets: int64 (num_documents + 1,), prefix sums of the documents' lines.
    """

    path: Path
    tokenizer: str
    vocab_size: int
    tokens: np.ndarray
    word_start_bits: np.ndarray
    line_offsets: np.ndarray
    document_offsets: np.ndarray

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        return len(self.document_offsets) - 1

    def word_starts(self, start: int, length: int) -> np.ndarray:
        """bool (length,): whether each token, from `start` on, begins a word."""
        bits = np.unpackbits(
            self.word_start_bits[start // 8 : (start + length + 7) // 8], bitorder="little"
        )
        return bits[start % 8 : start % 8 + length].view(bool)

    @classmethod
    def open(cls, path: str | Path, tokenizer: str | None = None, verify: bool = True) -> "Shard":
        """Map a shard; nothing is copied.

        Args:
            path: the file.
            tokenizer: the fingerprint that the shard must have; None for any.
            verify: compare the digest, which reads the whole file once.

        Raises:
            DataError: the file is missing, truncated, corrupt, not a shard, or was made by
                another tokenizer.
        """
        path = Path(path)
        if not path.exists():
            raise DataError(f"{path}: the shard is missing")
        regular_file(path)
        try:
            # torch's reader maps the file; numpy's copies it
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("shard", "null"))
                if header is None or set(file.keys()) != set(_DTYPES):
                    raise DataError(f"{path}: not a shard of the format {_FORMAT}")
                header = dict(check(path, header, _HEADER_RULES))
                arrays = {name: file.get_tensor(name).numpy() for name in _DTYPES}
        except DataError:
            raise
        except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{path}: truncated, corrupt or not a shard ({error})") from error
        for array in arrays.values():
            array.flags.writeable = False
        digest = header.pop("digest")
        if not _is_consistent(arrays) or (verify and _digest(header, arrays) != digest):
            raise DataError(f"{path}: corrupt, its content does not match its digest")
        tokens, vocab_size = arrays["tokens"], header["vocab_size"]
        if verify and len(tokens) and tokens.max() >= vocab_size:
            raise DataError(
                f"{path}: every token must be below vocab_size = {vocab_size}, got {tokens.max()}"
            )
        if tokenizer is not None and header["tokenizer"] != tokenizer:
            raise DataError(
                f"{path}: made by another tokenizer (fingerprint {header['tokenizer']}, this one "
                f"has {tokenizer}); prepare the corpus again"
            )
        return cls(path, header["tokenizer"], vocab_size, **arrays)

    def __reduce__(self) -> tuple:
        # pickling sends the path alone; the other process maps the file again
        return Shard.open, (self.path, self.tokenizer, False)


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The dtype of ids below `vocab_size`."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def write_shard(
    path: Path,
    tokens: np.ndarray,
    word_starts: np.ndarray,
    line_lengths: np.ndarray,
    document_lengths: np.ndarray,
    *,
    tokenizer: str,
    vocab_size: int,
) -> None:
    """Write a shard. The file appears under `path` complete, or not at all.

    Args:
        path: the file.
        tokens: integers (num_tokens,) in [0, vocab_size).
        word_starts: bool (num_tokens,).
        line_lengths: (num_lines,) tokens of each line, none 0.
        document_lengths: (num_documents,) lines of each document, none 0.
        tokenizer: fingerprint of the tokenizer.
        vocab_size: its ids are below this.

    Raises:
        OSError: the file cannot be written (the disk is full).
    """
    arrays = {
        "tokens": tokens.astype(token_dtype(vocab_size)),
        "word_start_bits": np.packbits(word_starts, bitorder="little"),
        "line_offsets": _offsets(line_lengths),
        "document_offsets": _offsets(document_lengths),
    }
    if not _is_consistent(arrays) or len(word_starts) != len(tokens):
        raise ValueError(
            "line_lengths and document_lengths must be positive and add up to the tokens and the "
            f"lines, got {len(tokens)} tokens, {len(word_starts)} word starts, lines of "
            f"{line_lengths.sum()} tokens and documents of {document_lengths.sum()} lines"
        )
    header: dict[str, str | int] = {
        "format": _FORMAT,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
    }
    header["digest"] = _digest(header, arrays)
    write_whole(path, safetensors.numpy.save(arrays, metadata={"shard": json.dumps(header)}))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is complete whenever it exists, even after a power failure."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _is_consistent(arrays: dict[str, np.ndarray]) -> bool:
    """Whether dtypes and sizes fit together, so that every index is inside its array."""
    tokens, bits = arrays["tokens"], arrays["word_start_bits"]
    lines, documents = arrays["line_offsets"], arrays["document_offsets"]
    return (
        all(array.ndim == 1 and array.dtype in _DTYPES[name] for name, array in arrays.items())
        and len(bits) == (len(tokens) + 7) // 8
        and min(len(lines), len(documents)) >= 1
        and lines[0] == documents[0] == 0
        and (lines[-1], documents[-1]) == (len(tokens), len(lines) - 1)
        and bool((np.diff(lines) > 0).all() and (np.diff(documents) > 0).all())
    )


def _digest(header: dict[str, str | int], arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    for name in _DTYPES:
        digest.update(f"{name}:{arrays[name].dtype.str}:{len(arrays[name])};".encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()
