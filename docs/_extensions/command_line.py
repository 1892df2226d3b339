"""The reference of the command line, out of the parsers themselves.

{commands}                           a section for each command, with every option of its
                                     parser, and of its parsers for tasks
{families}                           what `accelerate` knows, from its own table
{task-options} qa                    the options that `finetune` has for one task alone
{configuration-fields} SpanBertConfig    the fields of a class: type and default
{recipes}                            every value of every recipe
"""

import argparse
import dataclasses
import importlib
import textwrap
import typing
from collections.abc import Iterable

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from spanbert_fast.tasks import NAMES

CLASSES = {
    "PretrainOptions": "spanbert_fast.training.pretraining.options",
    "FinetuneOptions": "spanbert_fast.training.finetuning.options",
    "SpanBertConfig": "spanbert_fast.config",
    "SpanOptions": "spanbert_fast.ops.span_options",
}


def parser_of(command: str, task: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command; with a task, the one that knows that task's options too."""
    module = importlib.import_module(f"spanbert_fast.commands.{command.replace('-', '_')}")
    return module.parser() if task is None else module.task_parser(task)


def groups_of(parser: argparse.ArgumentParser) -> list[tuple[str, str, list[argparse.Action]]]:
    """(title, description, actions) of each group that has an action."""
    groups = []
    for group in parser._action_groups:
        actions = [
            action
            for action in group._group_actions
            if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
        ]
        if actions:
            groups.append((group.title or "options", group.description or "", actions))
    return groups


def usage_of(action: argparse.Action) -> str:
    """`--data PATH [PATH ...]`, as the command's own help writes it."""
    formatter = argparse.HelpFormatter("")
    value = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
    if not action.option_strings:
        return str(action.metavar or action.dest)
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {value}"


def _cell(text: str | nodes.Node) -> nodes.entry:
    inside = nodes.paragraph("", text) if isinstance(text, str) else nodes.paragraph("", "", text)
    return nodes.entry("", inside)


def table(header: Iterable[str], rows: Iterable[Iterable[str | nodes.Node]]) -> nodes.table:
    """A table; nodes are taken as they are."""
    header, rows = list(header), [list(row) for row in rows]
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=1) for _ in header]
    group += nodes.thead("", nodes.row("", *map(_cell, header)))
    group += nodes.tbody("", *(nodes.row("", *map(_cell, row)) for row in rows))
    return nodes.table("", group)


def options_of(parser: argparse.ArgumentParser, only: str | None = None) -> list[nodes.Node]:
    """A table for each group of options; `only` names one group."""
    found: list[nodes.Node] = []
    for title, description, actions in groups_of(parser):
        if only is not None and title != only:
            continue
        if only is None and title not in ("options", "positional arguments"):
            found.append(nodes.rubric("", title))
        if description:
            found.append(nodes.paragraph("", description))
        rows = [(nodes.literal("", usage_of(a)), (a.help or "") % vars(a)) for a in actions]
        found.append(table(("option", "what it does"), rows))
    return found


def section(title: str, *content: nodes.Node) -> nodes.section:
    """A section that the contents list."""
    name = nodes.make_id(title)
    return nodes.section("", nodes.title("", title), *content, ids=[name], names=[name])


class Commands(SphinxDirective):
    """A section for each command: what it is for, its options, its examples."""

    def run(self) -> list[nodes.Node]:
        from spanbert_fast.cli import COMMANDS

        return [self.describe(name, purpose) for name, purpose in COMMANDS.items()]

    def describe(self, name: str, purpose: str) -> nodes.section:
        """One command."""
        parser = parser_of(name)
        content = [nodes.paragraph("", parser.description or purpose), *options_of(parser)]
        if name == "finetune":  # what all tasks have in common, then what each adds
            content += options_of(parser_of(name, NAMES[0]), only="options")
            for task in NAMES:
                content.append(nodes.rubric("", f"options of {task}"))
                content += options_of(parser_of(name, task), only=f"options of {task}")
        if parser.epilog:
            head, _, code = parser.epilog.strip("\n").partition("\n")
            content.append(nodes.paragraph("", head[:1].upper() + head[1:]))
            content.append(nodes.literal_block("", textwrap.dedent(code), language="console"))
        return section(f"spanbert-fast {name}", *content)


class TaskOptions(SphinxDirective):
    """The options that `finetune` has for one task, and its defaults."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (task,) = self.arguments
        found = options_of(parser_of("finetune", task), only=f"options of {task}")
        if not found:
            raise self.error(f"finetune has no options of {task}")
        return found


class ConfigurationFields(SphinxDirective):
    """The fields of a dataclass: type and default."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        kind = getattr(importlib.import_module(CLASSES[name]), name)
        own = kind.__annotations__ if name == "SpanBertConfig" else None
        rows = []
        for field in dataclasses.fields(kind):
            if own is not None and field.name not in own:
                continue
            hint = field.type if isinstance(field.type, str) else str(field.type)
            hint = field.type.__name__ if isinstance(field.type, type) else hint
            default = "required"
            if field.default is not dataclasses.MISSING:
                default = repr(field.default)
            elif field.default_factory is not dataclasses.MISSING:
                default = repr(field.default_factory())
            hint = hint.replace("typing.", "").replace("collections.abc.", "")
            rows.append([nodes.literal("", text) for text in (field.name, hint, default)])
        return [table(("field", "type", "default"), rows)]


class Recipes(SphinxDirective):
    """Every value of every recipe, one row a field."""

    def run(self) -> list[nodes.Node]:
        from spanbert_fast.training.pretraining.recipes import RECIPES, Recipe

        found: list[nodes.Node] = []
        groups: dict[str, list] = {}
        for field in dataclasses.fields(Recipe):
            groups.setdefault(field.metadata["group"], []).append(field)
        types = typing.get_type_hints(Recipe)
        for title, fields in groups.items():
            rows = []
            for field in fields:
                values = [getattr(recipe, field.name) for recipe in RECIPES.values()]
                texts = [f"{v:g}" if types[field.name] in (int, float) else str(v) for v in values]
                rows.append([nodes.literal("", field.name), *texts])
            found += [nodes.rubric("", title), table(("field", *RECIPES), rows)]
        return found


class Families(SphinxDirective):
    """The families of encoders that `accelerate` knows, and their classes that have a head."""

    def run(self) -> list[nodes.Node]:
        from spanbert_fast.accelerated.families import FAMILIES

        rows = []
        for family in FAMILIES:
            heads = [name for name in family.classes if "For" in name or "LMHead" in name]
            rows.append([family.title, nodes.literal("", ", ".join(heads) or "none")])
        return [table(("family", "classes with a head"), rows)]


def setup(app: Sphinx) -> dict:
    """The directives."""
    app.add_directive("families", Families)
    app.add_directive("commands", Commands)
    app.add_directive("task-options", TaskOptions)
    app.add_directive("configuration-fields", ConfigurationFields)
    app.add_directive("recipes", Recipes)
    return {"parallel_read_safe": True}
