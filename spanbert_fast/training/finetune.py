"""A fine-tuning run: trains, chooses the best epoch, measures, predicts and exports."""

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import Trainer, TrainingArguments, set_seed

from spanbert_fast.data.locks import locked
from spanbert_fast.data.tokenizer import load_tokenizer
from spanbert_fast.errors import DataError
from spanbert_fast.tasks.base import Task
from spanbert_fast.tasks.windows import WindowDataset
from spanbert_fast.training import finetune_run, run_directory
from spanbert_fast.training.checkpoints import checkpoint_to_resume
from spanbert_fast.training.finetune_models import initial_model
from spanbert_fast.training.finetune_options import FinetuneOptions
from spanbert_fast.training.finetune_report import draw_finetuning, write_model_card
from spanbert_fast.training.finetune_trainer import make_trainer, training_arguments
from spanbert_fast.training.precision import with_precision

logger = logging.getLogger("spanbert_fast")


def finetune(options: FinetuneOptions, *, resume: bool = False, overwrite: bool = False) -> dict:
    """Run or resume a fine-tuning; returns the content of its metrics.json.

    Works in one process, and under torchrun with one call per process. There batch_size is that of
    each process; the first process writes, and all return the same figures.

    The output directory then has: model/ (weights of the best epoch, tokenizer, task.json, a model
    card), predictions of dev and test in the task's official format, metrics.json, curves.png,
    TensorBoard events, and the checkpoints of the best and the last epoch.

    Args:
        options: for a resumed run, as `options_of_run` gives them.
        resume: continue from the last whole checkpoint.
        overwrite: replace a run that is in the directory.

    Raises:
        UsageError: the options cannot be met, or another process writes there.
        DataError: the content of a file is wrong.
        OSError: a checkpoint could not be written; earlier ones stay.
        FloatingPointError: the loss, a weight or a prediction is no longer finite.
    """
    options = with_precision(options)
    arguments = training_arguments(options)
    processes = PartialState()
    with locked(options.output_dir) if processes.is_main_process else nullcontext():
        return _finetune(options, arguments, processes, resume=resume, overwrite=overwrite)


def _finetune(
    options: FinetuneOptions,
    arguments: TrainingArguments,
    processes: PartialState,
    *,
    resume: bool,
    overwrite: bool,
) -> dict:
    run = Path(options.output_dir)
    if not resume and processes.is_main_process:
        finetune_run.check_run(run, options, overwrite=overwrite)
    task = options.make_task()
    data = read_all(task, options)
    tokenizer = load_tokenizer(options.model)
    new_tokens = task.special_tokens(data["train"])
    if new_tokens:
        tokenizer.add_tokens(new_tokens, special_tokens=True)
    keep_fitting(task, data, tokenizer, options)
    set_seed(options.seed)  # of the head's weights
    model = initial_model(
        options.model,
        task,
        tokenizer,
        engine=options.engine,
        dropout=options.dropout,
        new_tokens=new_tokens,
    )
    windows = WindowDataset(task, data["train"], tokenizer)
    checkpoint = checkpoint_to_resume(run, processes) if resume else None
    if not resume and processes.is_main_process:
        finetune_run.start_run(run, options)
    logger.info(
        "%s: %s examples (%s windows, %s word pieces) to train on, %s for dev",
        task.name,
        f"{len(data['train']):,}",
        f"{len(windows):,}",
        f"{windows.tokens():,}",
        f"{len(data['dev']):,}",
    )
    trainer = make_trainer(options, arguments, task, model, tokenizer, windows, data["dev"])
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - began

    result = {"task": task.name, "seed": options.seed, "engine": options.engine}
    for split in ("dev", "test"):
        if split in data:
            predictions = trainer.predictions(data[split])
            if task.has_answers(data[split]):
                result[split] = task.metrics(data[split], predictions)
            if processes.is_main_process:
                path = finetune_run.predictions_path(run, split, task)
                task.write(path, data[split], predictions)
    result["best_epoch"] = _best_epoch(trainer)
    result["seconds"] = round(seconds, 1)
    result["skipped"] = data["skipped"]
    if processes.is_main_process:
        run_directory.write_json(run / finetune_run.METRICS, result)
        draw_finetuning(run / "curves.png", trainer.state.log_history, task.metric)

    def finish(folder: Path) -> None:
        finetune_run.save_task(task, folder)
        write_model_card(folder, options, task, result)

    trainer.export(run / "model", finish)
    processes.wait_for_everyone()
    return result


def read_all(task: Task, options: FinetuneOptions) -> dict:
    """The examples of each given split, and under `skipped` the numbers of bad ones."""
    data: dict = {"skipped": {}}
    for split in ("train", "dev", "test"):
        path = getattr(options, split)
        if path is None:
            continue
        examples = task.read(path, skip_bad=options.skip_bad)
        most = {"train": options.max_train, "dev": options.max_dev}.get(split)
        data[split] = _evenly(examples.items, most)
        _count_skipped(data, split, examples.skipped, path)
        if split == "train":
            task.learn(data[split])
        else:
            known = task.check_labels(data[split], path, skip_bad=options.skip_bad)
            data[split] = known.items
            _count_skipped(data, split, known.skipped, path)
        if split == "dev" and not task.has_answers(data[split]):
            raise DataError(f"{path}: has no answers to measure by")
    return data


def keep_fitting(task: Task, data: dict, tokenizer, options: FinetuneOptions) -> None:
    """Remove from the data of `read_all`, in place, what does not fit; or raise DataError."""
    for split in ("train", "dev", "test"):
        if split in data:
            path = getattr(options, split)
            examples = task.fitting(data[split], tokenizer, path, skip_bad=options.skip_bad)
            data[split] = examples.items
            _count_skipped(data, split, examples.skipped, path)


def _count_skipped(data: dict, split: str, skipped: int, path: str) -> None:
    if skipped:
        data["skipped"][split] = data["skipped"].get(split, 0) + skipped
        logger.warning("%s: %s bad examples left out", path, f"{skipped:,}")


def _evenly(items: list, most: int | None) -> list:
    """At most `most` of the items, at even distances, in their order."""
    if most is None or most >= len(items):
        return items
    return [items[i * len(items) // most] for i in range(most)]


def _best_epoch(trainer: Trainer) -> float | None:
    key = str(trainer.args.metric_for_best_model)
    key = key if key.startswith("eval_") else f"eval_{key}"
    lines = [line for line in trainer.state.log_history if key in line]
    return max(lines, key=lambda line: line[key])["epoch"] if lines else None


def mean_and_deviation(results: Sequence[dict], split: str) -> dict[str, tuple[float, float]]:
    """Each figure's mean and sample standard deviation over runs that differ by their seed."""
    figures = {}
    for name in results[0][split]:
        values = torch.tensor([result[split][name] for result in results], dtype=torch.float64)
        spread = values.std().item() if len(values) > 1 else 0.0
        figures[name] = (values.mean().item(), spread)
    return figures
