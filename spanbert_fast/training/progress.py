"""How far a run is: a bar on a terminal, plain lines in a log file, a file of metrics."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm
from transformers import TrainerCallback

from spanbert_fast import meter
from spanbert_fast.training.run_directory import METRICS

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
    """The numbers of a log line that a person watches."""
    return "  ".join(form.format(logs[name]) for name, form in _COLUMNS if name in logs)


def pretraining_line(logs: dict) -> str | None:
    """The text to show for a log line of pre-training; None to show nothing."""
    if "mlm_loss" in logs:
        return readable(logs)
    if "eval_mlm_loss" in logs:
        mlm, sbo = logs["eval_mlm_loss"], logs["eval_sbo_loss"]
        return f"held out: mlm loss {mlm:.3f}  sbo loss {sbo:.3f}"
    return None


class Progress(TrainerCallback):
    """One bar over all steps and every log line above it; where stderr is not a terminal, the log
    lines with the time that is left, and one such line at least every `meter.SECONDS`.

    Args:
        describe: a log line's numbers as text; None to leave it out.
    """

    def __init__(self, describe: Callable[[dict], str | None] = pretraining_line) -> None:
        self.describe = describe
        self.bar: tqdm | None = None
        self._first_step = 0
        self._began = self._told = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                dynamic_ncols=True,
                disable=not sys.stderr.isatty(),
            )
        self._first_step = state.global_step
        self._began = self._told = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is None:
            return
        self.bar.update(state.global_step - self.bar.n)
        if self.bar.disable and time.monotonic() - self._told >= meter.SECONDS:
            self._tell(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is None or not logs:
            return
        text = self.describe(logs)
        if text is not None:
            self._tell(state, text)

    def _tell(self, state, *parts: str) -> None:
        self._told = time.monotonic()
        done = state.global_step - self._first_step
        rest = state.max_steps - state.global_step
        if self.bar is not None and self.bar.disable and done and rest:
            parts += (f"{meter.duration((self._told - self._began) / done * rest)} left",)
        line = "  ".join([f"step {state.global_step}/{state.max_steps}", *parts])
        tqdm.write(line, file=sys.stderr)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


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
