"""Reads a corpus of any supported form into one table of documents."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset, Features, Value, load_from_disk
from datasets.exceptions import DatasetGenerationError

from spanbert_fast.data.text_files import OPENERS, decoded_lines, plain_suffix
from spanbert_fast.errors import DataError, UsageError

_SUFFIXES = (".txt", ".text", ".jsonl", ".json", ".parquet")
_IN_FOLDERS = (".txt", ".jsonl", ".parquet")  # other files lie beside a corpus, .json too
# large_string: the offsets of a batch of long documents do not fit 32 bits.
_FEATURES = Features({"text": Value("large_string")})


def load_documents(paths: Sequence[str | Path]) -> Dataset:
    """One row per document, in the order of `paths`.

    The table is memory-mapped from a temporary directory (of `TMPDIR`) that is removed when the
    process ends, so that a corpus larger than memory can be read.

    Args:
        paths: files or directories:
            .txt, .text: a blank line ends a document, a line is a unit of text;
            .jsonl, .json: an object with a string `text` on each line;
            .parquet: a string column `text`;
            each of these also with .gz, .xz, .bz2 or .zst appended (parquet compresses itself);
            a directory written by `Dataset.save_to_disk`, with a column `text`;
            a directory whose .txt, .jsonl and .parquet files are read in the order of their names.

    Returns:
        A `datasets.Dataset` with the one column `text`: the document's non-empty lines, stripped
        and separated by a line feed. Empty documents are left out.

    Raises:
        UsageError: a path is missing, has another suffix, or is a directory with nothing to read.
        DataError: a file cannot be decoded or lacks its text, or there is no document at all.
    """
    files = [file for path in paths for file in _files(Path(path))]
    try:
        return Dataset.from_generator(
            _documents,
            features=_FEATURES,
            # a directory of its own: from_generator would find a stale table under the same paths
            cache_dir=tempfile.mkdtemp(dir=_scratch().name),
            gen_kwargs={"files": tuple(map(str, files))},
            # by default 1,000 documents wait in memory, and a document may be a whole book
            writer_batch_size=100,
        )
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None


_scratch_directory: tempfile.TemporaryDirectory | None = None


def _scratch() -> tempfile.TemporaryDirectory:
    """This process's temporary directory; the object's finaliser removes it at exit."""
    global _scratch_directory
    if _scratch_directory is None:
        _scratch_directory = tempfile.TemporaryDirectory(prefix="spanbert-fast-")
    return _scratch_directory


def _is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _files(path: Path) -> list[Path]:
    """What `path` stands for: itself, or the files of a plain directory."""
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


def _documents(files: tuple[str, ...]) -> Iterator[dict[str, str]]:
    empty = True
    for path in map(Path, files):
        if path.is_dir():
            texts = _read_saved_dataset(path)
        else:
            texts = _READERS[plain_suffix(path)](path)
        for text in texts:
            lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
            if lines:
                yield {"text": "\n".join(lines)}
                empty = False
    if empty:
        raise DataError(f"the corpus is empty: no text in {', '.join(files)}")


def _read_text(path: Path) -> Iterator[str]:
    lines: list[str] = []
    for line in decoded_lines(path):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines)
            lines = []
    yield "".join(lines)


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(decoded_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number or a nesting may be too long
            raise DataError(f"{path}, line {number}: not JSON ({error})") from error
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise DataError(f'{path}, line {number}: needs an object with a string "text"')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{path}, line {number}: half a surrogate pair in the text") from error
        yield text


def _read_parquet(path: Path) -> Iterator[str]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_text_column(path, file.schema_arrow)
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                yield from _text_column(path, batch.column("text"))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({_one_line(error)})") from error


_READERS = {
    ".txt": _read_text,
    ".text": _read_text,
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
}


def _read_saved_dataset(path: Path) -> Iterator[str]:
    try:
        dataset = load_from_disk(str(path))
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        reason = _one_line(error)
        raise DataError(f"{path}: not a readable Hugging Face dataset ({reason})") from error
    if not isinstance(dataset, Dataset):
        raise DataError(f"{path}: holds the splits {', '.join(dataset)}; name one of its folders")
    _check_text_column(path, dataset.features.arrow_schema)
    for batch in dataset.with_format("arrow").iter(batch_size=1024):
        yield from _text_column(path, batch.column("text"))


def _check_text_column(path: Path, schema: pa.Schema) -> None:
    if "text" not in schema.names:
        raise DataError(f"{path}: no column `text`, only {', '.join(schema.names)}")
    kind = schema.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{path}: the column `text` must hold strings, got {kind}")


def _text_column(path: Path, column: pa.Array | pa.ChunkedArray) -> list[str]:
    if column.null_count:
        raise DataError(f"{path}: the column `text` has rows without a value")
    return column.to_pylist()


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
