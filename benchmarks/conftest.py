"""Collects bench_<op>.py, and prints each figure beside what it is compared with.

A benchmark checks its op's result in the same run before it times it: no figure without a check.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE.parent]
sys.path.append(str(HERE))  # for `from common import ...`

import pytest
import torch

_FIGURES = pytest.StashKey[list[tuple[str, str, float]]]()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if file_path.name.startswith("bench_") and file_path.suffix == ".py":
        return pytest.Module.from_parent(parent, path=file_path)
    return None


@pytest.fixture
def per_second(benchmark, request):
    """Times a call by its fastest round; the figure counts `amount` units a call."""

    def measure(group: str, name: str, unit: str, amount: int, function, rounds: int = 40) -> float:
        function()
        benchmark.pedantic(function, rounds=rounds, warmup_rounds=2)
        figure = amount / benchmark.stats.stats.min
        benchmark.extra_info[f"{unit}_per_second"] = figure
        figures = request.config.stash.setdefault(_FIGURES, [])
        figures.append((f"{group}, {unit}/s", name, figure))
        return figure

    return measure


def pytest_terminal_summary(terminalreporter, config):
    groups: dict[str, list[tuple[str, float]]] = {}
    for group, name, figure in config.stash.get(_FIGURES, []):
        groups.setdefault(group, []).append((name, figure))
    for group, figures in groups.items():
        terminalreporter.section(group)
        base_name, base = figures[0]
        for name, figure in figures:
            terminalreporter.write_line(
                f"{name:<44}{figure:>14,.0f}{figure / base:>10.1f} x {base_name}"
            )


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every benchmark starts from the same random state."""
    torch.manual_seed(20191010)


@pytest.fixture
def threads():
    """Sets the number of threads, for this benchmark only."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
