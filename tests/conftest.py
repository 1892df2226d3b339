"""Shared fixtures. First, the repository root is removed from sys.path: its `kernels/` folder would
shadow the PyPI package of that name, which transformers looks for."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

import importlib  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():
    # Triton decides when it is first imported whether kernels are interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# pytest explains the assertions of these shared modules as it does those of tests
pytest.register_assert_rewrite(*(p.stem for p in Path(__file__).parent.glob("*_cases.py")))

from spanbert_fast.testing import assert_bitwise_equal  # noqa: E402


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu`, import only the files that are marked: a bare GPU machine may lack packages
    that the others import."""
    if config.option.markexpr == "gpu" and collection_path.suffix == ".py":
        if "\npytestmark = pytest.mark.gpu\n" not in collection_path.read_text("utf-8"):
            return True
    return None


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state."""
    torch.manual_seed(20191010)


@pytest.fixture(autouse=True)
def fresh_log():
    """Restore the log that a command sets up when a test calls it in this process. Otherwise pytest
    would take every line twice from a logger that does not propagate and that a test lets propagate
    again."""
    yield
    logger = logging.getLogger("spanbert_fast")
    logger.handlers, logger.propagate = [], True


@pytest.fixture
def poisoned_empty(monkeypatch):
    """torch.empty and the like give NaN (or the lowest integer): unwritten elements show."""

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
    torch.set_deterministic_debug_mode("error")  # poisons memory that compiled code allocates
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture
def each_thread_count():
    """A function that runs a function with 1, 2 and 3 threads and compares the results' bits."""
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


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory) -> Path:
    """A text file of 60 documents whose next word can be guessed, so that a small model learns."""
    import random

    draw = random.Random(7)
    nouns = "river mountain teacher garden letter winter island engine captain market".split()
    verbs = "follows remembers carries watches paints answers".split()
    places = "quietly before dawn,behind the old harbour,under a pale sky,without a word".split(",")
    documents = []
    for _ in range(60):
        lines = []
        for _ in range(draw.randint(3, 12)):
            first, second = draw.sample(nouns, 2)
            lines.append(f"The {first} {draw.choice(verbs)} the {second} {draw.choice(places)}.")
        documents.append("\n".join(lines))
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


SMALL_RUN = (
    "--recipe tiny --hidden-size 32 --num-hidden-layers 2 --num-attention-heads 2 "
    "--intermediate-size 64 --vocab-size 200 --max-seq-length 48 --tokens-per-batch 256 "
    "--warmup-steps 5 --held-out 0.1 --logging-steps 1 --seed 3"
).split()


@pytest.fixture(scope="module")
def load():
    """A function that imports a module of benchmarks/."""
    sys.path.append(str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="session")
def small_run() -> list[str]:
    """Options of a pre-training run that takes a second or two."""
    return list(SMALL_RUN)


@pytest.fixture(scope="session")
def command():
    """Run `spanbert-fast` in a process of its own, on one thread; returns a subprocess.Popen."""
    import subprocess

    def start(*arguments, processes: int = 1) -> subprocess.Popen:
        launcher = [sys.executable, "-m"]
        if processes > 1:
            launcher += ["torch.distributed.run", "--standalone"]
            launcher += [f"--nproc-per-node={processes}", "-m"]
        return subprocess.Popen(
            [*launcher, "spanbert_fast", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        )

    return start


@pytest.fixture
def one_thread():
    """One thread, as in the processes that `command` starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained_model(tmp_path_factory, corpus_file) -> Path:
    """The directory of a small SpanBERT after a run of two steps, with its tokenizer."""
    from spanbert_fast.cli import main

    run = tmp_path_factory.mktemp("trained") / "run"
    options = ["--data", str(corpus_file), "--output-dir", str(run), *SMALL_RUN]
    assert main(["pretrain", *options, "--max-steps", "2"]) == 0
    return run / "model"
