"""Checkpoints of a run that are there whole or not at all."""

import os
import re
import shutil
from pathlib import Path

UNFINISHED = "unfinished"  # where a checkpoint is written before it gets its name
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, oldest step first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in run.glob("checkpoint-*"))
    found = [(int(match[1]), path) for match, path in matches if match]
    return [path for _, path in sorted(found)]


def last_checkpoint(run: Path) -> Path | None:
    """The checkpoint to resume from; what a killed run left half written is removed."""
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)
    return next(reversed(checkpoints(run)), None)


def checkpoint_step(path: Path) -> int:
    """The optimiser step that a checkpoint was made after."""
    return int(_NAME.fullmatch(path.name)[1])


def publish(written: Path, run: Path, keep: int | None) -> None:
    """Give a wholly written checkpoint its place in the run, then drop the oldest beyond `keep`.

    The bytes are on the disk before the name is, and a rename cannot stop half way.
    """
    for file in written.rglob("*"):
        if file.is_file():
            _flush(file)
    target = run / written.name
    if target.exists():
        shutil.rmtree(target)
    os.replace(written, target)
    _flush(run)
    for old in checkpoints(run)[: -keep if keep else 0]:
        shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
