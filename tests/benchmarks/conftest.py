"""What the tests of the benchmarks share."""

import importlib
import logging
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks():
    """Imports a module of the benchmarks' folder; tiny shapes, this process's threads kept."""
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
    """The embedded corpus takes seconds to read."""
    from spanbert_fast.data import embedded

    documents = corpus_file.read_text().split("\n\n")
    monkeypatch.setattr(embedded, "embedded_documents", lambda: documents)


@pytest.fixture(autouse=True)
def small_cache(benchmarks, monkeypatch):
    """The CPU's clock overwrites the caches before each call, which takes seconds where they are as
    large as on some servers; gives the function that tells their true size."""
    timing = benchmarks("timing")
    true_size = timing.last_level_cache
    monkeypatch.setattr(timing, "last_level_cache", lambda: 1 << 20)
    return true_size
