"""Shared by the tests of fine-tuning: entities that a small model learns, checkpoints, options."""

import random
from collections.abc import Callable
from pathlib import Path

import torch

from spanbert_fast.data.tokenizer import train_wordpiece
from spanbert_fast.models import SpanBertConfig, SpanBertForPreTraining
from spanbert_fast.training.finetuning.options import FinetuneOptions

NAMES = {"PER": ["John Smith", "Mary", "Ann Lee"], "LOC": ["Paris", "New York", "Oslo"]}


def sentences(count: int, seed: int) -> str:
    draw, text = random.Random(seed), []
    for _ in range(count):
        rows = []
        for _ in range(draw.randint(1, 3)):
            rows += [(w, "O") for w in draw.choice(["they met", "the old man saw", "near"]).split()]
            kind = draw.choice(list(NAMES))
            first, *others = draw.choice(NAMES[kind]).split()
            rows += [(first, f"B-{kind}"), *((w, f"I-{kind}") for w in others)]
        text.append("\n".join(f"{word}\t{tag}" for word, tag in rows))
    return "\n\n".join(text) + "\n"


def write_checkpoint(folder: Path, tokenizer, deviation: float) -> None:
    """A small SpanBERT with its tokenizer; `deviation` is that of its random weights."""
    config = SpanBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=deviation,
    )
    SpanBertForPreTraining(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_folder(folder: Path) -> Path:
    """Write train, dev and test files and two small checkpoints, one with large weights."""
    for seed, (name, count) in enumerate((("train", 60), ("dev", 20), ("test", 20))):
        (folder / f"{name}.conll").write_text(sentences(count, seed))
    words = (folder / "train.conll").read_text().replace("\t", " ")
    tokenizer = train_wordpiece([words] * 2, 150)
    torch.manual_seed(1)
    for name, deviation in (("model", 0.1), ("large", 0.3)):
        write_checkpoint(folder / name, tokenizer, deviation)
    return folder


def command_of(folder: Path) -> Callable[..., list[str]]:
    """A function of (output, *more): the arguments of a run into `output`."""

    def arguments(output, *more):
        files = [f"--{split}={folder / split}.conll" for split in ("train", "dev", "test")]
        fast = ["--max-seq-length", "32", "--batch-size", "8", "--learning-rate", "3e-3"]
        model = ["--model", str(folder / "model"), "--output-dir", str(output)]
        return ["finetune", "ner", *model, *files, *fast, *map(str, more)]

    return arguments


def options_of(folder, output, **fields) -> FinetuneOptions:
    files = {split: str(folder / f"{split}.conll") for split in ("train", "dev", "test")}
    values = {
        "task": "ner",
        "model": str(folder / "model"),
        "output_dir": str(output),
        "task_options": {"max_seq_length": 32},
        "batch_size": 8,
        "learning_rate": 3e-3,
        "epochs": 2,
        **files,
        **fields,
    }
    return FinetuneOptions(**values)
