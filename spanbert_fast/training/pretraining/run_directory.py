"""The directory of a pre-training run: its options, metrics, curve and summary."""

import json
import shutil
from pathlib import Path

from spanbert_fast.errors import UsageError
from spanbert_fast.schema import check, read_json, whole
from spanbert_fast.training.checkpoints import (
    UNFINISHED,
    checkpoints,
    damaged_checkpoints,
    ended_whole,
)
from spanbert_fast.training.run_files import (
    OPTIONS,
    refuse_to_replace,
    was_started,
    write_json,
)

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CURVE = "loss.png"
_FOLDERS = ("model", "shards", "tensorboard", UNFINISHED)


def finished(run: Path) -> dict | None:
    """The content of summary.json if the run has ended, else None."""
    path = run / SUMMARY
    content = check(path, read_json(path), {}) if path.is_file() else {}
    return content if "example" in content and ended_whole(run, content.get("steps")) else None


def has_results(run: Path) -> bool:
    """Whether a run has results that would be lost with it."""
    return was_started(run) and ((run / METRICS).exists() or bool(checkpoints(run)))


def read_metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl, without a last line that a killed run left incomplete."""
    path = run / METRICS
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(check(path, json.loads(line), {"step": whole(0, 2**63 - 1)}))
        except (ValueError, RecursionError):
            break
    return lines


def forget_after(run: Path, step: int) -> None:
    """Drop the metrics of steps that a resumed run will repeat."""
    from spanbert_fast.data.shards import write_whole

    kept = [line for line in read_metrics(run) if line["step"] <= step]
    write_whole(run / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())


def start(run: Path, options: dict, *, overwrite: bool) -> None:
    """Create the directory of a new run and write its options.

    Raises:
        UsageError: the directory has a run and `overwrite` is not set, or the new run reads from
            that run; or the directory has a foreign folder with a name that a run uses.
    """
    if has_results(run) and not overwrite:
        refuse_to_replace(run)
    if was_started(run):
        _check_inputs(run, options)
        _remove_run(run)
    strangers = [name for name in _FOLDERS if (run / name).exists()]
    if strangers:
        raise UsageError(f"--output-dir {run} has a `{strangers[0]}` that no run has made")
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / OPTIONS, options)


def _folders(run: Path) -> list[Path]:
    return [*checkpoints(run), *damaged_checkpoints(run), *(run / name for name in _FOLDERS)]


def _check_inputs(run: Path, options: dict) -> None:
    """Raise if the new run reads files that would be removed with the old run."""
    inputs = [("data", path) for path in options["data"]]
    inputs += [("tokenizer", options["tokenizer"]), ("init-from", options["init_from"])]
    folders = [folder.resolve() for folder in _folders(run)]
    for option, path in inputs:
        if path is not None and any(map(Path(path).resolve().is_relative_to, folders)):
            raise UsageError(
                f"--{option} {path} belongs to the run in --output-dir {run}, which would be "
                "removed: write to another directory"
            )


def _remove_run(run: Path) -> None:
    """Remove the files that a run writes, and no others."""
    for folder in _folders(run):
        shutil.rmtree(folder, ignore_errors=True)
    for name in (OPTIONS, METRICS, SUMMARY, CURVE):
        (run / name).unlink(missing_ok=True)
