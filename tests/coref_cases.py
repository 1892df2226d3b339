"""Shared by the tests of coreference: small documents, a checkpoint, a run's options."""

import random
from pathlib import Path

import torch

from finetune_cases import write_checkpoint
from spanbert_fast.data.tokenizer import train_wordpiece
from spanbert_fast.tasks.coref_documents import Document
from spanbert_fast.tasks.coref_writing import write_documents
from spanbert_fast.training.finetuning.options import FinetuneOptions

PEOPLE = (("Ann", "she"), ("Tom", "he"), ("the old cat", "it"))


def document(name: str, draw: random.Random, sentences: int) -> Document:
    """A document of people, each named at least once and then called by a pronoun."""
    texts, clusters, known, place = [], {}, [], 0
    for _ in range(sentences):
        words = []
        for verb in ("saw", None):
            who = draw.randrange(len(PEOPLE))
            text = PEOPLE[who][who in known and draw.random() < 0.7].split()
            known.append(who)
            clusters.setdefault(who, []).append(
                (place + len(words), place + len(words) + len(text) - 1)
            )
            words += [*text, *([verb] if verb else [])]
        texts.append([*words, "."])
        place += len(texts[-1])
    return Document(name, "", "0", texts, list(clusters.values()))


def write_folder(folder: Path) -> Path:
    """Write train.jsonl, dev.conll and test.jsonl, and a small checkpoint in model/."""
    draw = random.Random(3)
    for name, count in (("train.jsonl", 60), ("dev.conll", 4), ("test.jsonl", 4)):
        documents = [document(f"{name}-{i}", draw, draw.randint(2, 6)) for i in range(count)]
        write_documents(folder / name, documents, [d.clusters for d in documents])
    text = " ".join(word for d in documents for word in d.words)
    tokenizer = train_wordpiece([f"{text} Ann Tom the old cat saw she he it ."] * 2, 60)
    torch.manual_seed(1)
    write_checkpoint(folder / "model", tokenizer, 0.1)
    return folder


def options_of(folder: Path, output: Path, **fields) -> FinetuneOptions:
    task_options = {"max_seq_length": 32, "max_training_segments": 2, "max_span_width": 4}
    values = {
        "task": "coref",
        "model": str(folder / "model"),
        "train": str(folder / "train.jsonl"),
        "dev": str(folder / "dev.conll"),
        "test": str(folder / "test.jsonl"),
        "output_dir": str(output),
        "task_options": {**task_options, **fields.pop("task_options", {})},
        "batch_size": 4,
        "learning_rate": 2e-3,
        "head_learning_rate": 5e-3,
        "epochs": 8,
        "dropout": 0.0,
    }
    return FinetuneOptions(**{**values, **fields})
