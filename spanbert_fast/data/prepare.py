"""Tokenises a corpus once into a directory of shards that `pretrain` maps."""

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from spanbert_fast.data.locks import locked
from spanbert_fast.data.shards import Shard, token_dtype, write_shard, write_whole
from spanbert_fast.data.tokenizer import (
    tokenizer_fingerprint,
    vocabulary_size,
    word_start_table,
)
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.schema import FILE_NAME, TEXT, check, list_of, one_of, read_json, whole

# Written last: a directory without it was not finished.
MANIFEST = "corpus.json"
_FORMAT = "spanbert_fast.corpus.1"
_COUNT = whole(0, 2**63 - 1)
_MANIFEST_RULES = {
    "format": one_of(_FORMAT),
    "tokenizer": TEXT,
    "shards": list_of(FILE_NAME),
    **dict.fromkeys(("documents", "lines", "tokens"), _COUNT),
}
# Characters that the tokenizer's threads work on at once; the encodings take 50 times as much.
_BATCH_CHARACTERS = 1 << 22


def prepare(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    shard_tokens: int = 1 << 26,
    progress: bool = True,
) -> list[Path]:
    """Tokenise every line of every document, without special tokens, into shards.

    The tokenizer's own threads do the work (`RAYON_NUM_THREADS` limits them,
    `TOKENIZERS_PARALLELISM=false` turns them off). The directory then also holds the tokenizer. A
    run that was interrupted leaves a directory that `is_prepared` denies; running again starts it
    anew.

    Args:
        documents: rows of `text`, a line of text per line (`load_documents`).
        tokenizer: a fast WordPiece tokenizer. A special token's name in the text is plain text.
        output_dir: made if missing; must not hold a prepared corpus yet.
        shard_tokens: about the tokens of a shard, which holds whole documents.
        progress: show a progress bar over the documents.

    Returns:
        The shards' files in the order of the corpus. Shards do not depend on the threads.

    Raises:
        UsageError: output_dir already holds a prepared corpus, is a file, or another process
            writes there.
        DataError: no token comes out of the corpus.
        OSError: the disk is full.
    """
    if shard_tokens < 1:
        raise UsageError(f"shard_tokens must be positive, got {shard_tokens}")
    output_dir = Path(output_dir)
    if is_prepared(output_dir):
        raise UsageError(f"{output_dir}: already holds a prepared corpus; take another directory")
    with locked(output_dir):
        return _prepare(documents, tokenizer, output_dir, shard_tokens, progress)


def _prepare(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: Path,
    shard_tokens: int,
    progress: bool,
) -> list[Path]:
    for leftover in output_dir.glob("shard-*.safetensors*"):
        leftover.unlink()
    tokenizer.save_pretrained(output_dir)

    fingerprint, starts = tokenizer_fingerprint(tokenizer), word_start_table(tokenizer)
    paths: list[Path] = []
    totals = np.zeros(3, dtype=np.int64)
    lines = _encode(documents, tokenizer, min(_BATCH_CHARACTERS, shard_tokens), progress)
    for tokens, line_lengths, document_lengths in _by_shard(lines, shard_tokens):
        path = output_dir / f"shard-{len(paths):05d}.safetensors"
        write_shard(
            path,
            tokens,
            starts[tokens],
            line_lengths,
            document_lengths,
            tokenizer=fingerprint,
            vocab_size=len(starts),
        )
        paths.append(path)
        totals += (len(document_lengths), len(line_lengths), len(tokens))
    if not paths:
        raise DataError(f"{output_dir}: the corpus is empty, no token came out of it")
    manifest = {
        "format": _FORMAT,
        "tokenizer": fingerprint,
        "shards": [path.name for path in paths],
        **dict(zip(("documents", "lines", "tokens"), totals.tolist(), strict=True)),
    }
    write_whole(output_dir / MANIFEST, json.dumps(manifest, indent=2).encode())
    return paths


def is_prepared(path: str | Path) -> bool:
    """Whether `path` is a directory that `prepare` finished."""
    return (Path(path) / MANIFEST).is_file()


def open_shards(
    directory: str | Path, tokenizer: str | None = None, verify: bool = True
) -> list[Shard]:
    """The shards of a prepared directory in the order of the corpus.

    Args:
        directory: what `prepare` wrote.
        tokenizer: fingerprint that the shards must have been made with; None takes any.
        verify: compare the digests, which reads every shard once.

    Raises:
        UsageError: the directory holds no prepared corpus.
        DataError: the list of shards cannot be read, or see `Shard.open`.
    """
    manifest = Path(directory) / MANIFEST
    if not manifest.is_file():
        raise UsageError(f"{directory}: holds no prepared corpus (no {MANIFEST})")
    content = check(manifest, read_json(manifest), _MANIFEST_RULES)
    names, made_by = content["shards"], content["tokenizer"]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{manifest}: shards must hold each file once, got {twice} twice")
    # one directory has one tokenizer: a shard of another corpus among them is refused as well
    shards = [Shard.open(manifest.parent / name, made_by, verify) for name in names]
    if tokenizer not in (None, made_by):
        raise DataError(
            f"{manifest}: made by another tokenizer (fingerprint {made_by}, this one has "
            f"{tokenizer}); prepare the corpus again"
        )
    counted = _counts(shards)
    for name, count in counted.items():
        if content[name] != count:
            raise DataError(
                f"{manifest}: {name} must be that of the shards, {count}, got {content[name]}"
            )
    return shards


def _counts(shards: Sequence[Shard]) -> dict[str, int]:
    """How many documents, lines and tokens the shards hold together."""
    return {
        "documents": sum(shard.num_documents for shard in shards),
        "lines": sum(len(shard.line_offsets) - 1 for shard in shards),
        "tokens": sum(shard.num_tokens for shard in shards),
    }


class _Lines(NamedTuple):
    """Lines that follow each other in the corpus, none of them empty."""

    tokens: np.ndarray  # (num_tokens,)
    lengths: np.ndarray  # int64 (num_lines,), in tokens
    documents: np.ndarray  # int64 (num_lines,), the number of each line's document


def _encode(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, batch_characters: int, progress: bool
) -> Iterator[_Lines]:
    """The tokens of the corpus, in batches of about `batch_characters`."""
    # a copy, to be set up: no truncation, and "[MASK]" in a text is six characters, not a mask
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    dtype = token_dtype(vocabulary_size(tokenizer))

    def encode(lines: list[str], numbers: list[int]) -> _Lines:
        encodings = backend.encode_batch_fast(lines, add_special_tokens=False)
        lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        tokens = np.fromiter(ids, dtype, count=lengths.sum())
        return _Lines(tokens, lengths[lengths > 0], np.array(numbers, np.int64)[lengths > 0])

    lines: list[str] = []
    numbers: list[int] = []
    characters = 0
    rows = tqdm(documents, desc="tokenise", unit=" documents", disable=not progress)
    for number, row in enumerate(rows):
        for line in row["text"].split("\n"):
            lines.append(line)
            numbers.append(number)
            characters += len(line)
            if characters >= batch_characters:
                yield encode(lines, numbers)
                lines, numbers, characters = [], [], 0
    yield encode(lines, numbers)


def _by_shard(
    batches: Iterator[_Lines], shard_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(tokens, line lengths in tokens, document lengths in lines) of a shard at a time."""

    def shard(lines: _Lines) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return lines.tokens, lines.lengths, np.unique(lines.documents, return_counts=True)[1]

    pending: list[_Lines] = []
    for batch in batches:
        if len(batch.tokens) == 0:
            continue
        pending.append(batch)
        enough = sum(len(lines.tokens) for lines in pending) >= shard_tokens
        if enough and pending[0].documents[0] != batch.documents[-1]:
            tokens, lengths, documents = map(np.concatenate, zip(*pending, strict=True))
            line = np.searchsorted(documents, documents[-1])  # where the open document begins
            token = lengths[:line].sum()
            yield shard(_Lines(tokens[:token], lengths[:line], documents[:line]))
            pending = [_Lines(tokens[token:], lengths[line:], documents[line:])]
    if pending:
        yield shard(_Lines(*map(np.concatenate, zip(*pending, strict=True))))
