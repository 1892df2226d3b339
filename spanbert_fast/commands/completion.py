"""`spanbert-fast completion`."""

import argparse
import importlib
from typing import Any

from spanbert_fast.extras import require

EXAMPLES = """examples:
  source <(spanbert-fast completion bash)
  spanbert-fast completion zsh > ~/.zfunc/_spanbert-fast
  spanbert-fast completion fish > ~/.config/fish/completions/spanbert-fast.fish
"""
SHELLS = ("bash", "zsh", "tcsh", "fish")
_FILES = {"FILE", "PATH", "MODEL", "NAME", "OUT", "CKPT"}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="spanbert-fast completion",
        description="Print a script by which a shell completes commands, tasks, options and their "
        "values. The shell starts no Python for it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Print the script."""
    require("completion", "completion", ("shtab",))
    import shtab

    everything = whole_parser()
    for action in _actions(everything):
        if action.metavar in _FILES and not action.choices:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(everything, shell=arguments.shell))


def whole_parser() -> argparse.ArgumentParser:
    """One parser of all commands and, under `finetune`, of all tasks."""
    from spanbert_fast.cli import COMMANDS

    whole = argparse.ArgumentParser(prog="spanbert-fast", add_help=False)
    whole.add_argument("-h", "--help", action="help", help="show the commands")
    whole.add_argument("--version", action="store_true", help="show the version")
    of_name: Any = _parser_of  # argparse calls this value; to a type checker it is a class
    commands = whole.add_subparsers(dest="command", parser_class=of_name)
    for name, what in COMMANDS.items():
        made = commands.add_parser(name, help=what)
        for task in _tasks_of(made):
            task.fill()
    return whole


def _parser_of(prog: str, **_) -> argparse.ArgumentParser:
    name = prog.split()[-1]
    return importlib.import_module(f"spanbert_fast.commands.{name.replace('-', '_')}").parser()


def _tasks_of(parser: argparse.ArgumentParser) -> list:
    choices = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return [task for named in choices for task in (named or {}).values()]


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    inner = [action for one in _tasks_of(parser) for action in _actions(one)]
    return [*parser._actions, *inner]
