"""NAME=VALUE settings of a command line."""

import json
from collections.abc import Sequence
from typing import Any

from spanbert_fast.errors import UsageError


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The values of --set NAME=VALUE: JSON where they are, else strings.

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
