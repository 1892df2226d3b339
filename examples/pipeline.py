"""Hugging Face pipelines with SpanBERT models: classes of texts, and entities in them.

    python examples/pipeline.py [MODEL_DIRECTORY ...] [--text TEXT ...]

MODEL_DIRECTORY is what `spanbert-fast finetune classify` or `spanbert-fast finetune ner` has left
in model/ (default: one of each kind, small, with random weights).
"""

import argparse
import tempfile
from pathlib import Path

from transformers import AutoConfig, BertTokenizer, pipeline

from spanbert_fast.models import (
    SpanBertConfig,
    SpanBertForSequenceClassification,
    SpanBertForTokenClassification,
)

TEXTS = ["Rain and fog came over London today.", "Ann had soup with bread in Paris."]


def small_models(directory: Path) -> list[Path]:
    """Two models of a size for trying out, each in a directory with its tokenizer."""
    words = " ".join(TEXTS).lower().replace(".", " .").split()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(words))]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    directories = []
    for kind, labels in (
        (SpanBertForSequenceClassification, ["weather", "food"]),
        (SpanBertForTokenClassification, ["O", "B-PLACE", "I-PLACE", "B-PERSON", "I-PERSON"]),
    ):
        config = SpanBertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
        directories.append(directory / kind.__name__)
        kind(config).save_pretrained(directories[-1])
        tokenizer.save_pretrained(directories[-1])
    return directories


def main(arguments: list[str] | None = None) -> list[list]:
    """Print what each model says of each text, and return it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL_DIRECTORY")
    parser.add_argument("--text", action="append", help="a text; may be given again")
    options = parser.parse_args(arguments)
    texts = options.text or TEXTS
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for model in options.models or small_models(Path(directory)):
            # what was fine-tuned decides; importing the models has made them known to pipelines
            (architecture,) = AutoConfig.from_pretrained(model).architectures
            tokens = architecture.endswith("ForTokenClassification")
            task = "token-classification" if tokens else "text-classification"
            joined = {"aggregation_strategy": "first"} if tokens else {}
            found = pipeline(task, model=str(model), **joined)(texts)
            for text, result in zip(texts, found, strict=True):
                print(text)
                for item in result if tokens else [result]:
                    name = f"{item['entity_group']}: {item['word']}" if tokens else item["label"]
                    print(f"    {name} ({item['score']:.3f})")
            results.append(found)
    return results


if __name__ == "__main__":
    main()
