"""`spanbert-fast predict`."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from spanbert_fast.commands.settings import shown
from spanbert_fast.errors import UsageError
from spanbert_fast.hub import check_name, folder_of
from spanbert_fast.tasks import NAMES
from spanbert_fast.training.options import PRECISIONS

EXAMPLES = """examples:
  spanbert-fast predict ner runs/ner/model test.conll --output predictions.conll
  spanbert-fast predict qa runs/squad2/model dev-v2.0.json --output answers/predictions.json
  spanbert-fast predict classify runs/cola/model test.tsv --precision bf16
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="spanbert-fast predict",
        description="Predict with a fine-tuned model: batched by length, packed, and decoded into "
        "the task's official format. Where the file has gold answers, figures are printed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("task", choices=NAMES, metavar="TASK", help=", ".join(NAMES))
    add("model", metavar="MODEL", help="a model of `finetune`: a directory or a name on the Hub")
    add("file", metavar="FILE", help="data as in training; the answers may be missing")
    add("--output", metavar="FILE", help="default: beside FILE's name, in the current directory")
    add("--precision", choices=PRECISIONS, default="fp32", help="autocast (default fp32)")
    add("--tokens-per-batch", type=int, default=8192, metavar="N", help="default 8192")
    add("--skip-bad", action="store_true", help="leave bad data out, and count it")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Write the predictions and print the figures."""
    file = Path(arguments.file)
    check_name(arguments.model, "MODEL")
    if not file.is_file():
        raise UsageError(f"FILE {file}: no such file")
    if arguments.tokens_per_batch < 1:
        raise UsageError(f"--tokens-per-batch must be at least 1, got {arguments.tokens_per_batch}")
    model_dir = folder_of(arguments.model, "MODEL")
    import torch

    from spanbert_fast.data.tokenizer import load_wordpiece
    from spanbert_fast.tasks.predict import predictions
    from spanbert_fast.training.finetuning.models import finetuned_model
    from spanbert_fast.training.finetuning.run_directory import load_task
    from spanbert_fast.training.precision import resolved_precision

    task = load_task(model_dir, arguments.task)
    examples, skipped = task.read(file, skip_bad=arguments.skip_bad)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolved_precision(arguments.precision, device)
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    tokenizer = load_wordpiece(model_dir)
    examples, misfits = task.fitting(examples, tokenizer, file, skip_bad=arguments.skip_bad)
    model = finetuned_model(model_dir, task, tokenizer).to(device)
    made = predictions(
        model,
        task,
        examples,
        tokenizer,
        autocast=lambda: torch.autocast(device.type, half, enabled=precision != "fp32"),
        tokens_per_batch=arguments.tokens_per_batch,
        progress=True,
    )
    output = Path(arguments.output or f"{file.name.split('.')[0]}.{task.predictions_file}")
    output.parent.mkdir(parents=True, exist_ok=True)
    to_measure: list = []
    if task.has_answers(examples):
        made = _remembered(made, task, to_measure)
    written = task.write(output, examples, made)
    if to_measure:
        for name, value in task.metrics(examples, to_measure).items():
            print(f"{name:<24}{shown(value):>10}")
    if skipped + misfits:
        print(f"bad examples left out: {skipped + misfits:,}")
    print("written: " + ", ".join(map(str, written)))


def _remembered(made: Iterable, task, to_measure: list) -> Iterator:
    """Yield the predictions, and keep of each the part that is measured."""
    for prediction in made:
        to_measure.append(task.measured(prediction))
        yield prediction
