"""PYTHONPATH of processes that tests start."""

import os
from pathlib import Path


def search_path(*first: Path) -> str:
    """These folders, then those of this process: tests may run beside an installed package."""
    rest = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, first), *([rest] if rest else [])])
