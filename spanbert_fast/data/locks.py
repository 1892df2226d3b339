"""A lock by which one process at a time writes into a directory."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from spanbert_fast.errors import UsageError

logger = logging.getLogger("spanbert_fast")

FILE = ".lock"
_held: dict[Path, int] = {}  # descriptors of the open lock files


def _let_go_in_child() -> None:
    """Close the locks in a forked worker, which may outlive this process."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def locked(directory: str | Path) -> Iterator[None]:
    """Create a directory if it is missing, and lock other processes out of it inside the block.

    The lock is released when the process ends, even by a kill. Its holder may take it again. A
    directory that was created here and stayed empty is removed.

    Raises:
        UsageError: another process holds the lock, or the path is a file.
    """
    directory = Path(directory).resolve()
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"--output-dir {directory} is a file")
    if directory in _held:
        yield
        return
    is_new = not directory.exists()
    _held[directory] = _take(directory)
    try:
        yield
    finally:
        (directory / FILE).unlink(missing_ok=True)
        os.close(_held.pop(directory))
        if is_new:
            with contextlib.suppress(OSError):  # the directory is not empty
                directory.rmdir()


def _take(directory: Path) -> int:
    """The open lock file, which names this process."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 100).decode(errors="replace").strip()
            os.close(descriptor)
            raise UsageError(
                f"--output-dir {directory} is being written by another process ({holder})"
            ) from None
        except OSError as error:  # the file system has no locks
            logger.warning(
                "%s: cannot be locked (%s): see to it that no other process writes there",
                directory,
                error.strerror,
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(directory / FILE)):
                break
        os.close(descriptor)  # the previous holder has just removed this file
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
    return descriptor
