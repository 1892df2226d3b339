"""What the benchmarks share. As in the tests, the repository root leaves sys.path first."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE.parent]
sys.path.append(str(HERE))  # for `from common import ...`

import pytest  # noqa: E402
import torch  # noqa: E402


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
