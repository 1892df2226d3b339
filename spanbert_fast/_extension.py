"""Loads the compiled extension `spanbert_fast._C` once, and says so where there is none."""

import importlib
import importlib.machinery
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import torch

_OLDEST_TORCH = (2, 11)  # the first whose stable ABI has all that the extension uses


def _extension_file() -> Path | None:
    """The extension's file beside this one, whatever Python it was built for.

    Not that of another copy of the package: an editable install offers its own to every import.
    """
    here = Path(__file__).resolve().parent
    spec = importlib.util.find_spec("spanbert_fast._C")
    if spec is not None and spec.origin and Path(spec.origin).resolve().parent == here:
        return Path(spec.origin)
    return next(iter(sorted(here.glob("_C.*.so"))), None)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def load_extension() -> ModuleType | None:
    """The extension module; None, with a warning, where the package was installed without it.

    Raises:
        ImportError: the file is there but cannot be used with this Python, or with a torch before
            2.11.
    """
    path = _extension_file()
    if path is None:
        warnings.warn(
            "spanbert_fast is installed without its compiled extension: every op runs in pure "
            "PyTorch and the span sampler in Python. With a C++ compiler, `pip install -e . "
            "--no-build-isolation` builds it.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    if _release(torch.__version__) < _OLDEST_TORCH:
        raise ImportError(
            f"the extension {path.name} needs torch {'.'.join(map(str, _OLDEST_TORCH))} or later, "
            f"got {torch.__version__}; install a later torch, or delete the file to use the "
            "pure-PyTorch package"
        )
    try:
        module = importlib.import_module("spanbert_fast._C")
    except ImportError as error:
        raise ImportError(
            f"the extension {path.name} cannot be loaded with torch {torch.__version__} "
            f"({error}); rebuild it with `pip install -e . --no-build-isolation`, or delete it "
            "to use the pure-PyTorch package"
        ) from error
    return module


_C = load_extension()
