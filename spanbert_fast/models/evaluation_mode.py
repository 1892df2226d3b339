"""A block in which a model is in evaluation mode, for any number of threads."""

import contextlib
import threading
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from torch import nn

# of each model: the number of threads inside, and the modules that were in training mode before
_evaluating: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()
_evaluating_lock = threading.Lock()


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode; the last thread that leaves restores the modes."""
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
