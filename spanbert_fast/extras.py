"""Libraries that only some commands need, and how to get those that are missing."""

import importlib.util
from collections.abc import Sequence

TRAIN = ("accelerate", "datasets", "matplotlib", "pyarrow", "tensorboard")


class MissingExtra(ImportError):
    """An optional part of the package is not installed; the message says what to type."""


def require(what: str, extra: str, names: Sequence[str]) -> None:
    """Raise MissingExtra where a library is not installed; none is imported.

    Args:
        what: the command or function that needs it.
        extra: the name in pyproject.toml.
        names: modules.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"{what} needs {', '.join(missing)}: pip install 'spanbert-fast[{extra}]'"
        )
