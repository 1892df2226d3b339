"""What a fine-tuning run leaves for a reader: its curves and the model card."""

import re
from collections.abc import Sequence
from pathlib import Path

from spanbert_fast.tasks.base import Task
from spanbert_fast.training.finetuning.options import FinetuneOptions
from spanbert_fast.training.model_card import data_table, table, versions, write_card

_HYPER_PARAMETERS = (
    "learning_rate",
    "head_learning_rate",
    "epochs",
    "batch_size",
    "gradient_accumulation_steps",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "dropout",
    "precision",
    "weights_dtype",
    "engine",
    "seed",
)
_WITH_DEFAULTS = ("learning_rate", "head_learning_rate", "epochs", "batch_size")


def draw_finetuning(path: Path, log_history: Sequence[dict], metric: str) -> Path:
    """Draw training loss and dev figure over epochs as a PNG that is readable without colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    losses = [(line["epoch"], float(line["loss"])) for line in log_history if "loss" in line]
    key = f"eval_{metric}"
    figures = [(line["epoch"], line[key]) for line in log_history if key in line]
    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axis.plot(*zip(*losses, strict=True) if losses else ((), ()), "-", label="training loss")
    axis.set_xlabel("epoch")
    axis.set_ylabel("training loss (nats)")
    axis.grid(alpha=0.3)
    right = axis.twinx()
    points = zip(*figures, strict=True) if figures else ((), ())
    right.plot(*points, "--o", color="black", markerfacecolor="none", label=f"dev {metric}")
    right.set_ylabel(f"dev {metric}")
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def write_model_card(model_dir: Path, options: FinetuneOptions, task: Task, result: dict) -> Path:
    """README.md beside the weights: data, figures, hyper-parameters, versions."""
    splits = [split for split in ("dev", "test") if split in result]
    figures = [(name, *(_shown(result[s][name]) for s in splits)) for name in result["dev"]]
    values = []
    for name in _HYPER_PARAMETERS:
        value = getattr(options, name)
        if value is None and name in _WITH_DEFAULTS:
            value = options.value(name)
        if value is None and name == "head_learning_rate":  # the same as the encoder's
            continue
        values.append((name, "as in the checkpoint" if value is None else value))
    values.append(("max_seq_length", task.max_seq_length))
    files = {split: getattr(options, split) for split in ("train", "dev", "test")}
    cut = [
        f"Only {most:,} examples of {split} were used, drawn at even distances."
        for split, most in (("train", options.max_train), ("dev", options.max_dev))
        if most is not None
    ]
    cut += [
        f"{count:,} bad examples of {s} were left out." for s, count in result["skipped"].items()
    ]
    data = "examples of a program" if options.train is None else Path(options.train).name
    body = f"""# SpanBERT fine-tuned on {data} ({task.name})

Made by `spanbert-fast finetune {task.name}` from `{options.model}`. The weights are those of epoch
{result["best_epoch"]:g}, the best by dev {task.metric}.

## Figures

{table(("figure", *splits), figures)}

## Data

{data_table({split: path for split, path in files.items() if path is not None})}

{" ".join(cut)}

## Hyper-parameters

{table(("name", "value"), values)}

## Versions

{versions()}
"""
    fields = {"pipeline_tag": _PIPELINES.get(task.head), "tags": ["spanbert"]}
    return write_card(model_dir, fields, options.model, re.sub(r"\n{3,}", "\n\n", body))


def _shown(value: float) -> str:
    """An int in full, a float with four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


_PIPELINES = {
    "question-answering": "question-answering",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
}
