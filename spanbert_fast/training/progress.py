"""Shows a run's progress: a bar on a terminal, plain lines in a log file, events for
TensorBoard."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from spanbert_fast import meter

Describe = Callable[[dict], str | None]


def show_progress(trainer: Trainer, run: Path, describe: Describe) -> None:
    """Replace a Trainer's printed lines by `Progress`, and add TensorBoard's events.

    Args:
        run: the run's directory, in which TensorBoard's events are written.
        describe: see `Progress`.
    """
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(Progress(describe))
    tensorboard = TensorBoardCallback()
    # a directory, not a writer: training closes its writer, but an evaluation follows
    tensorboard.logging_dir = str(run / "tensorboard")
    trainer.add_callback(tensorboard)


class Progress(TrainerCallback):
    """One bar over all steps with the log lines above it. If stderr is not a terminal, the log
    lines alone, with the time left; at least one such line every `meter.SECONDS`.

    Args:
        describe: makes the text of a log line from its numbers; None leaves the line out.
    """

    def __init__(self, describe: Describe) -> None:
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
