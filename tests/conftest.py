"""Shared fixtures. First of all the repository root leaves sys.path: its `kernels/` folder would
shadow the PyPI package of that name, which transformers looks for."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

import os  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402
import torch  # noqa: E402

from spanbert_fast.testing import assert_bitwise_equal  # noqa: E402


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state."""
    torch.manual_seed(20191010)


@pytest.fixture
def poisoned_empty(monkeypatch):
    """torch.empty and friends give NaN (or the lowest integer): what is not written shows."""

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.device.type == "meta" or type(tensor) is not torch.Tensor:
                return tensor
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
            elif tensor.dtype not in (torch.bool, torch.uint8):
                tensor.fill_(torch.iinfo(tensor.dtype).min)
            return tensor

        return made

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
    torch.set_deterministic_debug_mode("error")  # poisons what compiled code allocates
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture
def each_thread_count():
    """A function that runs another one with 1, 2 and 3 threads and compares the results' bits."""
    before = torch.get_num_threads()

    def compare(run):
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run())
        for other in results[1:]:
            for ours, expected in zip(other, results[0], strict=True):
                assert_bitwise_equal(ours.detach(), expected.detach())

    yield compare
    torch.set_num_threads(before)
