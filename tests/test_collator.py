"""The collator's masks and batches, which depend on nothing but the example."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from collator_cases import (
    CLS,
    EXAMPLES,
    MASK,
    PAD,
    SEP,
    UNK,
    VOCABULARY,
    assert_same_batches,
    make_examples,
    make_tokenizer,
)
from spanbert_fast.data.collator import DataCollatorForSpanMasking, sequence_id
from spanbert_fast.ops.sample_spans import SpanOptions, sample_spans
from spanbert_fast.testing import assert_bitwise_equal


def test_packed_batch_is_the_sampler_on_the_examples():
    batch = DataCollatorForSpanMasking(make_tokenizer(), seed=5, epoch=2)(EXAMPLES)
    ids = torch.tensor(sum((e["input_ids"] for e in EXAMPLES), []))
    sample = sample_spans(
        ids,
        torch.tensor([0, 40, 43, 172, 236, 253], dtype=torch.int32),
        ids < 65,  # in the order of the vocabulary: whole words, then continuations
        seed=5,
        sequence_ids=torch.tensor([sequence_id(2, k) for k in range(5)]),
        mask_token_id=MASK,
        random_token_pool=torch.arange(5, len(VOCABULARY)),
        special_mask=(ids == CLS) | (ids == SEP),
    )
    assert batch["max_seqlen"] == 129
    assert batch["cu_seqlens"].tolist() == [0, 40, 43, 172, 236, 253]
    names = ["input_ids", "mlm_positions", "mlm_targets", "span_boundaries", "cu_span_lengths"]
    for name in [*names, "sbo_targets"]:
        assert_bitwise_equal(batch[name], getattr(sample, name), name)
    assert set(batch) == {*names, "sbo_targets", "cu_seqlens", "max_seqlen"}


def test_padded_and_masked_lm_batches_say_the_same():
    tokenizer = make_tokenizer()
    packed = DataCollatorForSpanMasking(tokenizer)(EXAMPLES)
    padded = DataCollatorForSpanMasking(tokenizer, output="padded", pad_to_multiple_of=8)(EXAMPLES)
    assert padded["input_ids"].shape == (5, 136)
    kept = padded["attention_mask"].bool()
    assert padded["attention_mask"].sum(1).tolist() == [40, 3, 129, 64, 17]
    assert_bitwise_equal(padded["input_ids"][kept], packed["input_ids"])
    assert (padded["input_ids"][~kept] == PAD).all()
    rows = kept.flatten().nonzero().squeeze(1)
    for name in ("mlm_positions", "span_boundaries"):
        assert_bitwise_equal(padded[name], rows[packed[name]], name)
    for name in ("mlm_targets", "cu_span_lengths", "sbo_targets"):
        assert_bitwise_equal(padded[name], packed[name], name)

    stock = DataCollatorForSpanMasking(tokenizer, output="masked_lm")(EXAMPLES)
    assert set(stock) == {"input_ids", "attention_mask", "labels"}
    assert stock["input_ids"].shape == stock["labels"].shape == (5, 129)
    labels = stock["labels"].flatten()
    assert (labels != -100).sum() == len(packed["mlm_positions"])
    assert_bitwise_equal(labels[labels != -100], packed["mlm_targets"])
    assert_bitwise_equal(stock["input_ids"][stock["attention_mask"].bool()], packed["input_ids"])


@pytest.mark.parametrize("scheme", ["geometric", "given"])
def test_raw_batches_are_masked_where_they_lie(scheme):
    options = {"options": SpanOptions(scheme=scheme), "seed": 9, "dropout_seeds": True}
    examples = [{**e, "given_spans": [(1, 1)]} for e in EXAMPLES]
    packed = DataCollatorForSpanMasking(make_tokenizer(), **options)(examples)
    collator = DataCollatorForSpanMasking(make_tokenizer(), output="raw", **options)
    raw = collator(examples)
    assert raw["input_ids"].tolist() == sum((e["input_ids"] for e in EXAMPLES), [])
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in raw.items()}
        masked = collator.mask(moved)
        assert all(v.device.type == device for v in masked.values() if isinstance(v, torch.Tensor))
        masked = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in masked.items()}
        assert_same_batches(masked, packed)


def test_unknown_tokens_are_masked_and_other_special_tokens_are_not():
    examples = [{"input_ids": [CLS, *[UNK] * 20, SEP, *[UNK] * 20, SEP, PAD, MASK]}]
    batch = DataCollatorForSpanMasking(make_tokenizer(), SpanOptions(mask_ratio=1.0))(examples)
    assert batch["mlm_positions"].tolist() == [*range(1, 21), *range(22, 42)]
    batch = DataCollatorForSpanMasking(make_tokenizer(), SpanOptions(mask_ratio=1.0))(
        [{**examples[0], "special_tokens_mask": [0] * 44 + [1]}]
    )
    assert batch["mlm_positions"].tolist() == [*range(44)]


def test_masks_depend_on_the_example_only():
    collator = DataCollatorForSpanMasking(make_tokenizer(), seed=3)
    whole = collator(EXAMPLES)
    texts = whole["input_ids"].split([40, 3, 129, 64, 17])
    alone = [collator([e])["input_ids"] for e in EXAMPLES]
    for a, b in zip(alone, texts, strict=True):
        assert_bitwise_equal(a, b)
    turned = collator(EXAMPLES[::-1])["input_ids"].split([17, 64, 129, 3, 40])
    for a, b in zip(turned[::-1], texts, strict=True):
        assert_bitwise_equal(a, b)

    later = DataCollatorForSpanMasking(make_tokenizer(), seed=3, epoch=1)(EXAMPLES)
    assert not torch.equal(later["input_ids"], whole["input_ids"])
    own = collator([{**e, "epoch": 1} for e in EXAMPLES])
    assert_same_batches(own, later)
    other = [{**e, "example_id": e["example_id"] + 1} for e in EXAMPLES]
    assert not torch.equal(collator(other)["input_ids"], whole["input_ids"])
    assert_same_batches(collator(EXAMPLES), whole)


def test_without_an_id_the_text_is_the_id():
    collator = DataCollatorForSpanMasking(make_tokenizer(), seed=3)
    anonymous = [{"input_ids": e["input_ids"]} for e in EXAMPLES]
    batch = collator(anonymous)
    alone = torch.cat([collator([e])["input_ids"] for e in anonymous])
    assert_bitwise_equal(batch["input_ids"], alone)
    twice = collator([anonymous[2], anonymous[2]])["input_ids"]
    assert_bitwise_equal(twice[:129], twice[129:])
    changed = [{"input_ids": [*anonymous[2]["input_ids"][:-2], 7, SEP]}]
    first, second = collator([anonymous[2]]), collator(changed)
    assert not torch.equal(first["mlm_positions"], second["mlm_positions"])


def test_lists_arrays_and_tensors_are_one():
    collator = DataCollatorForSpanMasking(make_tokenizer())
    expected = collator([{"input_ids": e["input_ids"]} for e in EXAMPLES])
    for make in (np.array, torch.tensor, lambda ids: np.array(ids, dtype=np.uint16)):
        examples = [{"input_ids": make(e["input_ids"])} for e in EXAMPLES]
        starts = [np.array(e["input_ids"]) < 65 for e in EXAMPLES]
        assert_same_batches(collator(examples), expected)
        examples = [{**e, "word_starts": s} for e, s in zip(examples, starts, strict=True)]
        assert_same_batches(collator(examples), expected)


def test_given_spans_come_with_the_examples():
    options = SpanOptions(scheme="given", given_probability=0.999, mask_ratio=0.05)
    collator = DataCollatorForSpanMasking(make_tokenizer(), options)
    example = {**EXAMPLES[2], "given_spans": [(10, 16)]}
    batch = collator([EXAMPLES[0], example])
    # after the 40 tokens of the examples before
    assert set(range(50, 57)) <= set(batch["mlm_positions"].tolist())
    collator([EXAMPLES[0]])  # an example without given spans is masked by whole words


@pytest.mark.parametrize("output", ["packed", "padded", "masked_lm", "raw"])
def test_workers_make_the_same_batches(output):
    options = SpanOptions(scheme={"word": 0.5, "geometric": 0.5})
    collator = DataCollatorForSpanMasking(
        make_tokenizer(), options, output=output, dropout_seeds=True
    )
    assert_same_batches(pickle.loads(pickle.dumps(collator))(EXAMPLES), collator(EXAMPLES))
    dataset = [{**e, "epoch": 4} for e in make_examples(range(10, 70, 5))]
    loaders = [
        DataLoader(
            dataset,
            batch_size=5,
            collate_fn=collator,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        for workers in (0, 2)
    ]
    batches = [list(loader) for loader in loaders]
    assert len(batches[0]) == 3
    for ours, expected in zip(*batches, strict=True):
        assert_same_batches(ours, expected)


def test_dropout_seeds():
    collator = DataCollatorForSpanMasking(make_tokenizer(), seed=3, dropout_seeds=True)
    seed = collator(EXAMPLES)["dropout_seed"]
    assert seed.dtype == torch.int64 and seed.shape == ()
    assert collator(EXAMPLES[:2])["dropout_seed"] == seed
    others = [
        collator(EXAMPLES[1:])["dropout_seed"],
        collator([{**EXAMPLES[0], "epoch": 1}])["dropout_seed"],
        DataCollatorForSpanMasking(make_tokenizer(), seed=4, dropout_seeds=True)(EXAMPLES)[
            "dropout_seed"
        ],
    ]
    assert len({seed.item(), *(s.item() for s in others)}) == 4


def test_sequence_ids_do_not_collide():
    ids = {
        sequence_id(epoch, example)
        for epoch in (0, 1, 2, 2**22, 2**23 - 1)
        for example in (0, 1, 2**20, 2**39, 2**40 - 1)
    }
    assert len(ids) == 25 and all(-(2**63) <= i < 2**63 for i in ids)
    wide = {sequence_id(epoch, 2**64 - 1) for epoch in range(100)}
    assert len(wide) == 100
