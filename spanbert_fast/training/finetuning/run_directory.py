"""The directory of a fine-tuning run: what is in it, and whether it can be resumed."""

import shutil
from pathlib import Path

from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.schema import OBJECT, check, one_of, read_json, rules_of, whole
from spanbert_fast.tasks import names, task_class
from spanbert_fast.tasks.base import Task
from spanbert_fast.training.checkpoints import (
    UNFINISHED,
    checkpoints,
    damaged_checkpoints,
    ended_whole,
)
from spanbert_fast.training.finetuning.options import FinetuneOptions
from spanbert_fast.training.run_files import (
    OPTIONS,
    refuse_to_replace,
    was_started,
    write_json,
)

METRICS = "metrics.json"
TASK_FILE = "task.json"  # beside a fine-tuned model, for `predict`


def finished(run: Path) -> dict | None:
    """The content of metrics.json if the run has ended, else None."""
    if not (run / METRICS).is_file():
        return None
    content = check(run / METRICS, read_json(run / METRICS), {"dev": OBJECT})
    return content if ended_whole(run, content.get("steps")) else None


def check_run(run: Path, options: FinetuneOptions, *, overwrite: bool) -> None:
    """Raise UsageError if the directory holds a run that must not be replaced."""
    if was_started(run):
        if not overwrite:
            refuse_to_replace(run)
        if Path(options.model).resolve().is_relative_to(run.resolve()):
            raise UsageError(
                f"--model {options.model} belongs to the run in --output-dir {run}, which would "
                "be removed: write to another directory"
            )


def start_run(run: Path, options: FinetuneOptions) -> None:
    """Remove an earlier run from the directory, and write the options of the new one."""
    if was_started(run):
        folders = [run / name for name in ("model", "tensorboard", UNFINISHED)]
        for folder in (*checkpoints(run), *damaged_checkpoints(run), *folders):
            shutil.rmtree(folder, ignore_errors=True)
        (run / METRICS).unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / OPTIONS, options.to_json())


def predictions_path(run: Path, split: str, task: Task) -> Path:
    """The path of the predictions of a split. Creates its folder."""
    folder = run / f"predictions-{split}"
    folder.mkdir(exist_ok=True)
    return folder / task.predictions_file


def save_task(task: Task, model_dir: Path) -> None:
    """Write the task's arguments beside the model, for `predict`."""
    write_json(model_dir / TASK_FILE, {"task": task.name, **task.state()})


def load_task(model_dir: Path, name: str | None = None) -> Task:
    """The task that a model was fine-tuned on.

    Raises:
        DataError: there is no task.json beside the model.
        UsageError: the task is not `name`.
    """
    path = model_dir / TASK_FILE
    if not path.exists():
        raise DataError(f"{path}: there is no such file; is this a model of `finetune`?")
    state = dict(check(path, read_json(path), {"task": one_of(*names())}))
    kind = state.pop("task")
    rules = {**rules_of(task_class(kind).__init__), "max_seq_length": whole(1, 1 << 20)}
    check(path, state, rules, all_of_them=False)
    if name is not None and kind != name:
        raise UsageError(f"{model_dir} was fine-tuned on {kind}, not on {name}")
    try:
        return task_class(kind)(**state)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: makes no task {kind} ({error})") from error
