"""A process for each provider of bench_training.py, which takes one step when asked.

A process reads allocator settings when it starts, and peak memory is a process's, so each provider
has its own.
"""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from training_check import Errors, check_errors, precision
from training_providers import Batch, Case, provider_of

from spanbert_fast.data.static_shapes import StaticShapes
from spanbert_fast.ops._backend import use_backend
from spanbert_fast.optim import AdamW
from spanbert_fast.training.captured_step import CapturedStep

# glibc's malloc maps and unmaps every tensor above 32 MB, whose pages the kernel clears each time.
# With these settings it keeps the heap and never returns memory.
ALLOCATORS = {
    "default": {},
    "heap-kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)},
}


# On a GPU: steps between two readings of its clock, so that the L2 cache and the queue of launched
# work are as in training; and the norm to which gradients are clipped.
_STEPS_IN_A_ROW = 4
_MAX_GRAD_NORM = 1.0


class Session:
    """One provider in training, in the worker's process."""

    def __init__(self, name: str, case: Case, threads: int):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.case = case
        self.provider = provider_of(name, case)
        self.provider.model.train()
        self.loss = list(self.provider.losses.values())[-1]
        on_gpu = case.device == "cuda"
        parameters, options = self.provider.model.parameters(), {"lr": 1e-4, "weight_decay": 0.01}
        if on_gpu and self.provider.captured:
            keep_rounded = case.dtype == "bf16"
            self.optimizer = AdamW(parameters, **options, keep_rounded=keep_rounded)
        else:
            options |= {"fused": True, "capturable": on_gpu}
            self.optimizer = torch.optim.AdamW(parameters, **options)
        self.batch = Batch.of(case)
        self.train = self._eager
        if on_gpu:
            seed = torch.zeros((), dtype=torch.int64, device=case.device)
            self.batch.packed["dropout_seed"] = seed
            if self.provider.captured:
                self.train = self._captured()

    def _eager(self) -> None:
        """One step, launched kernel by kernel."""
        parameters = self.provider.model.parameters()
        with use_backend(self.provider.backend):
            with precision(self.case.dtype, self.case.device):
                loss = self.loss(self.batch)
            loss.backward()
        if self.case.device == "cuda":
            torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def static_batch(self) -> dict[str, torch.Tensor | int]:
        """Our batch, filled up to the fixed shapes of a captured step."""
        return StaticShapes.of(self.batch.tokens(), self.case.seqlen).fill(self.batch.packed)

    def _captured(self) -> Callable[[], object]:
        """The same step as one CUDA graph."""
        batch = self.static_batch()
        step = CapturedStep(
            self.provider.model,
            self.optimizer,
            batch,
            autocast=functools.partial(precision, self.case.dtype, self.case.device),
            max_grad_norm=_MAX_GRAD_NORM,
        )
        return lambda: step(batch)

    def step(self) -> float:
        """Seconds of forward, backward and update; on a GPU by its own clock, the mean of several
        steps in a row, gradients clipped."""
        if self.case.device != "cuda":
            start = time.perf_counter()
            self.train()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.train()
        start.record()
        for _ in range(_STEPS_IN_A_ROW):
            self.train()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / _STEPS_IN_A_ROW

    def host_step(self) -> float:
        """Wall-clock seconds of one step, until the last of its kernels is done."""
        start = time.perf_counter()
        self.train()
        if self.case.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def peak_memory(self) -> float:
        """The peak memory in MB: of the process, or on a GPU of its tensors."""
        if self.case.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)

    def check(self, truth_file: Path) -> Errors:
        """See `check_errors`; must come last, since it changes the weights."""
        return check_errors(self.provider, self.case, truth_file)

    def profile(self, steps: int = 3) -> str:
        """Where the time of a few steps goes, by operator."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(steps):
                self.step()
        averages = profile.key_averages()
        return averages.table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=50)


_session: Session


def _open(name: str, case: Case, threads: int) -> None:
    global _session
    _session = Session(name, case, threads)


def _ask(method: str, *arguments: Any) -> Any:
    return getattr(_session, method)(*arguments)


@contextlib.contextmanager
def fresh_process(allocator: str, threads: int) -> Iterator[Callable[..., Any]]:
    """Gives `run(function, *arguments)`, which calls a module's function in one new process."""
    settings = {**ALLOCATORS[allocator], "OMP_NUM_THREADS": str(threads)}
    before = dict(os.environ)
    for variables in ALLOCATORS.values():
        for variable in variables:
            os.environ.pop(variable, None)
    os.environ.update(settings)
    context = multiprocessing.get_context("spawn")
    try:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            yield lambda function, *arguments: pool.submit(function, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def worker(name: str, case: Case, allocator: str, threads: int) -> Iterator[Callable[..., Any]]:
    """Gives `ask(method, *arguments)` of a `Session` in a process of its own."""
    with fresh_process(allocator, threads) as run:
        run(_open, name, case, threads)
        yield lambda method, *arguments: run(_ask, method, *arguments)
