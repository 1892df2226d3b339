"""What a fine-tuning run leaves for a reader: its curves and the model card."""

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from spanbert_fast.tasks.base import Task
from spanbert_fast.training.finetune_options import FinetuneOptions

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
    "engine",
    "seed",
)
_WITH_DEFAULTS = ("learning_rate", "head_learning_rate", "epochs", "batch_size")


def draw_finetuning(path: Path, log_history: Sequence[dict], metric: str) -> Path:
    """Draw training loss and dev figure over epochs, as a PNG that needs no colour."""
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
    lines = [
        "---",
        "library_name: transformers",
        *(f"pipeline_tag: {tag}" for tag in _PIPELINES.get(task.head, ())),
        "tags: [spanbert]",
        "---",
        "",
        f"# {Path(options.model).name}, fine-tuned on {Path(options.train).name} ({task.name})",
        "",
        f"Made by `spanbert-fast finetune {task.name}` from `{Path(options.model).name}`. The "
        f"weights are those of epoch {result['best_epoch']:g}, the best by dev {task.metric}.",
        "",
        "## Figures",
        "",
        "| figure | " + " | ".join(s for s in ("dev", "test") if s in result) + " |",
        "|---|" + "---:|" * sum(s in result for s in ("dev", "test")),
    ]
    for name in result["dev"]:
        values = [f"{result[s][name]:.4g}" for s in ("dev", "test") if s in result]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    lines += ["", "## Data", "", "| split | file | sha256 |", "|---|---|---|"]
    for split in ("train", "dev", "test"):
        path = getattr(options, split)
        if path is not None:
            lines.append(f"| {split} | {Path(path).name} | `{_sha256(path)}` |")
    lines += ["", "## Hyper-parameters", "", "| name | value |", "|---|---|"]
    for name in _HYPER_PARAMETERS:
        value = getattr(options, name)
        if value is None and name in _WITH_DEFAULTS:
            value = options.value(name)
        if value is None and name == "head_learning_rate":  # that of the encoder
            continue
        lines.append(f"| {name} | {'as in the checkpoint' if value is None else value} |")
    lines.append(f"| max_seq_length | {task.max_seq_length} |")
    lines += [
        "",
        "## Versions",
        "",
        f"spanbert_fast {version('spanbert-fast')}, transformers {transformers.__version__}, torch "
        f"{torch.__version__}, Python {platform.python_version()}",
    ]
    path = model_dir / "README.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


_PIPELINES = {
    "question-answering": ("question-answering",),
    "sequence-classification": ("text-classification",),
    "token-classification": ("token-classification",),
}


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
