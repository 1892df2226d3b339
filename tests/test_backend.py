"""use_backend affects its own thread or task alone, also in code compiled by torch.compile."""

import asyncio
import threading

import pytest
import torch

from spanbert_fast import use_backend
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops.bias_gelu import bias_gelu
from spanbert_fast.reference import bias_gelu as reference


def test_blocks_nest_and_end_with_an_error():
    assert not runs_reference()
    with use_backend("reference"):
        assert runs_reference()
        with use_backend("kernels"):
            assert not runs_reference()
        assert runs_reference()
        with pytest.raises(RuntimeError, match="on purpose"), use_backend("kernels"):
            raise RuntimeError("on purpose")
        assert runs_reference()
    assert not runs_reference()
    with pytest.raises(ValueError, match="backend must be one of kernels, reference, got 'fast'"):
        with use_backend("fast"):
            pass
    assert not runs_reference()


def in_turns(*steps_of_threads):
    """Run the threads' steps in turns; returns each thread's results."""
    turns = threading.Barrier(len(steps_of_threads), timeout=60)
    results = [[] for _ in steps_of_threads]

    def run(number):
        for step in steps_of_threads[number]:
            for turn in range(len(steps_of_threads)):
                if turn == number:
                    results[number].append(step())
                turns.wait()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(steps_of_threads))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def overlapping_blocks(look):
    """The results of `look` in two threads with overlapping blocks: the first thread leaves its
    block while the second is inside its own."""

    def enter(name, blocks):
        blocks.append(use_backend(name))
        blocks[-1].__enter__()
        return look()

    def leave(blocks):
        blocks.pop().__exit__(None, None, None)
        return look()

    first, second = [], []
    return in_turns(
        [
            look,
            lambda: enter("reference", first),
            look,
            lambda: leave(first),
            look,
        ],
        [
            look,
            look,
            lambda: enter("reference", second),
            look,
            lambda: leave(second),
        ],
    )


def test_two_threads_choose_for_themselves():
    first, second = overlapping_blocks(runs_reference)
    assert first == [False, True, True, False, False]
    assert second == [False, False, True, True, False]
    assert not runs_reference()


def test_a_thread_starts_with_kernels():
    with use_backend("reference"):
        assert in_turns([runs_reference]) == [[False]]


def test_tasks_choose_for_themselves():
    async def task(name):
        with use_backend(name):
            seen = []
            for _ in range(3):
                seen.append(runs_reference())
                await asyncio.sleep(0)
            return seen

    async def both():
        return await asyncio.gather(task("reference"), task("kernels"))

    assert asyncio.run(both()) == [[True] * 3, [False] * 3]
    assert not runs_reference()


@pytest.fixture
def marked_reference(monkeypatch):
    """A reference whose results are 100 above those of the kernels."""
    original = reference.bias_gelu
    monkeypatch.setattr(reference, "bias_gelu", lambda x, bias: original(x, bias) + 100)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def look(marked_reference):
    """Whether a compiled function runs the reference."""
    compiled = torch.compile(lambda x, bias: bias_gelu(x, bias), fullgraph=True, backend="eager")
    x, bias = torch.zeros(2, 3), torch.zeros(3)
    return lambda: bool(compiled(x, bias).min() > 50)


def test_what_is_compiled_sees_each_block(look):
    assert not look()
    with use_backend("reference"):
        assert look()
        with use_backend("kernels"):
            assert not look()
            with use_backend("kernels"):
                assert not look()
            with use_backend("reference"):
                assert look()
        assert look()
    assert not look()
    with use_backend("kernels"):
        assert not look()
        with use_backend("reference"):
            assert look()
    assert not look()


def test_what_is_compiled_in_two_threads(look):
    first, second = overlapping_blocks(look)
    assert first == [False, True, True, False, False]
    assert second == [False, False, True, True, False]


def test_tasks_leave_no_choice_behind_for_what_is_compiled(look):
    async def task(name, rounds):
        with use_backend(name):
            for _ in range(rounds):
                await asyncio.sleep(0)

    async def both():
        return await asyncio.gather(task("kernels", 1), task("reference", 2), task("kernels", 3))

    asyncio.run(both())
    assert not look()
