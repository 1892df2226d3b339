"""Rules for the files that are read. A refusal is one line with file, field, rule and value.

Sizes, counts and types that a file states are checked before anything is allocated for them.
"""

import json
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from spanbert_fast.errors import DataError

MOST_JSON_BYTES = 1 << 24


class Rule(NamedTuple):
    """A rule that a value must fit, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """A whole number in [low, high]."""
    return Rule(f"a whole number in [{low}, {high}]", lambda x: type(x) is int and low <= x <= high)


def number(low: float, high: float) -> Rule:
    """A number in [low, high], so neither NaN nor infinite."""
    return Rule(
        f"a number in [{low:g}, {high:g}]", lambda x: type(x) in (int, float) and low <= x <= high
    )


def one_of(*values: Any) -> Rule:
    """One of these values, of the same type."""
    words = " or ".join(json.dumps(value) for value in values)
    return Rule(words, lambda x: any(type(x) is type(v) and x == v for v in values))


def list_of(rule: Rule) -> Rule:
    """A list whose items all fit a rule."""
    return Rule(f"a list of {rule.words}", lambda x: type(x) is list and all(map(rule.fits, x)))


def optional(rule: Rule) -> Rule:
    """null, or a value that fits a rule."""
    return Rule(f"null or {rule.words}", lambda x: x is None or rule.fits(x))


def object_of(key: Rule, value: Rule) -> Rule:
    """An object whose keys fit one rule, and whose values another."""

    def fits(x: Any) -> bool:
        return type(x) is dict and all(key.fits(k) and value.fits(v) for k, v in x.items())

    return Rule(f"an object of {key.words}: {value.words}", fits)


def digits(most: int) -> Rule:
    """A string that is a whole number in [0, most]."""
    words = f"a string of a whole number in [0, {most}]"
    return Rule(words, lambda x: x.isascii() and x.isdigit() and len(x) < 20 and int(x) <= most)


def rules_of(annotated: Callable) -> dict[str, Rule]:
    """The rules of a JSON object that holds the fields of a dataclass, or the arguments of a
    function, by their types."""
    return {name: _rule_of(kind) for name, kind in get_type_hints(annotated).items()}


def _rule_of(kind: Any) -> Rule:
    arguments = [a for a in get_args(kind) if a is not type(None)]
    if type(None) in get_args(kind):
        return optional(_rule_of(arguments[0]))
    if get_origin(kind) in (tuple, Sequence):
        return list_of(_rule_of(arguments[0]))
    return _OF_TYPE[get_origin(kind) or kind]


ANYTHING = Rule("anything", lambda x: True)
TEXT = Rule("a string", lambda x: type(x) is str)
TRUTH = Rule("true or false", lambda x: type(x) is bool)
OBJECT = Rule("an object", lambda x: type(x) is dict)
_OF_TYPE = {
    str: TEXT,
    bool: TRUTH,
    int: whole(-(2**63), 2**63 - 1),
    float: number(-1e308, 1e308),
    dict: OBJECT,
}
# the name of a file beside another one, and never a way out of its folder
FILE_NAME = Rule("a file's name", lambda x: type(x) is str and bool(re.fullmatch(r"[\w.-]+", x)))


def check(
    where: Path | str, content: Any, rules: Mapping[str, Rule], *, all_of_them: bool = True
) -> dict:
    """An object whose fields are as their rules want them; it may have others.

    Args:
        all_of_them: a field that may not be null must not be missing.

    Raises:
        DataError: it has not.
    """
    if type(content) is not dict:
        raise DataError(f"{where}: must hold an object, got {_short(content)}")
    for name, rule in rules.items():
        if name not in content:
            if all_of_them and not rule.fits(None):
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
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    return parse_json(text, path)


def parse_json(text: str, where: Path | str) -> Any:
    """The value that a JSON document holds.

    Args:
        where: names the document in the error.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number or a nesting may be too long
        raise DataError(f"{where}: not JSON ({error})") from None


def _kind(mode: int) -> str:
    tests = {"folder": stat.S_ISDIR, "pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    return next((name for name, fits in tests.items() if fits(mode)), "device")


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):  # no value of JSON
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
