"""Rules for the files that are read: each refusal is one line with file, field, rule and value.

What a file says of its own size, of counts and of types is checked before anything is made of it.
"""

import json
import math
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from spanbert_fast.errors import DataError

MOST_JSON_BYTES = 1 << 24


class Rule(NamedTuple):
    """What a value must be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """A whole number in [low, high]."""
    return Rule(f"a whole number in [{low}, {high}]", lambda x: type(x) is int and low <= x <= high)


def number(low: float, high: float) -> Rule:
    """A finite number in [low, high]."""

    def fits(x: Any) -> bool:
        return type(x) in (int, float) and math.isfinite(x) and low <= x <= high

    return Rule(f"a number in [{low:g}, {high:g}]", fits)


def one_of(*values: Any) -> Rule:
    """One of these values, of the same type."""
    words = " or ".join(json.dumps(value) for value in values)
    return Rule(words, lambda x: any(type(x) is type(v) and x == v for v in values))


def list_of(rule: Rule) -> Rule:
    """A list whose items all fit a rule."""
    return Rule(f"a list of {rule.words}", lambda x: type(x) is list and all(map(rule.fits, x)))


def optional(rule: Rule) -> Rule:
    """null, or what fits a rule."""
    return Rule(f"null or {rule.words}", lambda x: x is None or rule.fits(x))


ANYTHING = Rule("anything", lambda x: True)
TEXT = Rule("a string", lambda x: type(x) is str)
TRUTH = Rule("true or false", lambda x: type(x) is bool)
# the name of a file beside another one, and never a way out of its folder
FILE_NAME = Rule("a file's name", lambda x: type(x) is str and bool(re.fullmatch(r"[\w.-]+", x)))


def check(where: Path | str, content: Any, rules: Mapping[str, Rule]) -> dict:
    """An object that has all fields of `rules`, each as its rule wants it; it may have others.

    Raises:
        DataError: it has not.
    """
    if type(content) is not dict:
        raise DataError(f"{where}: must hold an object, got {_short(content)}")
    for name, rule in rules.items():
        if name not in content:
            if not rule.fits(None):
                raise DataError(f"{where}: {name} must be {rule.words}, it is missing")
        elif not rule.fits(content[name]):
            raise DataError(f"{where}: {name} must be {rule.words}, got {_short(content[name])}")
    return content


def regular_file(path: Path) -> Path:
    """The path of a file whose content can be read: no folder, and no pipe that never ends.

    Raises:
        DataError: it is another thing, or not there.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: must be a regular file, is a {_kind(mode)}")
    return path


def read_json(path: Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """What a file of JSON holds.

    Raises:
        DataError: it is no regular file, larger than `most_bytes`, or not JSON.
    """
    size = regular_file(path).stat().st_size
    if size > most_bytes:
        raise DataError(f"{path}: must have at most {most_bytes:,} bytes, has {size:,}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # a number or a nesting may be too long
        raise DataError(f"{path}: not JSON ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _kind(mode: int) -> str:
    tests = {"folder": stat.S_ISDIR, "pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    return next((name for name, fits in tests.items() if fits(mode)), "device")


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):  # no value of JSON
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
