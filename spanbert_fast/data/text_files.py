"""Text files, compressed or not, in pieces of bounded size, with errors that name the place."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from spanbert_fast.errors import DataError
from spanbert_fast.extras import require
from spanbert_fast.schema import regular_file


def _zstd(path: Path) -> BinaryIO:
    """Open a file with pyarrow's reader, which reads all frames and refuses a truncated file."""
    require(f"{path}", "train", ("pyarrow",))
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


OPENERS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": lambda path: cast(BinaryIO, gzip.open(path)),
    ".xz": lambda path: cast(BinaryIO, lzma.open(path)),
    ".bz2": lambda path: cast(BinaryIO, bz2.open(path)),
    ".zst": _zstd,
}
_READ_ERRORS = (EOFError, OSError, lzma.LZMAError, zlib.error, MemoryError)

# limit of a line, and of everything else that has to be in memory at once
MOST_LINE_BYTES = 1 << 26
MOST_JSON_BYTES = 1 << 30  # limit of a file that is one JSON document
# Text compresses to a fifth, tables to a twentieth. A much higher ratio is an attack on memory.
_MOST_RATIO = 100
_FREE_BYTES = 1 << 23  # smaller texts are not checked for their ratio


class TooLong(DataError):
    """A line, or the text of a row, is longer than allowed."""


def plain_suffix(path: Path) -> str:
    """The suffix before that of a compression, in lower case: .txt for a.TXT.gz."""
    return (path.with_suffix("") if path.suffix in OPENERS else path).suffix.lower()


def decoded_lines(path: Path, most_bytes: int = MOST_LINE_BYTES) -> Iterator[str]:
    """The lines of a UTF-8 file, with their line ends and without a byte order mark.

    Args:
        path: a file; .gz, .xz, .bz2 and .zst are decompressed.
        most_bytes: the limit of a line.

    Raises:
        DataError: the file cannot be read, has a longer line, expands to more than 100 times its
            size, or is not UTF-8.
    """
    compressed = path.suffix in OPENERS
    most_in_all = max(_FREE_BYTES, _MOST_RATIO * regular_file(path).stat().st_size)
    offset = number = 0
    try:
        stream = OPENERS.get(path.suffix, lambda path: path.open("rb"))(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror or error})") from error
    with stream:
        while True:
            try:
                line = stream.readline(most_bytes + 1)
            except _READ_ERRORS as error:
                why = str(error) or type(error).__name__
                raise DataError(f"{path}: cannot be read after byte {offset} ({why})") from error
            if not line:
                return
            number += 1
            if len(line) > most_bytes:
                raise TooLong(
                    f"{path}: line {number} must have at most {most_bytes:,} bytes, has more"
                )
            if compressed and offset + len(line) > most_in_all:
                raise DataError(
                    f"{path}: must expand to at most {_MOST_RATIO} times its size, does to more"
                )
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                place = "of the uncompressed text" if compressed else "of the file"
                raise DataError(
                    f"{path}: not UTF-8 at byte {offset + error.start} {place} "
                    f"(0x{line[error.start]:02x}, {error.reason}); {_remedy(line, offset)}"
                ) from error
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(line)


def _remedy(line: bytes, offset: int) -> str:
    is_wide = offset == 0 and line[:2] in (b"\xff\xfe", b"\xfe\xff")
    return f"convert it: iconv -f {'UTF-16' if is_wide else 'ISO-8859-1'} -t UTF-8"


def first_line(path: Path) -> str:
    """The first line that is not blank, or "" if there is none. It may be a whole document."""
    return next((line for line in decoded_lines(path, MOST_JSON_BYTES) if line.strip()), "")


def decoded_text(path: Path) -> str:
    """All of a file that has to be read at once, such as a JSON document.

    Raises:
        DataError: the file has more than `MOST_JSON_BYTES`; or see `decoded_lines`.
    """
    parts, size = [], 0
    for line in decoded_lines(path, MOST_JSON_BYTES):
        size += len(line)
        if size > MOST_JSON_BYTES:
            raise DataError(
                f"{path}: must have at most {MOST_JSON_BYTES:,} characters to be read as one, has "
                "more"
            )
        parts.append(line)
    return "".join(parts)


def lines_of(text: str) -> Iterator[str]:
    """The parts of a text between its line feeds, one at a time. `str.split` would make them all at
    once, and short ones take many times the text's memory."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def pieces(text: str, most: int) -> Iterator[str]:
    """A text in parts of at most `most` characters, cut before a blank or a line's end.

    WordPiece makes the same tokens of the parts as of the whole. A part without a blank is cut in
    the middle of a word.
    """
    start = 0
    while len(text) - start > most:
        end = max(text.rfind(blank, start + 1, start + most) for blank in " \n")
        end = end if end > 0 else start + most
        yield text[start:end]
        start = end
    yield text[start:]
