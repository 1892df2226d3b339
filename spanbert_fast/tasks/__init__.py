"""The tasks that `spanbert-fast finetune` knows."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spanbert_fast.tasks.base import Task

_TASKS = {
    "qa": ("spanbert_fast.tasks.qa", "QuestionAnswering"),
    "ner": ("spanbert_fast.tasks.ner", "NamedEntities"),
    "relation": ("spanbert_fast.tasks.relation", "Relation"),
    "coref": ("spanbert_fast.tasks.coref", "Coreference"),
    "classify": ("spanbert_fast.tasks.classify", "Classification"),
}
NAMES = tuple(_TASKS)


def task_class(name: str) -> "type[Task]":
    """The `Task` of that name; its module is imported only now."""
    module, attribute = _TASKS[name]
    return getattr(importlib.import_module(module), attribute)
