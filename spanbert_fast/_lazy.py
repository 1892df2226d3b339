"""Names of a package that are loaded when first used, so that importing it costs nothing."""

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any


def lazy(
    package: str, modules: Collection[str], names: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562).

    Args:
        package: its `__name__`.
        modules: its submodules that `package.module` loads.
        names: further names -> the module that defines each.
    """
    names = names or {}

    def load(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(names[name]), name)
        setattr(sys.modules[package], name, value)  # the next use does not come here
        return value

    return load
