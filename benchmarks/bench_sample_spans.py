"""Span sampling: sequences of 512 tokens a second, beside the Python reference in the same run.

Every round masks the same 256 sequences, which stay in the caches as a data loader's would that has
just read them. A sequence is about 4 KB read and 6 KB written, and 22 draws. On a GPU the aim is 50
microseconds for all of them; it has not been measured yet.
"""

import numpy as np
import pytest
import torch
from common import TINY
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from spanbert_fast import _extension
from spanbert_fast.data.collator import DataCollatorForSpanMasking
from spanbert_fast.ops._common import use_backend
from spanbert_fast.ops.sample_spans import sample_spans, sample_spans_fixed, span_law

BATCH, SEQLEN, VOCABULARY = (4, 64, 28_996) if TINY else (256, 512, 28_996)
CLS, SEP, MASK = 101, 102, 103
GROUP = f"sample_spans, {BATCH} x {SEQLEN}"

pytestmark = pytest.mark.skipif(
    _extension._C is None, reason="installed without the compiled extension"
)


def make_batch(device: str = "cpu") -> dict:
    """Random text with 3 % continuations, as in English cased word pieces of encyclopedias."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, VOCABULARY, (BATCH, SEQLEN), generator=generator)
    ids[:, 0], ids[:, -1] = CLS, SEP
    ids = ids.flatten()
    batch = {
        "input_ids": ids,
        "cu_seqlens": torch.arange(0, BATCH * SEQLEN + 1, SEQLEN, dtype=torch.int32),
        "word_starts": torch.rand(BATCH * SEQLEN, generator=generator) >= 0.03,
        "special_mask": (ids == CLS) | (ids == SEP),
        "sequence_ids": torch.arange(BATCH),
        "random_token_pool": torch.arange(1000, VOCABULARY),
    }
    return {name: t.to(device) for name, t in batch.items()} | {"seed": 1, "mask_token_id": MASK}


def check(batch: dict, expected: dict) -> None:
    with use_backend("reference"):
        reference = sample_spans(**expected)
    for ours, theirs in zip(sample_spans(**batch), reference, strict=True):
        assert torch.equal(ours.cpu(), theirs)


def test_reference(per_second, threads):
    threads(1)
    batch = make_batch()

    def run():
        with use_backend("reference"):
            sample_spans(**batch)

    per_second(GROUP, "Python reference", "sequences", BATCH, run, rounds=5)


@pytest.mark.parametrize("count", [1, 2])
def test_compiled(per_second, threads, count):
    threads(count)
    batch = make_batch()
    check(batch, batch)
    name = f"C++, {count} thread{'s' * (count > 1)}"
    per_second(GROUP, name, "sequences", BATCH, lambda: sample_spans(**batch), rounds=400)


@pytest.mark.parametrize("kind", ["lists", "arrays"])
def test_collator(per_second, threads, kind):
    threads(1)
    special = {0: "[PAD]", 100: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", MASK: "[MASK]"}
    vocabulary = {special.get(k, f"##{k}" if k % 4 == 0 else f"{k}"): k for k in range(VOCABULARY)}
    names = {f"{name[1:-1].lower()}_token": name for name in special.values()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")), **names
    )
    collator = DataCollatorForSpanMasking(tokenizer, seed=1)
    rows = make_batch()["input_ids"].view(BATCH, SEQLEN)[:64].numpy()
    make = np.ndarray.tolist if kind == "lists" else np.copy
    examples = [{"input_ids": make(row), "example_id": k} for k, row in enumerate(rows)]
    batch = collator(examples)
    with use_backend("reference"):
        expected = collator(examples)
    assert all(torch.equal(batch[k], v) for k, v in expected.items() if k != "max_seqlen")
    name = f"the whole collator, 64 examples as {kind}"
    per_second(GROUP, name, "sequences", 64, lambda: collator(examples), rounds=200)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_cuda_graph(per_second):
    batch = make_batch("cuda")
    check(batch, make_batch())
    law = span_law()
    sample_spans_fixed(**batch, law=law)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample_spans_fixed(**batch, law=law)

    def run():
        graph.replay()
        torch.cuda.synchronize()

    per_second(GROUP, "CUDA, one graph replay", "sequences", BATCH, run, rounds=400)
