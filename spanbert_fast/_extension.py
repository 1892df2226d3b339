"""Loads the compiled extension `spanbert_fast._C` once, and says so where there is none."""

import importlib
import importlib.machinery
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import torch


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
        ImportError: the file is there but cannot be used with this Python or this torch.
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
    try:
        module = importlib.import_module("spanbert_fast._C")
    except ImportError as error:
        raise ImportError(
            f"the extension {path.name} cannot be loaded with torch {torch.__version__} "
            f"({error}); rebuild it with `pip install -e . --no-build-isolation`, or delete it "
            "to use the pure-PyTorch package"
        ) from error
    built = module.build_info()["torch"]
    if _release(built) != _release(torch.__version__):
        raise ImportError(
            f"the extension {path.name} was built for torch {built}, but torch "
            f"{torch.__version__} is installed; rebuild it with `pip install -e . "
            "--no-build-isolation`"
        )
    return module


_C = load_extension()
