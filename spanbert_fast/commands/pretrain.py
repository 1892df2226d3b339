"""`spanbert-fast pretrain`."""

import argparse
import dataclasses
import os
import sys
import typing
from pathlib import Path

from spanbert_fast.commands.settings import WORDS_HELP, parse_settings, profiles
from spanbert_fast.errors import UsageError
from spanbert_fast.extras import TRAIN, require
from spanbert_fast.training.options import PRECISIONS, WEIGHTS_DTYPES
from spanbert_fast.training.pretraining.options import PretrainOptions, resumed_options
from spanbert_fast.training.pretraining.recipes import RECIPES, Recipe
from spanbert_fast.values import WORDS

EXAMPLES = """examples:
  spanbert-fast pretrain --output-dir runs/first
      a tiny model on the text that comes with Python: a few minutes on two cores
  spanbert-fast pretrain --data books/*.txt.xz --recipe small --output-dir runs/books
  spanbert-fast pretrain --data papers.jsonl --init-from path/to/bert --recipe spanbert-base \\
      --max-steps 20000 --learning-rate 5e-5 --precision bf16 --output-dir runs/papers
      turn a BERT into a SpanBERT of your field
  spanbert-fast pretrain --data zh.txt --init-from path/to/xlm-roberta --words characters \\
      --recipe spanbert-base --max-steps 20000 --output-dir runs/zh
  spanbert-fast pretrain --output-dir runs/papers --resume
  spanbert-fast pretrain --config run.yaml --learning-rate 1e-4
  torchrun --nproc-per-node 8 -m spanbert_fast pretrain --gradient-accumulation-steps 1 ...
"""


def parser() -> argparse.ArgumentParser:
    """The command's options; every value of a recipe is one."""
    parser = argparse.ArgumentParser(
        prog="spanbert-fast pretrain",
        usage="spanbert-fast pretrain --output-dir DIR [OPTIONS]",
        description="Pre-train a SpanBERT: masked spans of whole words, masked LM and span "
        "boundary losses, on text of your own or on the text that comes with Python.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--output-dir", metavar="DIR", help="where the run is written (required)")
    add("--config", metavar="FILE", help="read options from YAML or JSON; typed options win")
    add(
        "--data",
        nargs="+",
        metavar="PATH",
        help=".txt (blank line between documents), .txt.gz/.xz/.zst, .jsonl or .parquet with a "
        "`text` field, a saved Hugging Face dataset, or directories made by `spanbert-fast "
        "prepare`, or hf://OWNER/NAME[/CONFIG][:SPLIT]; default: the embedded corpus",
    )
    add(
        "--max-line-bytes",
        type=int,
        metavar="N",
        help="refuse longer lines, of text or JSON (default 67108864)",
    )
    add(
        "--tokenizer",
        metavar="NAME",
        help="a fast tokenizer of any kind, a directory or a name of the Hub; default: train a "
        "WordPiece one",
    )
    add("--words", choices=WORDS, help=WORDS_HELP)
    add(
        "--init-from",
        metavar="NAME",
        help="start from a checkpoint of a BERT, a SpanBERT or another encoder that `accelerate` "
        "knows (RoBERTa, XLM-RoBERTa, ...), a directory or a name of the Hub",
    )
    add(
        "--recipe",
        dest="recipe_name",
        metavar="NAME",
        help=f"one of {', '.join(RECIPES)} (default tiny)",
    )
    add("--seed", type=int, metavar="N", help="of weights, order, masks and dropout (default 0)")
    add("--held-out", type=float, metavar="SHARE", help="share of the text held out (default 0.02)")
    add("--precision", choices=PRECISIONS, help="arithmetic (default auto: the fastest here)")
    add(
        "--weights-dtype",
        choices=WEIGHTS_DTYPES,
        help="of the weights while they are trained, whatever --init-from is stored in (default "
        "fp32; bf16 takes half the memory and loses small updates)",
    )
    add(
        "--static-shapes",
        action="store_true",
        help="fill every training batch up to fixed sizes: kernels and `--set torch_compile=true` "
        "are compiled once, and a step can be a CUDA graph",
    )
    add(
        "--cuda-graph",
        action="store_true",
        help="launch each step's forward and backward as one CUDA graph; one GPU, one batch a "
        "step, with --static-shapes",
    )
    add(
        "--max-minutes",
        type=float,
        metavar="N",
        help="measure a step, then train as many as fit into so many minutes, at most --max-steps "
        "of the recipe",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue the run in --output-dir")
    again.add_argument("--overwrite", action="store_true", help="replace the run in --output-dir")
    often = parser.add_argument_group("how often, how many")
    often.add_argument("--save-steps", type=int, metavar="N", help="steps between checkpoints")
    often.add_argument("--save-total-limit", type=int, metavar="N", help="checkpoints kept (2)")
    often.add_argument("--logging-steps", type=int, metavar="N", help="steps between log lines")
    often.add_argument("--eval-steps", type=int, metavar="N", help="steps between evaluations")
    often.add_argument("--num-workers", type=int, metavar="N", help="processes that make batches")
    often.add_argument(
        "--set",
        dest="training_arguments",
        action="append",
        metavar="NAME=VALUE",
        help="any other field of transformers.TrainingArguments, e.g. torch_compile=true",
    )
    _add_recipe_options(parser)
    add("--profile", type=int, metavar="N", help="trace N steps with torch.profiler")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    types = typing.get_type_hints(Recipe)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in dataclasses.fields(Recipe):
        title = field.metadata["group"]
        group = groups.get(title) or parser.add_argument_group(title)
        groups[title] = group
        values = ", ".join(
            f"{name.removeprefix('spanbert-')} {getattr(recipe, field.name):g}"
            if isinstance(field.default, (int, float))
            else f"{name.removeprefix('spanbert-')} {getattr(recipe, field.name)}"
            for name, recipe in RECIPES.items()
        )
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            type=types[field.name],
            choices=field.metadata["choices"],
            metavar=None if field.metadata["choices"] else types[field.name].__name__.upper(),
            help=f"{field.metadata['help']} ({values})",
        )


def options_of(arguments: argparse.Namespace, world_size: int) -> PretrainOptions:
    """The run that the command line asks for.

    Raises:
        UsageError: an option is missing or not valid.
    """
    given = dict(vars(arguments))
    for name in ("debug", "overwrite", "profile"):
        given.pop(name, None)
    resume = given.pop("resume", False)
    if "output_dir" not in given:
        raise UsageError("--output-dir must be given")
    recipe_fields = {field.name for field in dataclasses.fields(Recipe)}
    overrides = {name: given.pop(name) for name in list(given) if name in recipe_fields}
    if "data" in given:
        given["data"] = tuple(_data_name(path) for path in given["data"])
    if "training_arguments" in given:
        given["training_arguments"] = parse_settings(given["training_arguments"])
    if resume:
        output_dir = given.pop("output_dir")
        return resumed_options(output_dir, {**given, "overrides": overrides}, world_size)
    options = PretrainOptions(**given, overrides=overrides)
    options.recipe.check()
    return options


def _data_name(path: str) -> str:
    return path if path.startswith("hf://") else str(Path(path))


def run(arguments: argparse.Namespace) -> None:
    """Train, then print the result."""
    require("pretrain", "train", TRAIN)
    from spanbert_fast.training.pretraining.pretrain import pretrain

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    options = options_of(arguments, world_size)
    summary = pretrain(
        options,
        resume=getattr(arguments, "resume", False),
        overwrite=getattr(arguments, "overwrite", False),
        callbacks=profiles(getattr(arguments, "profile", None), options.output_dir),
    )
    if int(os.environ.get("RANK", "0")) == 0:
        print(report(summary, options.output_dir), file=sys.stdout)


def report(summary: dict, output_dir: str) -> str:
    """A run's result, for a person."""
    before, after = summary["held_out_before"], summary["held_out_after"]
    rows = [
        ("held out", "before", "after"),
        *(
            (label, *(f"{s[name]:.3f}" if s[count] else "no target" for s in (before, after)))
            for label, name, count in (
                ("masked-LM loss (nats)", "mlm_loss", "mlm_count"),
                ("masked-LM accuracy", "mlm_accuracy", "mlm_count"),
                ("span boundary loss (nats)", "sbo_loss", "sbo_count"),
                ("span boundary accuracy", "sbo_accuracy", "sbo_count"),
            )
        ),
    ]
    lines = [f"{a:<28}{b:>10}{c:>10}" for a, b, c in rows]
    lines.append(
        f"{'unigram model, same tokens':<28}{'':>10}{summary['unigram_cross_entropy']:>10.3f}"
    )
    if summary.get("tokens_per_second"):
        lines.append(f"\ntraining speed: {summary['tokens_per_second']:,.0f} tokens/s (median)")
    example = summary["example"]
    lines += [
        f"\nmasked:   {example['masked']}",
        f"filled:   {example['filled']}",
        f"original: {example['original']}",
        f"\ncheckpoint: {Path(output_dir) / 'model'}",
        f"curves:     {Path(output_dir) / 'loss.png'}",
    ]
    return "\n".join(lines)
