"""Who is who in a text: clusters on the terminal, and as a page to look at.

    python examples/coreference.py [TEXT_FILE] [--model DIRECTORY] [--html FILE]

DIRECTORY is the model/ that `spanbert-fast finetune coref` has left (default: a small model with
random weights, which shows the way and finds nothing sensible).
"""

import argparse
import tempfile
from pathlib import Path

from transformers import BertTokenizer

from spanbert_fast.data.tokenizer import load_tokenizer
from spanbert_fast.models import SpanBertConfig, SpanBertForCoreference
from spanbert_fast.tasks.coref import resolve
from spanbert_fast.tasks.coref_documents import Document
from spanbert_fast.tasks.coref_writing import write_documents

TEXT = "Ann saw the old cat. It liked her. She gave it some milk, and the cat drank it."


def small_model(directory: Path) -> None:
    """A model of a size for trying out, with its tokenizer."""
    words = sorted(set(TEXT.lower().replace(".", " .").replace(",", " ,").split()))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    config = SpanBertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.3,
    )
    SpanBertForCoreference(config).save_pretrained(directory)
    BertTokenizer(vocab={w: i for i, w in enumerate(vocabulary)}).save_pretrained(directory)


def main(arguments: list[str] | None = None) -> list[list[str]]:
    """Print each cluster's mentions, and return them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, metavar="TEXT_FILE")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--html", type=Path, default=Path("coreference.html"))
    options = parser.parse_args(arguments)
    text = options.file.read_text(encoding="utf-8") if options.file else TEXT
    with tempfile.TemporaryDirectory() as folder:
        directory = options.model or Path(folder)
        if options.model is None:
            small_model(directory)
        model = SpanBertForCoreference.from_pretrained(directory).eval()
        resolved = resolve(model, load_tokenizer(directory), text)
    for number, mentions in enumerate(resolved.texts()):
        print(f"{number}: " + "; ".join(mentions))
    page = Document("text", "text", "0", [resolved.words], None)
    write_documents(options.html, [page], [resolved.clusters])
    print(f"written: {options.html}")
    return resolved.texts()


if __name__ == "__main__":
    main()
