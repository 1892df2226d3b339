"""Checkpoints and models of a run. Each is complete or does not exist."""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanbert_fast import digests
from spanbert_fast.errors import DataError

if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.getLogger("spanbert_fast")

STATE = "trainer_state.json"
UNFINISHED = "unfinished"  # a checkpoint is written into this folder before it gets its name
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, oldest step first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in run.glob("checkpoint-*"))
    found = [(int(match[1]), path) for match, path in matches if match]
    return [path for _, path in sorted(found)]


def damaged_checkpoints(run: Path) -> list[Path]:
    """The checkpoints that `checkpoint_to_resume` has set aside."""
    return sorted(run.glob("damaged-checkpoint-*"))


def checkpoint_step(path: Path) -> int:
    """The optimiser step after which a checkpoint was made."""
    return int(path.name.removeprefix("checkpoint-"))


def ended_whole(run: Path, steps: int | None) -> bool:
    """Whether a run of so many steps has left its model and its last checkpoint, and both are
    undamaged."""
    found = checkpoints(run)
    return (
        bool(found)
        and checkpoint_step(found[-1]) == steps
        and all(digests.damage(folder) is None for folder in (run / "model", *found))
    )


def checkpoint_to_resume(run: Path, state: "PartialState") -> Path | None:
    """The newest undamaged checkpoint, the same in every process; None if the run has none yet.

    Removes unfinished folders of a killed run. A damaged checkpoint is logged and renamed.

    Raises:
        DataError: there are checkpoints, and all of them are damaged.
    """
    from accelerate.utils import broadcast_object_list

    found: list[Path | None] = [None]
    if state.is_main_process:
        shutil.rmtree(run / UNFINISHED, ignore_errors=True)
        found = [_newest_whole(run)]
    broadcast_object_list(found)
    logger.info("resuming from %s", found[0] or "the beginning: there is no checkpoint yet")
    return found[0]


def _newest_whole(run: Path) -> Path | None:
    faults: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints(run)):
        fault = digests.damage(checkpoint)
        if fault is None:
            _check_best(checkpoint)
            for path in faults:
                _set_aside(path)
            return checkpoint
        logger.warning("%s is damaged and not gone on with: %s", checkpoint, fault)
        faults[checkpoint] = fault
    if faults:
        newest, fault = next(iter(faults.items()))
        raise DataError(f"{run}: no checkpoint is whole; {newest.name}: {fault}")
    return None


def _check_best(checkpoint: Path) -> None:
    """Raise DataError if the checkpoint with the best weights is damaged."""
    best = json.loads((checkpoint / STATE).read_text(encoding="utf-8")).get("best_global_step")
    if best:
        path = checkpoint.with_name(f"checkpoint-{best}")
        fault = digests.damage(path)
        if fault is not None:
            raise DataError(f"{path}, the best one so far, is damaged: {fault}")


def _set_aside(checkpoint: Path) -> None:
    """Rename a damaged checkpoint, so that it is neither counted nor replaced."""
    target = checkpoint.with_name(f"damaged-{checkpoint.name}")
    while target.exists():
        target = target.with_name(target.name + "+")
    os.replace(checkpoint, target)
    logger.warning("%s is now called %s", checkpoint, target.name)


def publish(written: Path, target: Path, config: Any = None) -> None:
    """Move a completely written folder to its place, and replace what was there.

    Digests and content are on the disk before the name is, and a rename is atomic.

    Args:
        config: see `digests.write_digests`.
    """
    digests.write_digests(written, config)
    if target.exists():
        remove(target)
    os.replace(written, target)
    digests.flush(target.parent)


def remove(folder: Path) -> None:
    """Remove a folder of a run. It is renamed first: a kill leaves no half-removed one."""
    unfinished = folder.parent / UNFINISHED
    unfinished.mkdir(exist_ok=True)
    old = unfinished / f"old-{folder.name}"
    shutil.rmtree(old, ignore_errors=True)
    os.replace(folder, old)
    shutil.rmtree(old)


def drop_old(run: Path, keep: int | None, best: str | None = None) -> None:
    """Remove the oldest checkpoints beyond `keep`, but not the newest nor the one named `best`."""
    found = checkpoints(run)
    kept = {path for path in found[-1:] + [run / str(best)] if path in found}
    surplus = len(found) - max(keep, len(kept)) if keep else 0
    for path in [path for path in found if path not in kept][: max(surplus, 0)]:
        remove(path)
