"""Eight Python threads at once get the same bits as each alone."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from collator_cases import make_examples, make_tokenizer
from model_cases import pretraining_model
from op_cases import NAMES, cases
from spanbert_fast import DataCollatorForSpanMasking
from spanbert_fast.testing import assert_bitwise_equal

THREADS = 8


@pytest.fixture(autouse=True)
def one_thread_each(one_thread):
    """One PyTorch thread per Python thread: 16 threads would be slow on a small machine."""


def at_once(jobs):
    """The results of all jobs, which start together, each in its own thread."""
    barrier = threading.Barrier(len(jobs))

    def run(job):
        barrier.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def assert_same(ours, expected):
    for number, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert_bitwise_equal(a, b, f"result {number}")


def test_ops():
    """Every thread calls all ops, in its own order."""
    chosen = [cases(dtype)[name] for name in NAMES for dtype in (torch.float32, torch.bfloat16)]
    generator = torch.Generator().manual_seed(1)
    upstream = [
        torch.randn(case.outputs()[0].shape, generator=generator).to(case.outputs()[0].dtype)
        if case.backward
        else None
        for case in chosen
    ]

    def run(number):
        case, outputs = chosen[number], chosen[number].outputs()
        if case.backward is None:
            return list(outputs)
        saved = case.saved(outputs)
        return [*outputs, *case.backward(upstream[number], *case.inputs, *saved)]

    expected = [run(number) for number in range(len(chosen))]

    def run_all(start):
        order = [(start * 5 + i) % len(chosen) for i in range(len(chosen))]
        return [(number, run(number)) for _ in range(3) for number in order]

    for results in at_once([lambda start=start: run_all(start) for start in range(THREADS)]):
        for number, result in results:
            assert_same(result, expected[number])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return pretraining_model()


@pytest.fixture(scope="module")
def batches():
    """A ragged batch for each thread."""
    tokenizer = make_tokenizer()
    collator = DataCollatorForSpanMasking(tokenizer, seed=2, dropout_seeds=True)
    lengths = [[5 + 7 * i, 60 - 5 * i, 12] for i in range(THREADS)]
    return [collator(make_examples(some, seed=i)) for i, some in enumerate(lengths)]


def test_one_model_in_evaluation(model, batches):
    def run(batch):
        with torch.no_grad():
            output = model(**batch, return_predictions=True)
        return [output.loss, output.mlm_loss, output.sbo_loss, output.mlm_predictions]

    expected = [run(batch) for batch in batches]
    jobs = [lambda batch=batch: [run(batch) for _ in range(5)] for batch in batches]
    for results, wanted in zip(at_once(jobs), expected, strict=True):
        for result in results:
            assert_same(result, wanted)


def test_models_in_training(model, batches):
    """Each thread trains its own model for three steps, with dropout."""

    def train(number):
        own = copy.deepcopy(model).train()
        optimizer = torch.optim.AdamW(own.parameters(), lr=1e-3)
        losses = []
        for step in range(3):
            loss = own(**batches[(number + step) % THREADS]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return [*losses, *own.state_dict().values()]

    expected = [train(number) for number in range(THREADS)]
    assert not torch.equal(expected[0][2], expected[1][2])
    for result, wanted in zip(
        at_once([lambda n=n: train(n) for n in range(THREADS)]), expected, strict=True
    ):
        assert_same(result, wanted)
