"""Shared by the tests of the benchmarks."""

import importlib
import logging
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks():
    """Import a module of the benchmarks' folder, with tiny shapes and without changing threads."""
    sys.path.append(str(BENCHMARKS))
    threads, flag = torch.get_num_threads(), importlib.import_module("op_case")
    before, flag.TINY = flag.TINY, True
    # pytest listens to it, and torch.compile then writes down all that it does
    trace = logging.getLogger("torch.__trace")
    level = trace.level
    trace.setLevel(logging.WARNING)
    yield importlib.import_module
    trace.setLevel(level)
    flag.TINY = before
    torch.set_num_threads(threads)
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(autouse=True)
def short_text(monkeypatch, corpus_file):
    """A short text in place of the embedded corpus, which takes seconds to read."""
    from spanbert_fast.data import embedded

    documents = corpus_file.read_text().split("\n\n")
    monkeypatch.setattr(embedded, "embedded_documents", lambda: documents)


@pytest.fixture(autouse=True)
def small_cache(benchmarks, monkeypatch):
    """Pretend that the caches are small: the CPU's clock overwrites them before each call, which
    takes seconds on some servers. Returns the function that gives their true size."""
    timing = benchmarks("timing")
    true_size = timing.last_level_cache
    monkeypatch.setattr(timing, "last_level_cache", lambda: 1 << 20)
    return true_size
