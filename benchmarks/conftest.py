"""Collects bench_ops.py, and gives its cases their seed and their threads.

A benchmark checks its op's result in the same run before it times it.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE.parent]
sys.path.append(str(HERE))  # for `from op_case import ...`

import pytest
import torch


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if file_path.name == "bench_ops.py":
        return pytest.Module.from_parent(parent, path=file_path)
    return None


@pytest.fixture
def threads():
    """Set the number of threads, for this benchmark only."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
