"""Text files, compressed or not, line by line, with errors that name the place."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from spanbert_fast.errors import DataError

OPENERS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    # pyarrow's reader goes on across frames and refuses a truncated file
    ".zst": lambda path: io.BufferedReader(pa.input_stream(str(path), compression="zstd")),
}
_READ_ERRORS = (EOFError, OSError, lzma.LZMAError, zlib.error)


def plain_suffix(path: Path) -> str:
    """The suffix below that of a compression, in small letters: .txt for a.TXT.gz."""
    return (path.with_suffix("") if path.suffix in OPENERS else path).suffix.lower()


def decoded_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, with their ends, without a byte order mark.

    Args:
        path: .gz, .xz, .bz2 and .zst are decompressed.

    Raises:
        DataError: it cannot be read, or holds other bytes than UTF-8.
    """
    offset = 0
    try:
        stream = OPENERS.get(path.suffix, lambda path: path.open("rb"))(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror or error})") from error
    with stream:
        lines = iter(stream)
        while True:
            try:
                line = next(lines, None)
            except _READ_ERRORS as error:
                raise DataError(f"{path}: cannot be read after byte {offset} ({error})") from error
            if line is None:
                return
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                place = "of the uncompressed text" if path.suffix in OPENERS else "of the file"
                raise DataError(
                    f"{path}: not UTF-8 at byte {offset + error.start} {place} "
                    f"(0x{line[error.start]:02x}, {error.reason})"
                ) from error
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(line)
