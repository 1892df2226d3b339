"""Evaluation mode for a while, from any number of threads."""

import contextlib
import threading
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from torch import nn

# how many threads are inside, and the modules that trained before the first of them
_evaluating: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()
_evaluating_lock = threading.Lock()


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model evaluates inside; the last of the threads that are inside restores its modules'
    modes."""
    with _evaluating_lock:
        threads, trained = _evaluating.get(model) or (0, [m for m in model.modules() if m.training])
        _evaluating[model] = threads + 1, trained
        if threads == 0:
            model.eval()
    try:
        yield
    finally:
        with _evaluating_lock:
            threads, trained = _evaluating.pop(model)
            if threads > 1:
                _evaluating[model] = threads - 1, trained
            else:
                for module in trained:
                    module.training = True
