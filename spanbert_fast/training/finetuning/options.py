"""The options of a fine-tuning run. The run keeps them in its directory, to be resumed."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spanbert_fast import hub
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.schema import check, rules_of
from spanbert_fast.tasks import names, task_class
from spanbert_fast.tasks.base import Task
from spanbert_fast.training.options import check_precision, refuse_without_effect
from spanbert_fast.training.run_files import OPTIONS, read_object, was_started

ENGINES = ("spanbert_fast", "transformers")
_OWN_CHOICE = "a run keeps the checkpoint of its best epoch, by the task's figure"
_WITHOUT_EFFECT = {
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), _OWN_CHOICE
    ),
    "per_device_eval_batch_size": "predictions are made in batches of a number of tokens",
    "eval_strategy": "a run evaluates after every epoch",
    "save_strategy": "a run saves after every epoch",
    "do_eval": "a run evaluates after every epoch",
}


@dataclass(frozen=True)
class FinetuneOptions:
    """All options of a fine-tuning run. A hyper-parameter of None takes the task's default.

        >>> options = FinetuneOptions("ner", "runs/first/model", None, None, "runs/ner", epochs=3)
        >>> options.value("epochs"), options.value("batch_size")
        (3, 16)

    Attributes:
        task: "qa", "ner", "relation", "classify", "coref", or the name of a registered task.
        model: a BERT or SpanBERT checkpoint with its tokenizer: a directory, or a name of the Hub.
        train, dev, test: data files; dev chooses the best checkpoint, test is optional. None if
            the caller passes the examples to `finetune`.
        output_dir: where everything is written.
        task_options: keyword arguments of the task.
        learning_rate, head_learning_rate, epochs, batch_size: see `tasks.base.Defaults`.
        gradient_accumulation_steps: number of batches in one optimiser step.
        warmup_ratio: share of the steps in which the learning rate rises.
        weight_decay, max_grad_norm: as in BERT.
        dropout: of hidden states and attention; None for the checkpoint's.
        precision: "fp32", autocast in "bf16" or "fp16", or "auto" for the fastest on the device.
        weights_dtype: dtype of the weights in training, however the checkpoint is stored: "fp32",
            or "bf16", which takes half the memory and loses small updates.
        engine: "spanbert_fast", or "transformers" for its BERT with sdpa attention, from the same
            start and over the same batches, to compare with.
        seed: decides the head's first weights, the order of the data and the dropout.
        patience: stop after this many epochs without a better dev figure; 0 for never.
        skip_bad: leave bad data out, and count it.
        max_train, max_dev: use this many examples, evenly spaced in the file; None for all.
        training_arguments: further fields of transformers.TrainingArguments.
    """

    task: str
    model: str
    train: str | None
    dev: str | None
    output_dir: str
    test: str | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    epochs: float | None = None
    batch_size: int | None = None
    gradient_accumulation_steps: int = 1
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    dropout: float | None = None
    precision: str = "auto"
    weights_dtype: str = "fp32"
    engine: str = "spanbert_fast"
    seed: int = 0
    patience: int = 0
    skip_bad: bool = False
    max_train: int | None = None
    max_dev: int | None = None
    training_arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_precision(self.precision, self.weights_dtype)
        for name, allowed in (("task", names()), ("engine", ENGINES)):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"--{name} must be one of {', '.join(allowed)}, got {getattr(self, name)}"
                )
        positive = ("learning_rate", "head_learning_rate", "epochs", "batch_size")
        for name in (*positive, "gradient_accumulation_steps", "max_train", "max_dev"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be above 0 and finite, got {value}"
                )
        if not 0 <= self.warmup_ratio <= 1:
            raise UsageError(f"--warmup-ratio must be in [0, 1], got {self.warmup_ratio}")
        for name in ("patience", "seed", "weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be 0 or more and finite, got {value}"
                )
        if self.dropout and not 1 / 512 <= self.dropout < 511 / 512:  # contract C4
            raise UsageError(f"--dropout must be 0 or in [1/512, 511/512), got {self.dropout}")
        own = {f.name for f in dataclasses.fields(self)}
        renamed = {
            "bf16": "precision",
            "fp16": "precision",
            "num_train_epochs": "epochs",
            "per_device_train_batch_size": "batch_size",
            "warmup_steps": "warmup_ratio",
        }
        for name in self.training_arguments:
            option = renamed.get(name, name)
            if option in own:
                raise UsageError(f"--set {name}: give --{option.replace('_', '-')} instead")
        refuse_without_effect(self.training_arguments, _WITHOUT_EFFECT)
        for name in ("train", "dev", "test"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise UsageError(f"--{name} {path}: no such file")
        hub.check_name(self.model, "--model")

    def make_task(self) -> Task:
        """The task, with the user's options."""
        return task_class(self.task)(**self.task_options)

    def value(self, name: str) -> float | None:
        """A hyper-parameter, or the task's default for it."""
        given = getattr(self, name)
        return getattr(task_class(self.task).defaults, name) if given is None else given

    def with_seed(self, seed: int) -> "FinetuneOptions":
        """The same run with another seed, in a folder of its own."""
        folder = str(Path(self.output_dir) / f"seed-{seed}")
        return dataclasses.replace(self, seed=seed, output_dir=folder)

    def to_json(self) -> dict:
        """The content of the run's options.json."""
        return dataclasses.asdict(self)


def options_of_run(output_dir: str) -> FinetuneOptions:
    """The options that a run was started with, for `--resume`.

    Raises:
        UsageError: there is no run.
    """
    run = Path(output_dir)
    if not was_started(run):
        raise UsageError(f"--output-dir {output_dir} holds no run to resume")
    rules = rules_of(FinetuneOptions)
    saved = read_object(run / OPTIONS, rules, all_of_them=False)
    check(run / OPTIONS, saved, {name: rules[name] for name in ("task", "model")})
    for name in ("train", "dev"):  # null if the caller passed the data itself, but never missing
        if name not in saved:
            raise DataError(f"{run / OPTIONS}: {name} must be {rules[name].words}, it is missing")
    saved = {name: value for name, value in saved.items() if name in rules}
    try:
        return FinetuneOptions(**{**saved, "output_dir": output_dir})
    except OSError as error:  # a path cannot be read
        raise DataError(f"{run / OPTIONS}: {error}") from error
