"""The `spanbert-fast` command: `spanbert-fast COMMAND --help` tells each one's options."""

import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence

from spanbert_fast import __version__
from spanbert_fast.errors import UsageError
from spanbert_fast.extras import MissingExtra

COMMANDS = {
    "pretrain": "pre-train, continue or resume a SpanBERT",
    "prepare": "tokenise a corpus once, into memory-mapped shards",
    "finetune": "fine-tune on question answering, entities, relations, classification",
    "predict": "predict with a fine-tuned model, in the task's official format",
    "fill": "fill [MASK] [MASK] with the best words",
    "export": "write a checkpoint for transformers, ONNX, in half precision",
    "import-fairseq": "convert an original SpanBERT training checkpoint",
    "env": "versions, hardware, and which implementation each op runs",
    "completion": "print a script for the completion of your shell",
}

USAGE_ERROR, FAILURE, INTERRUPTED, TERMINATED = 2, 1, 130, 143


class _Terminated(BaseException):
    """SIGTERM has come."""


def _help() -> str:
    rows = "\n".join(f"  {name:<16}{text}" for name, text in COMMANDS.items())
    return (
        "usage: spanbert-fast COMMAND [OPTIONS]\n\n"
        f"commands:\n{rows}\n\n"
        "examples:\n"
        "  spanbert-fast pretrain --output-dir runs/first\n"
        '  spanbert-fast fill "The [MASK] [MASK] fox" --model runs/first/model\n\n'
        "`spanbert-fast COMMAND --help` lists a command's options.\n"
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_help(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else USAGE_ERROR
    if argv[0] == "--version":
        print(f"spanbert-fast {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        print(
            f"spanbert-fast: COMMAND must be one of {', '.join(COMMANDS)}, got {name}",
            file=sys.stderr,
        )
        return USAGE_ERROR
    try:
        with _sigterm_raises(), _threads_in_one_line(debug="--debug" in argv):
            return _run(name, argv)
    except KeyboardInterrupt:
        print(f"spanbert-fast {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except _Terminated:
        print(f"spanbert-fast {name}: terminated", file=sys.stderr)
        return TERMINATED
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        else:
            print(f"spanbert-fast {name}: error: {_one_line(error)}", file=sys.stderr)
        return FAILURE


def _run(name: str, argv: list[str]) -> int:
    """Import the command, read its options, run it; usage errors are printed here."""
    try:
        command = importlib.import_module(f"spanbert_fast.commands.{name.replace('-', '_')}")
        arguments = command.parser().parse_args(_with_config(name, argv[1:]))
        _quieten(debug="--debug" in argv)
        command.run(arguments)
    except SystemExit as stop:  # argparse has printed what is wrong, or the help
        return int(stop.code or 0)
    except UsageError as error:
        if "--debug" in argv:
            traceback.print_exc()
        else:
            print(f"spanbert-fast {name}: error: {_one_line(error)}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def _with_config(name: str, argv: list[str]) -> list[str]:
    if name not in ("pretrain", "finetune"):
        return argv
    from spanbert_fast.commands.run_file import expand

    return expand(argv, {"seed": "seeds"} if name == "finetune" else None)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends the command as an interrupt does, so that what is open is left in order."""

    def terminate(signum, frame):
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # no other may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _threads_in_one_line(debug: bool) -> Iterator[None]:
    """An error in a thread of a library is a line, too."""

    def tell(stop) -> None:
        name = stop.thread.name if stop.thread else "a thread"
        print(f"spanbert-fast: in {name}: {_one_line(stop.exc_value)}", file=sys.stderr)

    before = threading.excepthook
    if not debug:
        threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    expected = isinstance(error, (ValueError, OSError, ArithmeticError, MissingExtra))
    return text if text and expected else f"{type(error).__name__}: {text} (--debug shows where)"


def _quieten(debug: bool) -> None:
    """Our own log lines on stderr, from the first process; libraries speak only of errors."""
    logger = logging.getLogger("spanbert_fast")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]  # not one that an earlier call in this process has left
    logger.propagate = False
    first = os.environ.get("RANK", "0") == "0"
    logger.setLevel(logging.INFO if first else logging.WARNING)
    # tokenizers warns where workers are forked after it has used its threads; ours never tokenise
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not debug:
        _quieten_libraries()
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)


def _quieten_libraries() -> None:
    """What is loaded is told now; what a command has yet to load reads the environment."""
    for name, value in (
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TRANSFORMERS_VERBOSITY", "error"),
    ):
        os.environ.setdefault(name, value)
    if datasets := sys.modules.get("datasets"):
        datasets.disable_progress_bars()
    if transformers := sys.modules.get("transformers"):
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
