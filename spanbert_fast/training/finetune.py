"""Fine-tunes a checkpoint on a task: train, choose the best epoch, measure, predict, export."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback

from spanbert_fast.data.tokenizer import load_tokenizer
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks.base import Example, Task
from spanbert_fast.tasks.predict import predict
from spanbert_fast.tasks.windows import WindowCollator, WindowDataset
from spanbert_fast.training import finetune_run, run_directory
from spanbert_fast.training.finetune_models import initial_model
from spanbert_fast.training.finetune_options import FinetuneOptions
from spanbert_fast.training.finetune_report import draw_finetuning, write_model_card
from spanbert_fast.training.progress import Progress

logger = logging.getLogger("spanbert_fast")


def finetune(options: FinetuneOptions, *, resume: bool = False, overwrite: bool = False) -> dict:
    """Run (or go on with) a fine-tuning; returns what its metrics.json holds.

    Works in one process and, one call per process, under torchrun, where batch_size is that of each
    process; the first one writes, and all return the same figures.

    Leaves in the output directory: model/ (weights of the best epoch, tokenizer, task.json, a model
    card), predictions of dev and test in the task's official format, metrics.json, curves.png,
    TensorBoard's events, and the checkpoints of the best and the last epoch.

    Args:
        options: for a resumed run, as `options_of_run` gives them.
        resume: go on from the last whole checkpoint.
        overwrite: replace a run that the directory holds.

    Raises:
        UsageError: the options cannot be met.
        DataError: a file does not hold what it should.
    """
    run = Path(options.output_dir)
    arguments = training_arguments(options)
    processes = PartialState()
    task = options.make_task()
    data = read_all(task, options)
    tokenizer = load_tokenizer(options.model)
    new_tokens = task.special_tokens(data["train"])
    if new_tokens:
        tokenizer.add_tokens(new_tokens, special_tokens=True)
    keep_fitting(task, data, tokenizer, options)
    set_seed(options.seed)  # of the head's weights
    model = initial_model(
        options.model, task, tokenizer, engine=options.engine, dropout=options.dropout
    )
    windows = WindowDataset(task, data["train"], tokenizer)
    with processes.main_process_first():  # which removes what is left half written
        checkpoint = finetune_run.last_whole_checkpoint(run) if resume else None
    if not resume and processes.is_main_process:
        finetune_run.start_run(run, options, overwrite=overwrite)
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
        _export(run, options, task, trainer, tokenizer, result)
    processes.wait_for_everyone()
    return result


def read_all(task: Task, options: FinetuneOptions) -> dict:
    """The examples of each split that is given, and under `skipped` how many were bad."""
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
    """Leave out of the data of `read_all`, in place, what is a misfit, or raise DataError."""
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
    """`most` of the items, at even distances and in their order."""
    if most is None or most >= len(items):
        return items
    return [items[i * len(items) // most] for i in range(most)]


class FinetuneTrainer(Trainer):
    """A Trainer that evaluates by predicting, decoding and measuring a task's examples."""

    def __init__(self, *args, task: Task, **kwargs):
        super().__init__(*args, **kwargs)
        self.task = task

    def predictions(self, examples: Sequence[Example]) -> list:
        """The model's predictions: in every process all of them, each made by one process, so that
        all processes measure and decide the same."""
        processes, rank = self.args.world_size, self.args.process_index
        autocast = self.accelerator.autocast
        own = examples[rank::processes]
        made = predict(self.model, self.task, own, self.processing_class, autocast=autocast)
        if processes == 1:
            return made
        parts: list[list] = [[]] * processes
        torch.distributed.all_gather_object(parts, made)
        merged: list = [None] * len(examples)
        for rank, part in enumerate(parts):
            merged[rank::processes] = part
        return merged

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """The task's figures on its dev examples."""
        examples = self.eval_dataset if eval_dataset is None else eval_dataset
        figures = self.task.metrics(examples, self.predictions(examples))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def training_arguments(options: FinetuneOptions) -> TrainingArguments:
    """The Trainer's arguments; joins the process group under torchrun.

    Raises:
        UsageError: a field of `options.training_arguments` is unknown or cannot be.
    """
    on_gpu = torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    fields = {
        "output_dir": options.output_dir,
        "num_train_epochs": options.value("epochs"),
        "per_device_train_batch_size": int(options.value("batch_size")),
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "learning_rate": options.value("learning_rate"),
        # below 1 it is a share of the steps
        "warmup_steps": options.warmup_ratio if options.warmup_ratio < 1 else 0.999999,
        "lr_scheduler_type": "linear",
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        "optim": "adamw_torch_fused",
        "bf16": options.precision == "bf16",
        "fp16": options.precision == "fp16",
        "seed": options.seed,
        "data_seed": options.seed,
        "use_cpu": not on_gpu,
        "ddp_backend": "gloo" if processes > 1 and not on_gpu else None,
        "ddp_find_unused_parameters": False,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,  # and the best one
        "load_best_model_at_end": True,
        "metric_for_best_model": options.make_task().metric,
        "greater_is_better": True,
        "logging_steps": 0.02,  # a share of the steps
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": "none",
        "log_level": "error",
    }
    try:
        arguments = TrainingArguments(**{**fields, **options.training_arguments})
    except (TypeError, ValueError) as error:
        raise UsageError(f"--set: {str(error).splitlines()[0]}") from error
    if arguments.fsdp:  # each process predicts a share of its own, in batches of its own number
        raise UsageError("--set fsdp: fine-tuning takes no FSDP; under torchrun it uses DDP")
    if arguments.n_gpu > 1:  # DataParallel would cut a packed batch into pieces
        logger.info(
            "one of %d GPUs is used: torchrun --nproc-per-node %d -m spanbert_fast finetune ... "
            "uses all of them", arguments.n_gpu, arguments.n_gpu,
        )  # fmt: skip
        arguments._n_gpu = 1
    return arguments


def make_trainer(
    options: FinetuneOptions,
    arguments: TrainingArguments,
    task: Task,
    model: torch.nn.Module,
    tokenizer,
    windows: WindowDataset,
    dev: Sequence[Example],
) -> FinetuneTrainer:
    """The Trainer of a run."""
    packed = options.engine == "spanbert_fast"
    trainer = FinetuneTrainer(
        model=model,
        args=arguments,
        train_dataset=windows,
        eval_dataset=list(dev),
        data_collator=WindowCollator(packed, tokenizer.pad_token_id or 0),
        processing_class=tokenizer,
        task=task,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(Progress(lambda logs: _log_line(task, logs)))
    tensorboard = TensorBoardCallback()
    tensorboard.logging_dir = str(Path(options.output_dir) / "tensorboard")
    trainer.add_callback(tensorboard)
    if options.patience:
        trainer.add_callback(EarlyStoppingCallback(options.patience))
    return trainer


def _log_line(task: Task, logs: dict) -> str | None:
    if "loss" in logs:
        return f"loss {float(logs['loss']):.4f}  lr {float(logs['learning_rate']):.2e}"
    key = f"eval_{task.metric}"
    return f"dev {task.metric} {float(logs[key]):.4f}" if key in logs else None


def _best_epoch(trainer: Trainer) -> float | None:
    key = trainer.args.metric_for_best_model
    key = key if key.startswith("eval_") else f"eval_{key}"
    lines = [line for line in trainer.state.log_history if key in line]
    return max(lines, key=lambda line: line[key])["epoch"] if lines else None


def _export(run: Path, options, task: Task, trainer: Trainer, tokenizer, result: dict) -> None:
    model_dir = run / "model"
    trainer.model.save_pretrained(model_dir)
    tokenizer.save_pretrained(model_dir)
    finetune_run.save_task(task, model_dir)
    run_directory.write_json(run / finetune_run.METRICS, result)
    write_model_card(model_dir, options, task, result)
    draw_finetuning(run / "curves.png", trainer.state.log_history, task.metric)


def mean_and_deviation(results: Sequence[dict], split: str) -> dict[str, tuple[float, float]]:
    """Each figure's mean and sample standard deviation over runs that differ by their seed."""
    figures = {}
    for name in results[0][split]:
        values = torch.tensor([result[split][name] for result in results], dtype=torch.float64)
        spread = values.std().item() if len(values) > 1 else 0.0
        figures[name] = (values.mean().item(), spread)
    return figures
