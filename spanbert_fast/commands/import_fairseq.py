"""`spanbert-fast import-fairseq`."""

import argparse

EXAMPLES = """example:
  spanbert-fast import-fairseq model.pt spanbert-large --tokenizer vocab.txt
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="spanbert-fast import-fairseq",
        description="Turn an original SpanBERT training checkpoint, both heads included, into a "
        "directory that from_pretrained reads.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="model.pt")
    parser.add_argument("output_dir", metavar="OUT")
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="a vocab.txt, the release's dict.txt, or a tokenizer directory",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Import, then say what was read and what was left out."""
    from spanbert_fast.integrations.import_fairseq import import_fairseq

    report = import_fairseq(arguments.checkpoint, arguments.output_dir, arguments.tokenizer)
    print(report)
