"""Tokenises a corpus once into a directory of shards that `pretrain` maps."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from spanbert_fast.data.shards import Shard, token_dtype, write_shard, write_whole
from spanbert_fast.data.tokenizer import (
    tokenizer_fingerprint,
    vocabulary_size,
    word_start_table,
)
from spanbert_fast.errors import DataError, UsageError

# Written last: a directory without it was not finished.
MANIFEST = "corpus.json"
_FORMAT = "spanbert_fast.corpus.1"
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
        UsageError: output_dir already holds a prepared corpus, or is a file.
        DataError: no token comes out of the corpus.
        OSError: the disk is full.
    """
    if shard_tokens < 1:
        raise UsageError(f"shard_tokens must be positive, got {shard_tokens}")
    output_dir = Path(output_dir)
    if is_prepared(output_dir):
        raise UsageError(f"{output_dir}: already holds a prepared corpus; take another directory")
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"{output_dir}: must be a directory, is a file")
    output_dir.mkdir(parents=True, exist_ok=True)
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
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        names, made_by = content["shards"], content["tokenizer"]
        if content["format"] != _FORMAT:
            raise DataError(f"{manifest}: must have the format {_FORMAT}, got {content['format']}")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{manifest}: corrupt ({type(error).__name__}: {error})") from error
    # one directory has one tokenizer: a shard of another corpus among them is refused as well
    return [Shard.open(manifest.parent / name, tokenizer or made_by, verify) for name in names]


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
