"""Shows where the time of a training step goes: a trace for a browser, and a table of its top
rows."""

import logging
from pathlib import Path

import torch
from transformers import TrainerCallback

logger = logging.getLogger("spanbert_fast")

_SKIPPED = 2  # first steps, which allocate and compile
_ROWS = 10


class Profile(TrainerCallback):
    """Traces some steps with torch.profiler, after the first two.

    Args:
        steps: how many.
        path: file for the trace, to open in chrome://tracing or ui.perfetto.dev. Its folder exists.
    """

    def __init__(self, steps: int, path: Path):
        self.steps, self.path = steps, path
        self._first: int | None = None
        self._profiler: torch.profiler.profile | None = None

    def on_step_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        if self._first is None:
            self._first = state.global_step + _SKIPPED
        if state.global_step == self._first and self._profiler is None:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=kinds)
            self._profiler.start()

    def on_step_end(self, args, state, control, **kwargs):
        if self._first is not None and state.global_step >= self._first + self.steps:
            self._finish()

    def on_train_end(self, args, state, control, **kwargs):
        self._finish()

    def _finish(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()
        profiler.export_chrome_trace(str(self.path))
        on_gpu = torch.cuda.is_available()
        key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        rows = sorted(profiler.key_averages(), key=lambda row: -getattr(row, key))[:_ROWS]
        whole = sum(getattr(row, key) for row in profiler.key_averages()) or 1
        lines = [f"{'share':>6} {'ms':>10} {'calls':>8}  operation"]
        for row in rows:
            time = getattr(row, key)
            lines.append(f"{time / whole:6.1%} {time / 1000:10.2f} {row.count:8}  {row.key}")
        logger.info("%s\ntrace: %s", "\n".join(lines), self.path)
