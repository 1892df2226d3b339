"""`spanbert-fast prepare`."""

import argparse
import logging
from pathlib import Path

from spanbert_fast.commands.settings import WORDS_HELP
from spanbert_fast.errors import UsageError
from spanbert_fast.extras import require
from spanbert_fast.hub import folder_of
from spanbert_fast.values import WORDS

logger = logging.getLogger("spanbert_fast")

EXAMPLES = """examples:
  spanbert-fast prepare --data wiki/*.txt.zst --tokenizer path/to/bert --output-dir shards/wiki
  spanbert-fast prepare --data papers.jsonl --vocab-size 30000 --output-dir shards/papers
  spanbert-fast pretrain --data shards/wiki shards/papers --tokenizer path/to/bert ...
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="spanbert-fast prepare",
        description="Tokenise a corpus once, on all cores, into memory-mapped shards that "
        "`pretrain` reads without a copy.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="PATH",
        help="as for `pretrain`; default: the embedded corpus",
    )
    add("--output-dir", required=True, metavar="DIR", help="where the shards are written")
    add(
        "--tokenizer",
        metavar="NAME",
        help="a fast tokenizer of any kind, a directory or a name of the Hub; default: train a "
        "WordPiece one",
    )
    add("--words", choices=WORDS, default="tokenizer", help=WORDS_HELP)
    add(
        "--vocab-size",
        type=int,
        default=28996,
        metavar="N",
        help="word pieces of the tokenizer that is trained (default 28996)",
    )
    add(
        "--max-line-bytes",
        type=int,
        default=1 << 26,
        metavar="N",
        help="refuse longer lines, of text or JSON (default 67108864)",
    )
    add("--overwrite", action="store_true", help="replace existing shards")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Tokenise, then say what was written."""
    require("prepare", "train", ("datasets", "pyarrow"))
    from spanbert_fast.data.locks import locked
    from spanbert_fast.data.prepare import (
        MANIFEST,
        clear_leftovers,
        is_prepared,
        open_shards,
        prepare,
    )
    from spanbert_fast.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_wordpiece
    from spanbert_fast.training.pretraining.sources import documents_of

    output = Path(arguments.output_dir)
    if arguments.max_line_bytes < 1:
        raise UsageError(f"--max-line-bytes must be at least 1, got {arguments.max_line_bytes}")
    with locked(output):
        if is_prepared(output) and not arguments.overwrite:
            clear_leftovers(output)
            raise UsageError(f"--output-dir {output} already holds shards; add --overwrite")
        documents = documents_of(tuple(arguments.data), arguments.max_line_bytes)
        if arguments.tokenizer:
            folder = folder_of(arguments.tokenizer, "--tokenizer", weights=False)
            tokenizer = load_tokenizer(folder)
        else:
            logger.info("training a WordPiece vocabulary of %d", arguments.vocab_size)
            tokenizer = train_wordpiece(documents["text"], arguments.vocab_size)
        # All input has been read. Without it the shards are leftovers, which prepare replaces.
        (output / MANIFEST).unlink(missing_ok=True)
        prepare(documents, tokenizer, output, words=arguments.words)
    shards = open_shards(output, tokenizer_fingerprint(tokenizer))
    tokens = sum(len(shard.tokens) for shard in shards)
    print(f"{len(documents):,} documents, {tokens:,} tokens in {len(shards)} shards: {output}")
