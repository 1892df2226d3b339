"""Tokenises a corpus once, into a directory of shards that `pretrain` maps into memory."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from spanbert_fast.data.encode import Lines, Rows, encode_lines
from spanbert_fast.data.finished_shards import (
    UNFINISHED,
    FinishedShard,
    shard_name,
    whole_shards,
    write_finished,
)
from spanbert_fast.data.locks import locked
from spanbert_fast.data.shards import Shard, write_shard, write_whole
from spanbert_fast.data.tokenizer import tokenizer_fingerprint, vocabulary_size
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.schema import FILE_NAME, TEXT, check, list_of, one_of, read_json, whole
from spanbert_fast.values import WORDS

logger = logging.getLogger("spanbert_fast")

# This file is written last: a directory without it is not finished.
MANIFEST = "corpus.json"
_FORMAT = "spanbert_fast.corpus.1"
_COUNT = whole(0, 2**63 - 1)
_MANIFEST_RULES = {
    "format": one_of(_FORMAT),
    "tokenizer": TEXT,
    "words": one_of(*WORDS),
    "shards": list_of(FILE_NAME),
    **dict.fromkeys(("documents", "lines", "tokens"), _COUNT),
}
# Characters that the tokenizer's threads process at once. Encodings take 50 times as many bytes.
_BATCH_CHARACTERS = 1 << 22


def prepare(
    documents: Iterable[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    shard_tokens: int = 1 << 26,
    progress: bool = True,
    words: str = "tokenizer",
) -> list[Path]:
    """Tokenise every line of every document, without special tokens, into shards.

    The tokenizer's own threads do the work (`RAYON_NUM_THREADS` limits them,
    `TOKENIZERS_PARALLELISM=false` turns them off). The tokenizer is saved in the directory, too. An
    interrupted run leaves a directory for which `is_prepared` is false. Running again continues
    after its whole shards, as far as they belong to the same text.

    Args:
        documents: rows with a `text` (`load_documents`). They are read twice if an interrupted run
            is continued.
        tokenizer: a fast one, of any kind. A special token's name in the text is plain text.
        output_dir: made if missing; must not hold a prepared corpus yet.
        shard_tokens: about the tokens of a shard, which holds whole documents.
        progress: show how many documents are done, where the package's log lines are shown.
        words: what spans are made of, see `WordStarts.of`; of a tokenizer that marks no words in
            its tokens, "tokenizer" stands for the words that its pre-tokenizer finds in the text.

    Returns:
        The files of the shards in the order of the corpus. The number of threads does not change
        them.

    Raises:
        UsageError: output_dir already holds a prepared corpus, is a file, or another process
            writes there.
        DataError: no document of the corpus has a token.
        OSError: the disk is full.
    """
    if shard_tokens < 1:
        raise UsageError(f"shard_tokens must be positive, got {shard_tokens}")
    output_dir = Path(output_dir)
    if is_prepared(output_dir):
        raise UsageError(f"{output_dir}: already holds a prepared corpus; take another directory")
    with locked(output_dir):
        return _prepare(documents, tokenizer, output_dir, shard_tokens, progress, words)


def _prepare(
    documents: Iterable[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    output_dir: Path,
    shard_tokens: int,
    progress: bool,
    words: str,
) -> list[Path]:
    fingerprint = tokenizer_fingerprint(tokenizer)
    made_with = {"tokenizer": fingerprint, "shard_tokens": shard_tokens, "words": words}
    finished = whole_shards(output_dir, documents, made_with)
    kept = {output_dir / shard.file for shard in finished}
    for leftover in {*output_dir.glob("shard-*.safetensors*")} - kept:
        leftover.unlink()
    if finished:
        logger.info("%s: going on behind %d whole shards", output_dir, len(finished))
    tokenizer.save_pretrained(output_dir)

    rows = Rows(documents, skip=sum(shard.rows for shard in finished), progress=progress)
    lines = encode_lines(rows, tokenizer, min(_BATCH_CHARACTERS, shard_tokens), words)
    for part, end in _by_shard(lines, shard_tokens):
        path = output_dir / shard_name(len(finished))
        write_shard(
            path,
            *part,
            tokenizer=fingerprint,
            vocab_size=vocabulary_size(tokenizer),
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
        "words": words,
        "shards": [path.name for path in paths],
        **_counts([Shard.open(path, fingerprint, verify=False) for path in paths]),
    }
    write_whole(output_dir / MANIFEST, json.dumps(manifest, indent=2).encode())
    clear_leftovers(output_dir)
    return paths


def clear_leftovers(output_dir: Path) -> None:
    """Remove the record of unfinished work from a corpus that is whole. A process that was killed
    behind its last shard leaves it."""
    (output_dir / UNFINISHED).unlink(missing_ok=True)


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
    content = _manifest(directory)
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


def words_of(directory: str | Path) -> str:
    """The `words` with which a directory was prepared."""
    return _manifest(directory)["words"]


def _manifest(directory: str | Path) -> dict:
    path = Path(directory) / MANIFEST
    content = read_json(path)
    if type(content) is dict:
        # directories of earlier versions, which knew no other choice
        content.setdefault("words", "tokenizer")
    return check(path, content, _MANIFEST_RULES)


def _counts(shards: Sequence[Shard]) -> dict[str, int]:
    """The numbers of documents, lines and tokens of all shards."""
    return {
        "documents": sum(shard.num_documents for shard in shards),
        "lines": sum(len(shard.line_offsets) - 1 for shard in shards),
        "tokens": sum(shard.num_tokens for shard in shards),
    }


_Shard = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _by_shard(batches: Iterator[Lines], shard_tokens: int) -> Iterator[tuple[_Shard, int | None]]:
    """One shard at a time: ((tokens, word starts, line lengths in tokens, document lengths in
    lines), the number of the next document or None). A shard ends with the document that fills
    it."""

    def shard(part: Lines) -> _Shard:
        firsts = np.unique(part.lines, return_index=True)[1]
        line_lengths = np.add.reduceat(part.lengths, firsts)
        document_lengths = np.unique(part.documents[firsts], return_counts=True)[1]
        return part.tokens, part.word_starts, line_lengths, document_lengths

    pending: list[Lines] = []
    for batch in batches:
        if len(batch.tokens) == 0:
            continue
        pending.append(batch)
        while sum(len(part.tokens) for part in pending) >= shard_tokens:
            part = Lines(*map(np.concatenate, zip(*pending, strict=True)))
            pending = [part]
            # the first pieces of the lines
            next_documents = np.flatnonzero(np.diff(part.documents)) + 1
            ends = np.cumsum(part.lengths)[next_documents - 1]
            filling = np.searchsorted(ends, shard_tokens)
            if filling == len(ends):  # the last document may continue
                break
            token, piece = ends[filling], next_documents[filling]
            whole, rest = (
                Lines(*(x[a] for x in part[:2]), *(x[b] for x in part[2:]))
                for a, b in (
                    (slice(token), slice(piece)),
                    (slice(token, None), slice(piece, None)),
                )
            )
            yield shard(whole), int(part.documents[piece])
            pending = [rest]
    if pending:
        yield shard(Lines(*map(np.concatenate, zip(*pending, strict=True)))), None
