"""`spanbert-fast export`."""

import argparse

from spanbert_fast.hub import folder_of

EXAMPLES = """examples:
  spanbert-fast export runs/old/model for-others --to bert
  spanbert-fast export runs/first/model half --to safetensors-bf16
  spanbert-fast export roberta-base copy --to as-loaded
  spanbert-fast export runs/ner/model served --to onnx
"""
KINDS = ("as-loaded", "bert", "safetensors-fp16", "safetensors-bf16", "onnx")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="spanbert-fast export",
        description="Write a checkpoint for other software: an ordinary BERT of transformers, or "
        "another encoder that accelerate() knows as what it is (RoBERTa, ELECTRA, DistilBERT ...), "
        "in fp32 or half precision, or ONNX. What was written is loaded in another process, "
        "without this package, and its outputs are compared.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a checkpoint: a directory, or a name of the Hub")
    add("output", metavar="OUT", help="a directory that does not exist yet")
    add(
        "--to",
        choices=KINDS,
        default="as-loaded",
        help="default as-loaded: its own family, and of a SpanBERT a BERT",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Export, then say how far the outputs differ."""
    folder = folder_of(arguments.model, "MODEL")
    from spanbert_fast.integrations.export import export

    done = export(folder, arguments.output, arguments.to)
    print(
        f"{done.folder}: {done.kind}, outputs elsewhere differ by {done.error:.2g} of the largest"
    )
