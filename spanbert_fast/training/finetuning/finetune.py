"""A fine-tuning run: trains, chooses the best epoch, measures, predicts and exports."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from spanbert_fast.data.locks import locked
from spanbert_fast.data.tokenizer import load_wordpiece
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.hub import folder_of
from spanbert_fast.tasks.base import Example, Examples, Task
from spanbert_fast.tasks.windows import WindowDataset
from spanbert_fast.training.checkpoints import checkpoint_to_resume
from spanbert_fast.training.finetuning import run_directory
from spanbert_fast.training.finetuning.arguments import training_arguments
from spanbert_fast.training.finetuning.models import initial_model
from spanbert_fast.training.finetuning.options import FinetuneOptions
from spanbert_fast.training.finetuning.report import draw_finetuning, write_model_card
from spanbert_fast.training.finetuning.trainer import make_trainer
from spanbert_fast.training.precision import with_precision, with_weights_in
from spanbert_fast.training.result import RunResult
from spanbert_fast.training.run_files import write_json

logger = logging.getLogger("spanbert_fast")


def finetune(
    options: FinetuneOptions,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    model: nn.Module | None = None,
    data: Mapping[str, Sequence[Example]] | None = None,
) -> RunResult:
    """Start or resume a fine-tuning run; returns the content of its metrics.json.

        >>> from spanbert_fast.tasks.ner import Sentence
        >>> words = [Sentence("0", "", ["London", "had", "fog"], ["B-LOC", "O", "O"])] * 8
        >>> fields = {"task_options": {"max_seq_length": 32}, "batch_size": 4, "epochs": 1}
        >>> options = FinetuneOptions("ner", "runs/first/model", None, None, "runs/ner", **fields)
        >>> finetune(options, data={"train": words, "dev": words})["steps"]
        2

    It works in one process, and under torchrun with one call per process. There batch_size counts
    for each process; the first process writes the files, and all return the same figures.

    The output directory then has: model/ (weights of the best epoch, tokenizer, task.json, a model
    card), predictions of dev and test in the task's official format, metrics.json, curves.png,
    TensorBoard events, and the checkpoints of the best and the last epoch.

    Args:
        options: for a resumed run, as `options_of_run` gives them.
        resume: continue from the last undamaged checkpoint.
        overwrite: replace a run that the directory holds.
        callbacks: further callbacks of the Trainer.
        model: a model with the task's head, in place of one made from `options.model`, which then
            gives only the tokenizer; its weights are converted to `options.weights_dtype`.
        data: examples by split ("train", "dev", "test"), in place of those in the files.

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
        given = Given(callbacks, model, data)
        return _finetune(options, arguments, processes, given, resume=resume, overwrite=overwrite)


class Given(NamedTuple):
    """The arguments of `finetune` beside the options."""

    callbacks: Sequence[TrainerCallback]
    model: nn.Module | None
    data: Mapping[str, Sequence[Example]] | None


def _finetune(
    options: FinetuneOptions,
    arguments: TrainingArguments,
    processes: PartialState,
    given: Given,
    *,
    resume: bool,
    overwrite: bool,
) -> RunResult:
    run = Path(options.output_dir)
    if resume and (done := run_directory.finished(run)) is not None:
        logger.info("the run in %s is finished: nothing is trained", run)
        return RunResult(done, run)
    if not resume and processes.is_main_process:
        run_directory.check_run(run, options, overwrite=overwrite)
    task = options.make_task()
    data = read_all(task, options, given.data or {})
    start = folder_of(options.model, "--model")
    tokenizer = load_wordpiece(start)
    new_tokens = data["new_tokens"]
    if new_tokens:
        tokenizer.add_tokens(new_tokens, special_tokens=True)
    keep_fitting(task, data, tokenizer, options)
    set_seed(options.seed)  # the head's weights are drawn with it
    model = given.model
    if model is None:
        model = initial_model(
            start,
            task,
            tokenizer,
            engine=options.engine,
            dropout=options.dropout,
            new_tokens=new_tokens,
        )
    model = with_weights_in(options.weights_dtype, model)
    windows = WindowDataset(task, data["train"], tokenizer)
    checkpoint = checkpoint_to_resume(run, processes) if resume else None
    if not resume and processes.is_main_process:
        run_directory.start_run(run, options)
    logger.info(
        "%s: %s examples (%s windows, %s word pieces) to train on, %s for dev",
        task.name,
        f"{len(data['train']):,}",
        f"{len(windows):,}",
        f"{windows.tokens():,}",
        f"{len(data['dev']):,}",
    )
    trainer = make_trainer(options, arguments, task, model, tokenizer, windows, data["dev"])
    for callback in given.callbacks:
        trainer.add_callback(callback)
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
                path = run_directory.predictions_path(run, split, task)
                task.write(path, data[split], predictions)
    result["best_epoch"] = _best_epoch(trainer)
    result["steps"] = trainer.state.global_step
    result["seconds"] = round(seconds, 1)
    result["skipped"] = data["skipped"]
    if processes.is_main_process:
        write_json(run / run_directory.METRICS, result)
        draw_finetuning(run / "curves.png", trainer.state.log_history, task.metric)

    def finish(folder: Path) -> None:
        run_directory.save_task(task, folder)
        write_model_card(folder, options, task, result)

    trainer.export(run / "model", finish)
    processes.wait_for_everyone()
    return RunResult(result, run)


def read_all(
    task: Task, options: FinetuneOptions, ready: Mapping[str, Sequence[Example]] = {}
) -> dict:
    """The examples of each given split, and under `skipped` the number of bad ones.

    Args:
        ready: splits that need not be read.
    """
    data: dict = {"skipped": {}}
    for split in ("train", "dev"):
        if split not in ready and getattr(options, split) is None:
            raise UsageError(f"--{split} must be given")
    for split in ("train", "dev", "test"):
        path = getattr(options, split)
        if split in ready:
            examples, path = Examples(list(ready[split]), 0), f"data[{split!r}]"
        elif path is None:
            continue
        else:
            examples = task.read(path, skip_bad=options.skip_bad)
        most = {"train": options.max_train, "dev": options.max_dev}.get(split)
        data[split] = _evenly(examples.items, most)
        _count_skipped(data, split, examples.skipped, path)
        # from all of it, even if max_train uses a part: dev may have the rare labels
        if split == "train":
            task.learn(examples.items)
            data["new_tokens"] = task.special_tokens(examples.items)
        else:
            known = task.check_labels(data[split], path, skip_bad=options.skip_bad)
            data[split] = known.items
            _count_skipped(data, split, known.skipped, path)
        if split == "dev" and not task.has_answers(data[split]):
            raise DataError(f"{path}: has no answers to measure by")
    return data


def keep_fitting(task: Task, data: dict, tokenizer, options: FinetuneOptions) -> None:
    """Remove examples that do not fit from the data of `read_all`, in place; or raise DataError."""
    for split in ("train", "dev", "test"):
        if split in data:
            path = getattr(options, split) or f"data[{split!r}]"
            examples = task.fitting(data[split], tokenizer, path, skip_bad=options.skip_bad)
            data[split] = examples.items
            _count_skipped(data, split, examples.skipped, path)


def _count_skipped(data: dict, split: str, skipped: int, path: str) -> None:
    if skipped:
        data["skipped"][split] = data["skipped"].get(split, 0) + skipped
        logger.warning("%s: %s bad examples left out", path, f"{skipped:,}")


def _evenly(items: list, most: int | None) -> list:
    """At most `most` of the items, evenly spaced and in their order."""
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
        first = results[0][split][name]
        is_one_count = isinstance(first, int) and spread == 0.0
        figures[name] = (first if is_one_count else values.mean().item(), spread)
    return figures
