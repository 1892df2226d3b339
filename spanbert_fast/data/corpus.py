"""Reads a corpus, in any supported form, into one table of documents."""

import io
import logging
import mmap
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset, load_from_disk

from spanbert_fast.data.hub_dataset import SCHEME, HubDataset
from spanbert_fast.data.text_files import (
    MOST_LINE_BYTES,
    OPENERS,
    TooLong,
    decoded_lines,
    lines_of,
    plain_suffix,
)
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.meter import metered
from spanbert_fast.schema import parse_json, regular_file

logger = logging.getLogger("spanbert_fast")

_SUFFIXES = (".txt", ".text", ".jsonl", ".json", ".parquet")
_IN_FOLDERS = (".txt", ".jsonl", ".parquet")  # .json and other files may lie beside a corpus
# large_string: the offsets of a batch of long documents do not fit 32 bits.
_SCHEMA = pa.schema({"text": pa.large_string()})
_WRITTEN_AT_ONCE = 1 << 24  # characters


def load_documents(
    paths: Sequence[str | Path], *, max_line_bytes: int = MOST_LINE_BYTES
) -> Dataset:
    """One row per document, in the order of `paths`.

    The table is mapped from a file without a name in `TMPDIR`, so a corpus may be larger than
    memory. The file disappears with the process.

    Args:
        paths: files or directories:
            .txt, .text: a blank line ends a document; a line is a unit of text;
            .jsonl, .json: an object with a string `text` on each line;
            .parquet: a string column `text`;
            each of these may have .gz, .xz, .bz2 or .zst appended (parquet compresses itself);
            a directory written by `Dataset.save_to_disk`, with a column `text`;
            a directory whose .txt, .jsonl and .parquet files are read in the order of their names.
        max_line_bytes: the limit of a line and of a row's text. A longer document of several lines
            becomes several documents, and the log says so.

    Returns:
        A `datasets.Dataset` with one column, `text`: the document's lines that are not blank, as
        they are, separated by a line feed. Empty documents are left out.

    Raises:
        UsageError: a path is missing, has another suffix, or is a directory with nothing to read.
        DataError: a file cannot be decoded or lacks its text, a line is too long, or there is no
            document at all.
    """
    files: list[Path | HubDataset] = []
    for path in paths:
        if str(path).startswith(SCHEME):
            files.append(HubDataset.of(str(path)))
        else:
            files += _files(Path(path))
    with tempfile.TemporaryFile() as file:
        with pa.ipc.new_stream(file, _SCHEMA) as writer:
            documents = metered(_documents(files, max_line_bytes), "read", unit="documents")
            for texts in _batches(documents):
                writer.write_batch(pa.record_batch([pa.array(texts, pa.large_string())], _SCHEMA))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    table = pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
    # without a fingerprint, all the data would be hashed
    return Dataset(table, fingerprint=uuid.uuid4().hex)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _WRITTEN_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _files(path: Path) -> list[Path]:
    """The files of a path: itself, or those of a plain directory."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or directory")
    if _is_saved_dataset(path):
        return [path]
    if not path.is_dir():
        if plain_suffix(path) not in _SUFFIXES:
            raise UsageError(
                f"{path}: the suffix must be one of {', '.join(_SUFFIXES)}, with or without one of "
                f"{', '.join(OPENERS)} behind it, got {plain_suffix(path)!r}"
            )
        return [path]
    files = sorted(file for file in path.iterdir() if plain_suffix(file) in _IN_FOLDERS)
    if not files:
        raise UsageError(f"{path}: a directory with no {', '.join(_IN_FOLDERS)} file to read")
    return files


_Lines = Iterator[str | None]


def _documents(files: Sequence[Path | HubDataset], max_line_bytes: int) -> Iterator[str]:
    """The text of each document. A file's reader yields its lines that are not blank, and None at
    the end of a document."""
    empty = True
    for path in files:
        read = _reader_of(path)
        text, size, is_said = io.StringIO(), 0, False
        for line in chain(_hinted(read(path, max_line_bytes)), [None]):
            is_too_long = line is not None and size + len(line) > max_line_bytes
            if size and (line is None or is_too_long):
                yield text.getvalue()
                text, size, empty = io.StringIO(), 0, False
            if is_too_long and not is_said:
                is_said = True
                logger.warning(
                    "%s: a document has more than %s characters, and becomes several: is there no "
                    "blank line between documents?",
                    path,
                    f"{max_line_bytes:,}",
                )
            if line is not None:
                text.write("\n" + line if size else line)
                size += len(line) + 1
    if empty:
        raise DataError(f"the corpus is empty: no text in {', '.join(map(str, files))}")


def _hinted(lines: _Lines) -> _Lines:
    try:
        yield from lines
    except TooLong as error:
        raise DataError(f"{error}; --max-line-bytes allows more") from error


def _lines_in(text: str) -> _Lines:
    """The lines of a document that is stored as one text."""
    yield from filter(None, map(_line, lines_of(text)))
    yield None


def _line(text: str) -> str | None:
    """A line without its line end; None if it is blank."""
    return None if text.isspace() else text.removesuffix("\n").removesuffix("\r") or None


def _read_text(path: Path, max_line_bytes: int) -> _Lines:
    for line in decoded_lines(path, max_line_bytes):
        yield _line(line)


def _read_jsonl(path: Path, max_line_bytes: int) -> _Lines:
    for number, line in enumerate(decoded_lines(path, max_line_bytes), start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}, line {number}")
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise DataError(f'{path}, line {number}: needs an object with a string "text"')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{path}, line {number}: half a surrogate pair in the text") from error
        yield from _lines_in(text)


def _read_parquet(path: Path, max_line_bytes: int) -> _Lines:
    regular_file(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_text_column(path, file.schema_arrow)
            for group in range(file.num_row_groups):
                stored = file.metadata.row_group(group)
                rows = _WRITTEN_AT_ONCE * stored.num_rows // max(stored.total_byte_size, 1)
                for batch in file.iter_batches(
                    batch_size=min(max(rows, 1), 1024), row_groups=[group], columns=["text"]
                ):
                    yield from _text_column(path, batch.column("text"), max_line_bytes)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({_one_line(error)})") from error


_READERS = {
    ".txt": _read_text,
    ".text": _read_text,
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
}


def _reader_of(path: Path | HubDataset) -> Callable[..., _Lines]:
    if isinstance(path, HubDataset):
        return _read_hub
    return _read_saved_dataset if path.is_dir() else _READERS[plain_suffix(path)]


def _read_hub(dataset: HubDataset, max_line_bytes: int) -> _Lines:
    for text in dataset.texts():
        if len(text) > max_line_bytes:
            raise TooLong(
                f"{dataset}: a row's text must have at most {max_line_bytes:,} characters, has "
                f"{len(text):,}"
            )
        yield from _lines_in(text)


def _read_saved_dataset(path: Path, max_line_bytes: int) -> _Lines:
    try:
        dataset = load_from_disk(str(path))
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        reason = _one_line(error)
        raise DataError(f"{path}: not a readable Hugging Face dataset ({reason})") from error
    if not isinstance(dataset, Dataset):
        raise DataError(f"{path}: holds the splits {', '.join(dataset)}; name one of its folders")
    _check_text_column(path, dataset.features.arrow_schema)
    for batch in dataset.with_format("arrow").iter(batch_size=1024):
        yield from _text_column(path, batch.column("text"), max_line_bytes)


def _check_text_column(path: Path, schema: pa.Schema) -> None:
    if "text" not in schema.names:
        raise DataError(f"{path}: no column `text`, only {', '.join(schema.names)}")
    kind = schema.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{path}: the column `text` must hold strings, got {kind}")


def _text_column(path: Path, column: pa.Array | pa.ChunkedArray, max_line_bytes: int) -> _Lines:
    if column.null_count:
        raise DataError(f"{path}: the column `text` has rows without a value")
    for value in column:
        size = len(value.as_buffer())
        if size > max_line_bytes:
            most = f"{max_line_bytes:,}"
            raise TooLong(f"{path}: a row's text must have at most {most} bytes, has {size:,}")
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: a row's text is not UTF-8 ({error})") from error
        yield from _lines_in(text)


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
