"""The log of a pre-training run: lines for a person to watch, and those of metrics.jsonl."""

import json
from pathlib import Path

from transformers import TrainerCallback

from spanbert_fast.training.pretraining.run_directory import METRICS

_LOGGED = (
    "mlm_loss",
    "sbo_loss",
    "learning_rate",
    "tokens_per_second",
    "tokens",
    "masked_tokens",
    "spans",
    "grad_norm",
)
_COLUMNS = (
    ("mlm_loss", "mlm loss {:.3f}"),
    ("sbo_loss", "sbo loss {:.3f}"),
    ("learning_rate", "lr {:.2e}"),
    ("tokens_per_second", "{:,.0f} tokens/s"),
)


def readable(logs: dict) -> str:
    """The numbers that a person watches, as one line."""
    return "  ".join(form.format(logs[name]) for name, form in _COLUMNS if name in logs)


def log_line(logs: dict) -> str | None:
    """The text to show for a log line of pre-training; None to show nothing."""
    if "mlm_loss" in logs:
        return readable(logs)
    if "eval_mlm_loss" in logs:
        mlm, sbo = logs["eval_mlm_loss"], logs["eval_sbo_loss"]
        return f"held out: mlm loss {mlm:.3f}  sbo loss {sbo:.3f}"
    return None


class MetricsFile(TrainerCallback):
    """Writes a line of metrics.jsonl for every log step."""

    def __init__(self, run: Path):
        self.path = run / METRICS

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "mlm_loss" not in (logs or {}):
            return
        line = {"step": state.global_step, **{name: logs[name] for name in _LOGGED if name in logs}}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
