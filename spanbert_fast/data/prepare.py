"""Tokenises a corpus once, into a directory of shards that `pretrain` maps into memory."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from transformers import PreTrainedTokenizerBase

from spanbert_fast.data.finished_shards import (
    UNFINISHED,
    FinishedShard,
    joined_digest,
    shard_name,
    text_digest,
    whole_shards,
    write_finished,
)
from spanbert_fast.data.locks import locked
from spanbert_fast.data.shards import Shard, token_dtype, write_shard, write_whole
from spanbert_fast.data.text_files import lines_of, pieces
from spanbert_fast.data.tokenizer import (
    tokenizer_fingerprint,
    vocabulary_size,
    word_start_table,
)
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.meter import metered
from spanbert_fast.schema import FILE_NAME, TEXT, check, list_of, one_of, read_json, whole

logger = logging.getLogger("spanbert_fast")

# Written last, so a directory without it is not finished.
MANIFEST = "corpus.json"
_FORMAT = "spanbert_fast.corpus.1"
_COUNT = whole(0, 2**63 - 1)
_MANIFEST_RULES = {
    "format": one_of(_FORMAT),
    "tokenizer": TEXT,
    "shards": list_of(FILE_NAME),
    **dict.fromkeys(("documents", "lines", "tokens"), _COUNT),
}
# Characters that the tokenizer's threads process at once. Encodings take 50 times as many bytes.
_BATCH_CHARACTERS = 1 << 22
_OWN_CHARACTERS = 16  # an encoding's fixed memory, counted in characters
_PIECE = 1 << 16  # characters that are tokenised at once; a longer line is cut at blanks


def prepare(
    documents: Iterable[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    shard_tokens: int = 1 << 26,
    progress: bool = True,
) -> list[Path]:
    """Tokenise every line of every document, without special tokens, into shards.

    The tokenizer's own threads do the work (`RAYON_NUM_THREADS` limits them,
    `TOKENIZERS_PARALLELISM=false` turns them off). The tokenizer is saved in the directory, too. An
    interrupted run leaves a directory for which `is_prepared` is false. Running again continues
    after its whole shards, as far as they belong to the same text.

    Args:
        documents: rows with a `text` (`load_documents`). They are read twice if an interrupted run
            is continued.
        tokenizer: a fast WordPiece tokenizer. A special token's name in the text is plain text.
        output_dir: made if missing; must not hold a prepared corpus yet.
        shard_tokens: about the tokens of a shard, which holds whole documents.
        progress: show how many documents are done, where the package's log lines are shown.

    Returns:
        The files of the shards in the order of the corpus. The number of threads does not change
        them.

    Raises:
        UsageError: output_dir already holds a prepared corpus, is a file, or another process
            writes there.
        DataError: the corpus has no token.
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
    documents: Iterable[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    output_dir: Path,
    shard_tokens: int,
    progress: bool,
) -> list[Path]:
    fingerprint, starts = tokenizer_fingerprint(tokenizer), word_start_table(tokenizer)
    made_with = {"tokenizer": fingerprint, "shard_tokens": shard_tokens}
    finished = whole_shards(output_dir, documents, made_with)
    kept = {output_dir / shard.file for shard in finished}
    for leftover in {*output_dir.glob("shard-*.safetensors*")} - kept:
        leftover.unlink()
    if finished:
        logger.info("%s: going on behind %d whole shards", output_dir, len(finished))
    tokenizer.save_pretrained(output_dir)

    rows = _Rows(documents, skip=sum(shard.rows for shard in finished), progress=progress)
    lines = _encode(rows, tokenizer, min(_BATCH_CHARACTERS, shard_tokens))
    for tokens, line_lengths, document_lengths, end in _by_shard(lines, shard_tokens):
        path = output_dir / shard_name(len(finished))
        write_shard(
            path,
            tokens,
            starts[tokens],
            line_lengths,
            document_lengths,
            tokenizer=fingerprint,
            vocab_size=len(starts),
        )
        count, text = rows.taken_until(end)
        finished.append(FinishedShard(path.name, count, text))
        write_finished(output_dir, finished, made_with)
    if not finished:
        raise DataError(f"{output_dir}: the corpus is empty, no token came out of it")
    paths = [output_dir / shard.file for shard in finished]
    manifest = {
        "format": _FORMAT,
        "tokenizer": fingerprint,
        "shards": [path.name for path in paths],
        **_counts([Shard.open(path, fingerprint, verify=False) for path in paths]),
    }
    write_whole(output_dir / MANIFEST, json.dumps(manifest, indent=2).encode())
    (output_dir / UNFINISHED).unlink(missing_ok=True)
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
        tokenizer: the fingerprint that the shards must have; None for any.
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
    """The numbers of documents, lines and tokens of all shards."""
    return {
        "documents": sum(shard.num_documents for shard in shards),
        "lines": sum(len(shard.line_offsets) - 1 for shard in shards),
        "tokens": sum(shard.num_tokens for shard in shards),
    }


class _Lines(NamedTuple):
    """Consecutive pieces of lines of the corpus, none of them empty."""

    tokens: np.ndarray  # (num_tokens,)
    lengths: np.ndarray  # int64 (num_pieces,), in tokens
    lines: np.ndarray  # int64 (num_pieces,), the number of each piece's line in the corpus
    documents: np.ndarray  # int64 (num_pieces,), the number of each piece's document


class _Rows:
    """The documents after the first `skip`, with their numbers in the corpus. Keeps their digests
    until a shard takes them."""

    def __init__(self, documents: Iterable[Mapping[str, str]], skip: int, progress: bool):
        self._documents, self._skip, self._progress = documents, skip, progress
        self._first = skip  # the first document that no shard has taken
        self._digests: list[bytes] = []

    def __iter__(self) -> Iterator[tuple[int, str]]:
        total = len(self._documents) if isinstance(self._documents, Sized) else None
        rows: Iterable[Mapping[str, str]] = self._documents
        if self._progress:
            rows = metered(rows, "tokenise", total, "documents")
        for number, row in enumerate(rows):
            if number >= self._skip:
                self._digests.append(text_digest(row["text"]))
                yield number, row["text"]

    def taken_until(self, end: int | None) -> tuple[int, str]:
        """(number, common digest) of the documents since the end of the last call."""
        count = len(self._digests) if end is None else end - self._first
        taken, self._digests = self._digests[:count], self._digests[count:]
        self._first += count
        return count, joined_digest(taken)


def _encode(
    rows: _Rows, tokenizer: PreTrainedTokenizerBase, batch_characters: int
) -> Iterator[_Lines]:
    """The tokens of the corpus, in batches of about `batch_characters`."""
    # a copy with other settings: no truncation, and "[MASK]" in a text is plain text
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    dtype = token_dtype(vocabulary_size(tokenizer))

    def encode(parts: list[str], owners: list[tuple[int, int]]) -> _Lines:
        encodings = backend.encode_batch_fast(parts, add_special_tokens=False)
        lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        tokens = np.fromiter(ids, dtype, count=lengths.sum())
        lines, documents = np.array(owners, np.int64).reshape(-1, 2)[lengths > 0].T
        return _Lines(tokens, lengths[lengths > 0], lines, documents)

    parts: list[str] = []
    owners: list[tuple[int, int]] = []
    characters = line_number = 0
    for number, text in rows:
        for line in lines_of(text):
            for part in pieces(line, _PIECE):
                parts.append(part)
                owners.append((line_number, number))
                characters += len(part) + _OWN_CHARACTERS
                if characters >= batch_characters:
                    yield encode(parts, owners)
                    parts, owners, characters = [], [], 0
            line_number += 1
    yield encode(parts, owners)


def _by_shard(
    batches: Iterator[_Lines], shard_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int | None]]:
    """One shard at a time: (tokens, line lengths in tokens, document lengths in lines, the number
    of the next document or None). A shard ends with the document that fills it."""

    def shard(part: _Lines) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        firsts = np.unique(part.lines, return_index=True)[1]
        line_lengths = np.add.reduceat(part.lengths, firsts)
        return part.tokens, line_lengths, np.unique(part.documents[firsts], return_counts=True)[1]

    pending: list[_Lines] = []
    for batch in batches:
        if len(batch.tokens) == 0:
            continue
        pending.append(batch)
        while sum(len(part.tokens) for part in pending) >= shard_tokens:
            pending = [_Lines(*map(np.concatenate, zip(*pending, strict=True)))]
            tokens, lengths, lines, documents = pending[0]
            next_documents = np.flatnonzero(np.diff(documents)) + 1  # their first pieces
            ends = np.cumsum(lengths)[next_documents - 1]
            filling = np.searchsorted(ends, shard_tokens)
            if filling == len(ends):  # the last document may continue
                break
            token, piece = ends[filling], next_documents[filling]
            whole = _Lines(tokens[:token], lengths[:piece], lines[:piece], documents[:piece])
            yield *shard(whole), int(documents[piece])
            pending = [_Lines(tokens[token:], lengths[piece:], lines[piece:], documents[piece:])]
    if pending:
        yield *shard(_Lines(*map(np.concatenate, zip(*pending, strict=True)))), None
