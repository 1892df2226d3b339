"""`spanbert-fast finetune`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from spanbert_fast.commands.settings import parse_settings, profiles, shown
from spanbert_fast.errors import UsageError
from spanbert_fast.extras import TRAIN, require
from spanbert_fast.tasks import task_class
from spanbert_fast.training.options import PRECISIONS, WEIGHTS_DTYPES

TASKS = {
    "qa": "answers in texts (SQuAD's formats)",
    "ner": "named entities (CoNLL's columns)",
    "coref": "coreference (CoNLL-2012)",
    "relation": "the relation of two entities (TACRED, SemEval, SciERC)",
    "classify": "classes or numbers of texts and pairs (GLUE, tables)",
}

EXAMPLES = """examples:
  spanbert-fast finetune qa --model spanbert-base-cased --train train-v2.0.json \\
      --dev dev-v2.0.json --output-dir runs/squad2
  spanbert-fast finetune ner --model runs/first/model --train train.conll --dev dev.conll \\
      --test test.conll --output-dir runs/ner --epochs 10 --patience 3
  spanbert-fast finetune relation --model spanbert-base-cased --train TRAIN_FILE.TXT \\
      --dev TEST_FILE_FULL.TXT --output-dir runs/semeval --seeds 1 2 3
  spanbert-fast finetune classify --model spanbert-base-cased --glue-task cola \\
      --train train.tsv --dev dev.tsv --output-dir runs/cola --epochs 4
  spanbert-fast finetune ner --output-dir runs/ner --resume
  spanbert-fast finetune qa --config runs/squad2/options.json --output-dir runs/again

`spanbert-fast finetune TASK --help` lists a task's own options too.
"""


class _Parser(argparse.ArgumentParser):
    """A parser that requires the task before any option, whose value could be a task's name."""

    def parse_known_args(  # type: ignore[override]  # one signature in place of its overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse."""
        first = next(iter(args or ()), "")
        if first.startswith("-") and first not in ("-h", "--help"):
            self.error(f"TASK must come first: finetune TASK {first} ...")
        return super().parse_known_args(args, namespace)


class _TaskParser(argparse.ArgumentParser):
    """The parser of one task; it asks the task for its options once the command line names it."""

    task = ""

    def parse_known_args(  # type: ignore[override]  # one signature in place of its overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Add this task's options first; those of the other tasks are never created."""
        self.fill()
        return super().parse_known_args(args, namespace)

    def fill(self) -> None:
        """Add the task's options, if they are not there yet."""
        if self.task:
            _add_options(self, self.task)
            self.task = ""


def parser() -> argparse.ArgumentParser:
    """The command's options; the namespace holds only those that were given."""
    parser = _Parser(
        prog="spanbert-fast finetune",
        description="Fine-tune a BERT or SpanBERT checkpoint: evaluate every epoch, keep the best, "
        "predict, and write a model card.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = parser.add_subparsers(
        dest="task", metavar="TASK", required=True, parser_class=_TaskParser, title="tasks"
    )
    for name, what in TASKS.items():
        tasks.add_parser(
            name,
            help=what,
            description=f"Fine-tune on {what}.",
            argument_default=argparse.SUPPRESS,
        ).task = name
    return parser


def task_parser(task: str) -> argparse.ArgumentParser:
    """The options of one task alone, as its --help lists them."""
    parser = argparse.ArgumentParser(
        prog=f"spanbert-fast finetune {task}", argument_default=argparse.SUPPRESS
    )
    _add_options(parser, task)
    return parser


def _add_options(parser: argparse.ArgumentParser, task: str) -> None:
    """Add the options; the namespace then holds only those that were given."""
    add = parser.add_argument
    add("--config", metavar="FILE", help="read options from YAML or JSON; typed options win")
    add(
        "--model", metavar="NAME", help="checkpoint and tokenizer: a directory or a name on the Hub"
    )
    for split, what in (
        ("train", "to learn from"),
        ("dev", "that chooses the best epoch"),
        ("test", "to measure once, at the end"),
    ):
        add(f"--{split}", metavar="FILE", help=f"data {what} (.gz and .xz are decompressed)")
    add("--output-dir", metavar="DIR", help="where everything is written")
    add("--resume", action="store_true", help="continue the run in --output-dir")
    add("--overwrite", action="store_true", help="replace the run in --output-dir")
    add("--skip-bad", action="store_true", help="leave bad data out, and count it")
    add("--max-train", type=int, metavar="N", help="use N examples of --train")
    add("--max-dev", type=int, metavar="N", help="use N examples of --dev")
    add("--learning-rate", type=float, metavar="X", help="highest learning rate")
    add("--head-learning-rate", type=float, metavar="X",
        help="highest learning rate of the head (default: the same; coref 3e-4)")  # fmt: skip
    add("--epochs", type=float, metavar="N", help="passes over the training data")
    add("--batch-size", type=int, metavar="N", help="sequences of one batch")
    add("--gradient-accumulation-steps", type=int, metavar="N", help="batches of a step (1)")
    add("--max-seq-length", type=int, metavar="N", help="word pieces of a sequence")
    add("--warmup-ratio", type=float, metavar="X", help="share of steps that warm up (0.1)")
    add("--weight-decay", type=float, metavar="X", help="decoupled decay (0.01)")
    add("--max-grad-norm", type=float, metavar="X", help="gradients are clipped to it (1.0)")
    add("--dropout", type=float, metavar="X", help="default: the checkpoint's own")
    add("--precision", choices=PRECISIONS, help="autocast (default auto: the fastest here)")
    add("--weights-dtype", choices=WEIGHTS_DTYPES,
        help="of the weights in training (fp32; bf16 loses small updates)")  # fmt: skip
    add("--engine", choices=("spanbert_fast", "transformers"),
        help="the model's code (spanbert_fast); transformers: stock BERT, to compare")  # fmt: skip
    add("--seeds", type=int, nargs="+", metavar="N", help="one run for each; prints their mean (0)")
    add("--patience", type=int, metavar="N", help="stop after N epochs without a gain (0: never)")
    add("--set", action="append", dest="training_arguments", metavar="NAME=VALUE",
        help="any further field of transformers.TrainingArguments")  # fmt: skip
    add(
        "--profile",
        type=int,
        metavar="N",
        help="trace N steps with torch.profiler and print the longest rows",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    kind = task_class(task)
    kind.add_arguments(
        parser.add_argument_group(
            f"options of {task}",
            f"defaults: learning rate {kind.defaults.learning_rate:g}, "
            f"{kind.defaults.epochs} epochs, batches of {kind.defaults.batch_size}, "
            f"{kind.defaults.max_seq_length} word pieces",
        )
    )


def run(arguments: argparse.Namespace) -> None:
    """Train for every seed, then print the figures."""
    require("finetune", "train", TRAIN)
    from spanbert_fast.training.finetuning.finetune import finetune
    from spanbert_fast.training.finetuning.options import FinetuneOptions, options_of_run

    given = vars(arguments)
    resume, overwrite = given.pop("resume", False), given.pop("overwrite", False)
    given.pop("debug", None)
    profiled = given.pop("profile", None)
    if "output_dir" not in given:
        raise UsageError("--output-dir must be given")
    if resume:
        extra = sorted(set(given) - {"task", "output_dir"})
        if extra:
            raise UsageError(
                f"--{extra[0].replace('_', '-')} cannot be given with --resume: the run in "
                "--output-dir has its own options"
            )
        options = options_of_run(given["output_dir"])
        if options.task != given["task"]:
            raise UsageError(f"the run in --output-dir is of {options.task}, not {given['task']}")
        callbacks = profiles(profiled, options.output_dir)
        done = finetune(options, resume=True, callbacks=callbacks)
        _report([done], options.output_dir)
        return
    for name in ("model", "train", "dev"):
        if name not in given:
            raise UsageError(f"--{name} must be given")
    seeds = given.pop("seeds", [0])
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds must differ, got {' '.join(map(str, seeds))}")
    known = FinetuneOptions.__dataclass_fields__
    task_options = {name: given.pop(name) for name in list(given) if name not in known}
    if "training_arguments" in given:
        given["training_arguments"] = parse_settings(given["training_arguments"])
    options = FinetuneOptions(**given, task_options=task_options, seed=seeds[0])
    runs = [options] if len(seeds) == 1 else [options.with_seed(seed) for seed in seeds]
    results = [
        finetune(options, overwrite=overwrite, callbacks=profiles(profiled, options.output_dir))
        for options in runs
    ]
    _report(results, options.output_dir)


def _report(results: Sequence[dict], output_dir: str) -> None:
    from spanbert_fast.training.finetuning.finetune import mean_and_deviation

    if int(os.environ.get("RANK", "0")) != 0:
        return
    summary = {}
    for split in ("dev", "test"):
        if split not in results[0]:
            continue
        summary[split] = mean_and_deviation(results, split)
        for name, (mean, deviation) in summary[split].items():
            spread = f" +- {deviation:.4g} over {len(results)} seeds" if len(results) > 1 else ""
            print(f"{split:<5}{name:<24}{shown(mean):>10}{spread}", file=sys.stdout)
    if len(results) > 1:
        path = Path(output_dir) / "seeds.json"
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        print(f"\nruns:  {output_dir}/seed-*", file=sys.stdout)
    else:
        print(f"\nmodel: {Path(output_dir) / 'model'}", file=sys.stdout)
