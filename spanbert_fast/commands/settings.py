"""NAME=VALUE settings of a command line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spanbert_fast.errors import UsageError

WORDS_HELP = (
    "what spans are made of: the words of the tokenizer (default), or for languages without spaces "
    "its tokens, or its characters"
)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The values of --set NAME=VALUE. A value that is JSON is parsed; others are strings.

    Raises:
        UsageError: one has no "=".
    """
    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set must be NAME=VALUE, got {setting}")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value  # a bare word is a string
    return values


def shown(figure: float) -> str:
    """A float with four decimals, an int without any."""
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:.4f}"


def profiles(steps: int | None, output_dir: str) -> list:
    """The callbacks of `--profile`; an empty list if it was not given.

    Raises:
        UsageError: there are no steps to trace.
    """
    if steps is None:
        return []
    if steps < 1:
        raise UsageError(f"--profile must be at least 1, got {steps}")
    from spanbert_fast.training.profile import Profile

    return [Profile(steps, Path(output_dir) / "trace.json")]
