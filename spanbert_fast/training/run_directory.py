"""The directory of a run: its options, metrics, curves and summary."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.schema import Rule, check, read_json, whole
from spanbert_fast.training.checkpoints import (
    UNFINISHED,
    checkpoints,
    damaged_checkpoints,
    ended_whole,
)

OPTIONS = "options.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CURVE = "loss.png"
_FOLDERS = ("model", "shards", "tensorboard", UNFINISHED)


def write_json(path: Path, content: dict) -> None:
    """Replace the file in one step."""
    from spanbert_fast.data.shards import write_whole

    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def read_object(path: Path, rules: Mapping[str, Rule], *, all_of_them: bool = True) -> dict:
    """The JSON object in a file of a run; see `schema.check`.

    Raises:
        DataError: the file is missing, or its content is wrong.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file; is this the directory of a run?")
    return check(path, read_json(path), rules, all_of_them=all_of_them)


def was_started(run: Path) -> bool:
    """Whether there is a run to resume."""
    return (run / OPTIONS).exists()


def finished(run: Path) -> dict | None:
    """What summary.json of a run says that has ended; None where there is more to do."""
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


def draw_curves(run: Path, summary: dict) -> Path:
    """Loss over steps as a PNG that reads without colour; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(run)
    steps = [line["step"] for line in lines]
    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, label, style in (
        ("mlm_loss", "masked LM, training", "-"),
        ("sbo_loss", "span boundary, training", "--"),
    ):
        axis.plot(steps, [line[name] for line in lines], style, label=label, linewidth=1.2)
    last = steps[-1] if steps else 0
    for name, label, marker in (
        ("mlm_loss", "masked LM, held out", "o"),
        ("sbo_loss", "span boundary, held out", "s"),
    ):
        held_out = [summary[when][name] for when in ("held_out_before", "held_out_after")]
        axis.plot([0, last], held_out, marker, label=label, markerfacecolor="none", color="black")
    axis.axhline(
        summary["unigram_cross_entropy"],
        linestyle=":",
        color="black",
        label="unigram model, held out",
    )
    axis.set_xlabel("optimiser step")
    axis.set_ylabel("cross-entropy per token (nats)")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(run / CURVE, dpi=120)
    pyplot.close(figure)
    return run / CURVE


def start(run: Path, options: dict, *, overwrite: bool) -> None:
    """Create the directory of a new run and write its options.

    Raises:
        UsageError: the directory has a run and `overwrite` is not set, or the new run reads from
            that run; or something else has a name that a run writes.
    """
    if has_results(run) and not overwrite:
        raise UsageError(
            f"--output-dir {run} already holds a run; go on with --resume, or replace it with "
            "--overwrite"
        )
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
