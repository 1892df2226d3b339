"""A process of its own for each provider of bench_training.py, which takes one step when asked.

Allocator settings are read when a process starts, and a peak of memory belongs to a process.
"""

import concurrent.futures
import contextlib
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

from spanbert_fast.ops._backend import use_backend

# glibc's malloc maps and unmaps every tensor above 32 MB, whose pages the kernel clears each time;
# with the heap kept it never gives memory back.
ALLOCATORS = {
    "default": {},
    "heap-kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)},
}


class Session:
    """One provider in training. Lives in the worker."""

    def __init__(self, name: str, case: Case, threads: int):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.case = case
        self.provider = provider_of(name, case)
        self.provider.model.train()
        self.loss = list(self.provider.losses.values())[-1]
        self.optimizer = torch.optim.AdamW(
            self.provider.model.parameters(), lr=1e-4, weight_decay=0.01, fused=True
        )
        self.batch = Batch.of(case)

    def step(self) -> float:
        """Seconds of forward, backward and update."""
        start = time.perf_counter()
        with use_backend(self.provider.backend):
            with precision(self.case.dtype, self.case.device):
                loss = self.loss(self.batch)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.case.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def peak_memory(self) -> float:
        """MB that the process has held at most; on a GPU, that its tensors have."""
        if self.case.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)

    def check(self, truth_file: Path) -> Errors:
        """See `check_errors`; comes last, for it changes the weights."""
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
