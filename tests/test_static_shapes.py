"""Batches of fixed shapes: equal loss and gradients, no data-dependent shapes, one compilation."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model_cases import encode
from spanbert_fast.data.batches import TokenBudgetBatches
from spanbert_fast.data.collator import DataCollatorForSpanMasking
from spanbert_fast.data.static_shapes import BatchSizes, StaticShapes, own_sizes
from spanbert_fast.ops import _checks
from spanbert_fast.ops.dropout import DropoutPlan
from spanbert_fast.ops.span_options import SpanOptions
from spanbert_fast.testing import assert_bitwise_equal
from spanbert_fast.training.captured_step import check_alike
from static_shapes_cases import (
    SHAPES,
    collator,
    examples,
    model_of,
    pair_of_batches,
    small_tokenizer,
    step,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.mark.parametrize(("dropout", "pair_loss_weight"), [(0.0, 0.5), (0.1, 0.0)])
@pytest.mark.parametrize("lengths", [(40, 3, 17, 33), (40, 40, 40, 40), (7,), (4, 3)])
def test_the_same_loss_and_gradients(tokenizer, dropout, pair_loss_weight, lengths):
    """With large weights, another dropout mask or one more row would change every figure."""
    own, filled = pair_of_batches(tokenizer, lengths)
    fields = {"pair_loss_weight": pair_loss_weight, "pair_loss_form": "likelihood"}
    model = model_of(tokenizer, dropout, **fields)
    (expected, gradients), (got, others) = step(model, own), step(model, filled)
    for name in ("loss", "mlm_loss", "sbo_loss", "pair_loss"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-5, atol=0)
    assert int(got.mlm_count) == len(own["mlm_targets"]) > 0
    assert int(got.sbo_count) == len(own["sbo_targets"])
    assert got.mlm_count.dtype == got.sbo_count.dtype == torch.int64
    assert_same_gradients(others, gradients)


def assert_same_gradients(ours, expected):
    """Gradients are equal up to rounding: products of few and of many rows add in different
    orders."""
    for name, gradient in expected.items():
        # softmax ignores the keys' bias: its gradient is the rounding of sums that cancel, each as
        # large as those of the keys' weight
        largest = expected[name.replace("key.bias", "key.weight")].abs().max().item()
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=2e-4 * largest, msg=name)


def test_dropout_masks_are_those_of_the_batch_itself(tokenizer):
    own, filled = pair_of_batches(tokenizer)
    model = model_of(tokenizer, 0.1)
    names = ("input_ids", "cu_seqlens", "max_seqlen")
    states = [
        encode(model.bert, DropoutPlan(b["dropout_seed"]), **{name: b[name] for name in names})
        for b in (own, filled)
    ]
    tokens = len(own["input_ids"])
    assert int(filled["num_tokens"]) == tokens < len(states[1])
    torch.testing.assert_close(states[1][:tokens], states[0], rtol=1e-4, atol=1e-4)
    other = encode(
        model.bert,
        DropoutPlan(torch.tensor(1)),
        input_ids=filled["input_ids"],
        cu_seqlens=filled["cu_seqlens"],
    )
    assert (other[:tokens] - states[0]).abs().max() > 0.1


def test_global_denominators_and_predictions(tokenizer):
    own, filled = pair_of_batches(tokenizer)
    model = model_of(tokenizer).eval()
    given = {"mlm_denominator": torch.tensor(50), "sbo_denominator": 70, "return_predictions": True}
    expected, got = model(**own, **given), model(**filled, **given)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-5, atol=0)
    for name in ("mlm_predictions", "sbo_predictions"):
        ours = getattr(expected, name)
        assert_bitwise_equal(getattr(got, name)[: len(ours)], ours)
    # evaluation on held-out text counts right predictions
    assert ((got.mlm_predictions == filled["mlm_targets"]).sum()
            == (expected.mlm_predictions == own["mlm_targets"]).sum())  # fmt: skip


def test_shapes_depend_on_no_data(tokenizer):
    filled = [
        pair_of_batches(tokenizer, lengths, seed)[1]
        for seed, lengths in enumerate([(40, 3, 17, 33), (5,) * 16, (40,) * 4, (39,)])
    ]
    for batch in filled:
        check_alike(batch, filled[0])
        assert batch["max_seqlen"] == 40
        lengths, targets = batch["cu_seqlens"].diff(), batch["cu_span_lengths"].diff()
        assert 0 <= int(lengths.min()) and int(lengths.max()) <= 40 and int(lengths.sum()) == 160
        assert 0 <= int(targets.min()) and int(targets.max()) <= SHAPES.max_span_targets
        assert int(targets.sum()) == SHAPES.target_capacity
        for name in ("mlm_positions", "span_boundaries"):
            assert 0 <= int(batch[name].min()) and int(batch[name].max()) < 160
    wide = DataCollatorForSpanMasking(tokenizer, output="raw", static_shapes=SHAPES, seed=3)
    items = examples(tokenizer, (12, 9))
    assert_alike_in_bits(wide.mask(wide(items)), pair_of_batches(tokenizer, (12, 9))[1])


def assert_alike_in_bits(ours, expected):
    for name, value in ours.items():
        if torch.is_tensor(value):
            assert_bitwise_equal(value, expected[name], name)
        else:
            assert value == expected[name]


class NoLookAtData(TorchDispatchMode):
    """A mode that fails on every op whose output shape or Python number depends on data."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, aten = kwargs or {}, torch.ops.aten
        looks = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*func.tags}
        if func is aten.repeat_interleave.Tensor:  # it may be given its number of rows
            looks = kwargs.get("output_size") is None
        if func is aten.index.Tensor:  # only a mask must be counted
            looks = any(index is not None and index.dtype == torch.bool for index in args[1])
        assert not looks, f"{func} looks at data"
        return func(*args, **kwargs)


@pytest.mark.parametrize("pair_loss_weight", [0.0, 0.5])
def test_nothing_in_a_step_looks_at_data(tokenizer, pair_loss_weight, monkeypatch):
    """The checks of indices are off: they run on CPUs only, where they cost no synchronisation."""
    monkeypatch.setattr(_checks, "check_ids", lambda name, ids, rows: None)
    model = model_of(tokenizer, 0.1, pair_loss_weight=pair_loss_weight)
    batch = pair_of_batches(tokenizer)[1]
    with NoLookAtData():
        outputs = model(**batch, return_predictions=True)
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert outputs.loss.isfinite() and outputs.mlm_predictions.shape == (SHAPES.mlm_capacity,)
    ones = torch.ones(3)
    for look in (ones.nonzero, ones[0].item, lambda: ones[ones > 0], ones.unique):
        with NoLookAtData(), pytest.raises(AssertionError, match="looks at data"):
            look()


def test_one_compilation_without_a_break(tokenizer):
    model = model_of(tokenizer, 0.1)
    batches = [pair_of_batches(tokenizer, n, seed=k)[1] for k, n in enumerate([(40, 3), (9,) * 9])]
    expected = [step(model, batch) for batch in batches]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.compile(backend="aot_eager", fullgraph=True)
    for (outputs, gradients), batch in zip(expected, batches, strict=True):
        got, others = step(model, batch)
        torch.testing.assert_close(got.loss, outputs.loss, rtol=1e-5, atol=0)
        assert_same_gradients(others, gradients)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


# Sizes


@pytest.mark.parametrize("lengths", [(40, 3, 17, 33), (40, 40, 40, 40), (3,)])
def test_what_a_batch_holds_of_its_own(tokenizer, lengths):
    own, filled = pair_of_batches(tokenizer, lengths)
    names = ("mlm_targets", "sbo_targets", "input_ids", "span_boundaries")
    sizes = BatchSizes(*(torch.tensor(len(own[name])) for name in names))
    assert own_sizes(own) == own_sizes(filled) == sizes
    assert all(size.dtype == torch.int64 and size.dim() == 0 for size in own_sizes(filled))
    full = {"mlm_capacity": int(sizes.mlm_targets), "max_sequences": 4}
    full["target_capacity"] = max(int(sizes.sbo_targets), 1)
    tight = StaticShapes.of(max(int(sizes.tokens), 40), 40, **full).fill(own)
    assert own_sizes(tight) == sizes
    both = BatchSizes.sum_of([own, filled])
    assert both == BatchSizes(*(2 * size for size in sizes))


@pytest.mark.parametrize(
    "options",
    [
        SpanOptions(),
        SpanOptions(mask_ratio=0.4),
        SpanOptions(scheme="subword"),
        SpanOptions(max_span_targets=2, max_span_words=3),
    ],
)
def test_the_usual_capacities_hold_every_batch(tokenizer, options):
    draw = np.random.default_rng(5)
    lengths = draw.integers(3, 33, 300)
    items = examples(tokenizer, lengths)
    shapes = StaticShapes.of(96, 32, options)
    collate = collator(tokenizer, options, static_shapes=shapes)
    sizes = []
    batches = TokenBudgetBatches(lengths, 96, 90, seed=1, max_sequences=shapes.max_sequences)
    for keys in batches:
        batch = collate([items[index] for _, index in keys])
        assert batch["mlm_targets"].shape == (shapes.mlm_capacity,)
        sizes.append(len(keys))
    assert max(sizes) <= shapes.max_sequences == 12


def test_batches_of_few_sequences():
    lengths = [3] * 50
    batches = list(TokenBudgetBatches(lengths, 30, 13, max_sequences=4))
    assert [len(batch) for batch in batches] == [4] * 12 + [2]
    assert len(list(TokenBudgetBatches(lengths, 30, 5))[0]) == 10
    with pytest.raises(ValueError, match="max_sequences must be at least 1, got 0"):
        TokenBudgetBatches(lengths, 30, 5, max_sequences=0)


def test_sizes_follow_from_the_options():
    shapes = StaticShapes.of(1024, 128)
    assert shapes == StaticShapes.of(1024, 128, SpanOptions())
    assert StaticShapes.of(1024, 128, SpanOptions(mask_ratio=0.5)).mlm_capacity == 512 + 32
    assert StaticShapes.of(1024, 128, SpanOptions(max_span_targets=7)).max_span_targets == 7
    assert shapes.max_sequences == 32
    assert shapes.mlm_capacity == 153 + 32
    assert shapes.span_capacity == shapes.target_capacity == shapes.mlm_capacity
    given = {"max_sequences": 9, "mlm_capacity": 170, "span_capacity": 60, "target_capacity": 165}
    assert {name: getattr(StaticShapes.of(1024, 128, **given), name) for name in given} == given
    for arguments, message in (
        ({"max_sequences": 0}, "max_sequences must be at least 1, got 0"),
        ({"max_seqlen": 2048}, "token_budget must be at least max_seqlen = 2048, got 1024"),
    ):
        with pytest.raises(ValueError, match=message):
            StaticShapes.of(**{"token_budget": 1024, "max_seqlen": 128, **arguments})


@pytest.mark.parametrize(
    ("name", "size", "has"),
    [
        ("token_budget", 92, 93),
        ("max_seqlen", 39, 40),
        ("max_sequences", 3, 4),
        ("mlm_capacity", 12, None),
        ("span_capacity", 1, None),
        ("target_capacity", 2, None),
    ],
)
def test_a_batch_that_is_too_large(tokenizer, name, size, has):
    own = pair_of_batches(tokenizer)[0]
    arguments = {"token_budget": 160, "max_seqlen": 40, name: size}
    message = f"{name} must be at least what the batch has, {has or '[0-9]+'}, got {size}"
    with pytest.raises(ValueError, match=message):
        StaticShapes.of(**arguments).fill(own)


def test_a_collator_that_they_do_not_fit(tokenizer):
    with pytest.raises(ValueError, match="static_shapes must be None with padded .*'padded'"):
        collator(tokenizer, output="padded", static_shapes=SHAPES)
    with pytest.raises(ValueError, match="max_span_targets must be the collator's 5, got 20"):
        collator(tokenizer, SpanOptions(max_span_targets=5), static_shapes=SHAPES)
