"""`spanbert-fast fill`."""

import argparse
import json
import sys

from spanbert_fast.errors import UsageError
from spanbert_fast.hub import check_name, folder_of

DEFAULT_MODEL = "runs/first/model"  # what `make pretrain` leaves

EXAMPLES = """examples:
  spanbert-fast fill "The [MASK] [MASK] fox" --top-k 5
  spanbert-fast fill "The [MASK] [MASK] fox" --model runs/papers/model --head sbo
  cat sentences.txt | spanbert-fast fill --model path/to/spanbert --head mlm --json
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="spanbert-fast fill",
        description="Fill runs of [MASK] of any length, from the masked-LM head, the span "
        "boundary head, or both.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("text", nargs="*", help="sentences with [MASK]; default: the lines of standard input")
    add(
        "--model",
        metavar="NAME",
        help=f"a directory or a name of the Hub (default {DEFAULT_MODEL})",
    )
    add("--top-k", type=int, default=5, metavar="K", help="fillings of a sentence (default 5)")
    add(
        "--head",
        choices=("mlm", "sbo", "both"),
        default="both",
        help="the head that predicts (default both)",
    )
    add("--json", action="store_true", help="a JSON object per filling")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Print the fillings of every sentence."""
    model_dir = arguments.model or DEFAULT_MODEL
    check_name(str(model_dir), "--model")
    if arguments.top_k < 1:
        raise UsageError(f"--top-k must be at least 1, got {arguments.top_k}")
    texts = arguments.text or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise UsageError("no sentence was given")

    from spanbert_fast.data.tokenizer import load_tokenizer
    from spanbert_fast.fill_span import FillSpan
    from spanbert_fast.models import AutoModelForSpanPreTraining

    model_dir = folder_of(model_dir, "--model")
    tokenizer = load_tokenizer(model_dir)
    model, report = AutoModelForSpanPreTraining.from_pretrained(model_dir, output_loading_info=True)
    heads = report["missing_keys"]
    if arguments.head == "mlm":
        heads = [name for name in heads if not name.startswith("cls.span_boundary.")]
    lacking = sorted(heads)
    if lacking:
        hint = "; --head mlm needs only the masked-LM head" if arguments.head != "mlm" else ""
        raise UsageError(f"--model {model_dir} has no {lacking[0]}{hint}")
    for text, fillings in zip(
        texts,
        FillSpan(model, tokenizer)(texts, top_k=arguments.top_k, head=arguments.head),
        strict=True,
    ):
        for filling in fillings:
            if arguments.json:
                print(json.dumps({"input": text, "text": filling.text, "score": filling.score}))
            else:
                print(f"{filling.score:9.3f}  {filling.text}")
