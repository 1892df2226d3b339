"""The tasks that `spanbert-fast finetune` knows, and those that a user has added."""

import importlib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from spanbert_fast.tasks.base import Task

    Kind = TypeVar("Kind", bound=type[Task])

_TASKS = {
    "qa": ("spanbert_fast.tasks.qa", "QuestionAnswering"),
    "ner": ("spanbert_fast.tasks.ner", "NamedEntities"),
    "relation": ("spanbert_fast.tasks.relation", "Relation"),
    "coref": ("spanbert_fast.tasks.coref", "Coreference"),
    "classify": ("spanbert_fast.tasks.classify", "Classification"),
}
NAMES = tuple(_TASKS)  # of the command line
_registered: dict[str, type] = {}


def register(kind: "Kind") -> "Kind":
    """Register your own task under its `name`; a decorator of the class.

    From then on `finetune` can train it in this process: see examples/toy_task.py.

    Raises:
        ValueError: the name is that of a task of this package.
    """
    if kind.name in _TASKS:
        raise ValueError(f"name must be none of {', '.join(_TASKS)}, got {kind.name}")
    _registered[kind.name] = kind
    return kind


def names() -> tuple[str, ...]:
    """All tasks that are known now."""
    return (*_TASKS, *_registered)


def task_class(name: str) -> "type[Task]":
    """The `Task` of that name; its module is imported only now."""
    if name in _registered:
        return _registered[name]
    module, attribute = _TASKS[name]
    return getattr(importlib.import_module(module), attribute)
