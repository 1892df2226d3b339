"""The Trainer of a fine-tuning run."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, TrainingArguments

from spanbert_fast.tasks.base import DocumentTask, Example, Task
from spanbert_fast.tasks.predict import predict
from spanbert_fast.tasks.windows import WindowCollator, WindowDataset
from spanbert_fast.training.finetuning.options import FinetuneOptions
from spanbert_fast.training.progress import show_progress
from spanbert_fast.training.whole_checkpoints import WholeCheckpoints

logger = logging.getLogger("spanbert_fast")


class FinetuneTrainer(WholeCheckpoints):
    """A Trainer whose evaluation predicts, decodes and measures the examples of a task."""

    eval_dataset: Sequence[Example]

    def __init__(self, *args, task: Task, head_learning_rate: float | None, **kwargs):
        super().__init__(*args, **kwargs)
        self.task = task
        self.head_learning_rate = head_learning_rate

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """The Trainer's optimiser; if the head has its own learning rate, its parameters are in
        groups of their own."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if made and self.head_learning_rate is not None:
            core = getattr(self.model, "module", self.model)
            _split_groups(optimizer, core.base_model, self.head_learning_rate)
        return optimizer

    def predictions(self, examples: Sequence[Example]) -> list:
        """The model's predictions. One process makes each of them and sends it to all, so that all
        processes compute the same figures.

        Raises:
            FloatingPointError: they are not finite.
        """
        processes, rank = self.args.world_size, self.args.process_index
        autocast = self.accelerator.autocast
        own = examples[rank::processes]
        try:
            made = predict(
                self.model,
                self.task,
                own,
                self.processing_class,
                autocast=autocast,
                progress=True,
            )
        except FloatingPointError as error:
            raise self.not_a_number(str(error)) from error
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
        data_collator=_collator(task, packed, tokenizer.pad_token_id or 0),
        processing_class=tokenizer,
        task=task,
        head_learning_rate=options.value("head_learning_rate"),
    )
    show_progress(trainer, Path(options.output_dir), lambda logs: _log_line(task, logs))
    if options.patience:
        trainer.add_callback(EarlyStoppingCallback(options.patience))
    return trainer


def _split_groups(
    optimizer: torch.optim.Optimizer, encoder: torch.nn.Module, head_learning_rate: float
) -> None:
    """Move the head's parameters into groups with another learning rate."""
    of_encoder = {id(parameter) for parameter in encoder.parameters()}
    for group in list(optimizer.param_groups):
        head = [p for p in group["params"] if id(p) not in of_encoder]
        if head:
            group["params"] = [p for p in group["params"] if id(p) in of_encoder]
            optimizer.add_param_group({**group, "params": head, "lr": head_learning_rate})


def _collator(task: Task, packed: bool, pad_token_id: int):
    if isinstance(task, DocumentTask):
        return task.collator()
    return WindowCollator(packed, pad_token_id)


def _log_line(task: Task, logs: dict) -> str | None:
    if "loss" in logs:
        return f"loss {float(logs['loss']):.4f}  lr {float(logs['learning_rate']):.2e}"
    key = f"eval_{task.metric}"
    return f"dev {task.metric} {float(logs[key]):.4f}" if key in logs else None
