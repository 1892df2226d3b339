"""Options of a run from a YAML or JSON file, placed before those of the command line.

The file's names and values become arguments, which the command's own parser then checks. So an
option that is typed after them wins, and a mistake in the file is reported like a typed one.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spanbert_fast.errors import UsageError

# entries of a run's options.json that have another name as an option, or are no option
_RENAMED = {"recipe_name": "recipe", "training_arguments": "set", "seed": "seed"}
_GROUPS = ("overrides", "task_options")  # objects whose entries are options
_NO_OPTIONS = ("world_size", "labels")


def expand(argv: Sequence[str], renamed: dict[str, str] | None = None) -> list[str]:
    """The command line with the content of `--config FILE` in its place, before the rest.

    Args:
        argv: without the command's name.
        renamed: names in options.json -> names of options, beyond those that all commands have.

    Raises:
        UsageError: the file cannot be read, or does not hold an object.
    """
    argv = list(argv)
    at = next((i for i, a in enumerate(argv) if a.partition("=")[0] == "--config"), None)
    if at is None:
        return argv
    flag, equals, path = argv.pop(at).partition("=")
    if not equals:
        if at == len(argv):
            raise UsageError("--config needs a file")
        path = argv.pop(at)
    content = _read(Path(path))
    task = content.pop("task", None)
    first = [task] if task is not None and not _names_a_task(argv) else []
    given = list(_arguments(content, {**_RENAMED, **(renamed or {})}, path))
    if not first and argv and not argv[0].startswith("-"):
        first = [argv.pop(0)]  # the task that the command line names
    return [*first, *given, *argv]


def _names_a_task(argv: Sequence[str]) -> bool:
    return bool(argv) and not argv[0].startswith("-")


def _arguments(content: dict, renamed: dict[str, str], path: str) -> Iterator[str]:
    for name, value in content.items():
        if name in _GROUPS and isinstance(value, dict):
            yield from _arguments(value, renamed, path)
            continue
        if value is None or name in _NO_OPTIONS:
            continue
        option = "--" + str(renamed.get(name, name)).replace("_", "-")
        if isinstance(value, dict):
            for key, entry in value.items():
                yield from (option, f"{key}={json.dumps(entry)}")
        elif isinstance(value, bool):
            if value:
                yield option
        elif isinstance(value, list):
            if value:
                yield from (option, *map(_text, value))
        elif value == "" or isinstance(value, (str, int, float)):
            yield f"{option}={_text(value)}"
        else:
            raise UsageError(f"--config {path}: {name} must be a value or a list, got {value!r}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read(path: Path) -> dict:
    if not path.is_file():
        raise UsageError(f"--config {path}: no such file")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            content = json.loads(text)
        else:
            import yaml  # PyYAML comes with huggingface_hub

            content = yaml.safe_load(text)
    except Exception as error:  # each parser raises its own errors
        raise UsageError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config {path}: must hold names and values")
    return {str(name).replace("-", "_"): value for name, value in content.items()}
