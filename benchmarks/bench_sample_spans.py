"""Span sampling of 512-token sequences beside the Python reference, and the collator around it.

Every round masks the same sequences. A sequence takes about 4 KB of reads, 6 KB of writes and 22
draws. On a GPU one graph replay is timed.
"""

import functools

import numpy as np
import torch
from op_case import OURS, ExactCase
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from spanbert_fast.data.collator import DataCollatorForSpanMasking
from spanbert_fast.ops._backend import use_backend
from spanbert_fast.ops.sample_spans import sample_spans, sample_spans_fixed

VARIANTS = ("sampler", "collator, lists", "collator, arrays")
CUDA_VARIANTS = ("sampler",)
SIZES = {"tiny": (4, 64), "cpu": (256, 512), "cuda": (256, 512)}
VOCABULARY, CLS, SEP, MASK = 28_996, 101, 102, 103
EXAMPLES = 64  # of a collator's batch
REFERENCE = "Python reference"


def make_batch(size: str, device: str) -> dict:
    """Random text with 3 % continuations, as in English cased word pieces of encyclopedias."""
    batch, seqlen = SIZES[size]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, VOCABULARY, (batch, seqlen), generator=generator)
    ids[:, 0], ids[:, -1] = CLS, SEP
    ids = ids.flatten()
    tensors = {
        "input_ids": ids,
        "cu_seqlens": torch.arange(0, batch * seqlen + 1, seqlen, dtype=torch.int32),
        "word_starts": torch.rand(batch * seqlen, generator=generator) >= 0.03,
        "special_mask": (ids == CLS) | (ids == SEP),
        "sequence_ids": torch.arange(batch),
        "random_token_pool": torch.arange(1000, VOCABULARY),
    }
    moved = {name: t.to(device) for name, t in tensors.items()}
    return moved | {"seed": 1, "mask_token_id": MASK}


def referenced(function, *arguments, **options):
    """A call on the reference backend."""
    with use_backend("reference"):
        return function(*arguments, **options)


def case(variant: str, device: str, size: str) -> ExactCase:
    """The sampler alone, or a collator that gets its examples as lists or as arrays."""
    batch, seqlen = SIZES[size]
    inputs = make_batch(size, device)
    shape = {"batch": batch, "seqlen": seqlen}
    moved = 10_000 * batch * seqlen // 512
    if variant == "sampler":
        on_host = make_batch(size, "cpu")
        calls = {REFERENCE: lambda: referenced(sample_spans, **on_host)}
        ours = (lambda: sample_spans(**inputs)) if device == "cpu" else replayed(inputs)
        results = {REFERENCE: calls[REFERENCE], OURS: lambda: sample_spans(**inputs)}
        return ExactCase(
            "sample_spans", variant, shape, {OURS: ours, **calls}, results, (moved, moved)
        )
    collator = DataCollatorForSpanMasking(tokenizer(), seed=1)
    rows = inputs["input_ids"].view(batch, seqlen)[:EXAMPLES].numpy()
    make = np.ndarray.tolist if variant.endswith("lists") else np.copy
    examples = [{"input_ids": make(row), "example_id": k} for k, row in enumerate(rows)]

    def tensors(collated):
        return [t for t in collated.values() if isinstance(t, torch.Tensor)]

    return ExactCase(
        op="sample_spans",
        variant=variant,
        shape={"batch": len(rows), "seqlen": seqlen},
        providers={
            OURS: lambda: collator(examples),
            REFERENCE: lambda: referenced(collator, examples),
        },
        results={
            REFERENCE: lambda: tensors(referenced(collator, examples)),
            OURS: lambda: tensors(collator(examples)),
        },
        bytes_moved=(moved, moved),
    )


def replayed(inputs: dict):
    """The replay of a CUDA graph, whose shapes do not depend on the draws."""

    @functools.cache  # at the first call: a check alone captures nothing
    def graph():
        sample_spans_fixed(**inputs)
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            sample_spans_fixed(**inputs)
        return captured

    return lambda: graph().replay()


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a BERT-sized vocabulary of numbers, a quarter of them continuations."""
    special = {0: "[PAD]", 100: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", MASK: "[MASK]"}
    vocabulary = {special.get(k, f"##{k}" if k % 4 == 0 else f"{k}"): k for k in range(VOCABULARY)}
    names = {f"{name[1:-1].lower()}_token": name for name in special.values()}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")), **names
    )
