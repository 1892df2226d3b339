"""All implementations of the span sampler give equal samples."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_spans_cases import MASK, OPTIONS, POOL, assert_same, make_texts, random_case, run
from spanbert_fast import _extension, use_backend
from spanbert_fast.ops.sample_spans import (
    SpanOptions,
    SpanSample,
    sample_spans_fixed,
    span_capacity,
)
from spanbert_fast.testing import assert_bitwise_equal

pytestmark = pytest.mark.gpu
compiled = pytest.mark.skipif(
    _extension._C is None, reason="installed without the compiled extension"
)
devices = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=compiled),
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
        ),
    ],
)


def on(device, texts, options):
    def moved(value):
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return tuple(t.to(device) for t in texts), {k: moved(v) for k, v in options.items()}


def run_fixed(texts, options, seed=1, **arguments):
    input_ids, cu_seqlens, word_starts, special_mask = texts
    return sample_spans_fixed(
        input_ids,
        cu_seqlens,
        word_starts,
        special_mask=special_mask,
        seed=seed,
        sequence_ids=torch.arange(len(cu_seqlens) - 1, device=input_ids.device),
        options=options,
        mask_token_id=MASK,
        random_token_pool=POOL.to(input_ids.device),
        **arguments,
    )


@devices
@settings(max_examples=150, deadline=None, derandomize=True)
@given(options=OPTIONS, seed=st.integers(0, 2**63))
def test_every_implementation_draws_the_same(device, options, seed):
    texts, options, span_options = random_case(options, seed % 2**31, num_texts=20)
    with use_backend("reference"):
        expected = run(texts, seed=seed, **options)
        expected_fixed, expected_counts = run_fixed(
            texts, span_options, seed, given_spans=options.get("given_spans")
        )
    texts, options = on(device, texts, options)
    pool, ids = POOL.to(device), torch.arange(20, device=device)
    sample = run(texts, seed=seed, sequence_ids=ids, pool=pool, **options)
    assert_same(SpanSample(*(t.cpu() for t in sample)), expected)
    given = options.get("given_spans")
    fixed, counts = run_fixed(texts, span_options, seed, given_spans=given)
    assert_same(SpanSample(*(t.cpu() for t in fixed)), expected_fixed)
    assert_bitwise_equal(counts.cpu(), expected_counts)


@devices
@pytest.mark.parametrize("lengths", [[], [1], [63, 64, 65], [8192, 1, 5000]])
def test_every_implementation_does_the_same_on_odd_shapes(device, lengths):
    texts = make_texts(lengths, special=0.05)
    with use_backend("reference"):
        expected = run(texts)
    moved, _ = on(device, texts, {})
    ids = torch.arange(len(lengths), device=device)
    sample = run(moved, sequence_ids=ids, pool=POOL.to(device))
    assert_same(SpanSample(*(t.cpu() for t in sample)), expected)


@compiled
def test_threads_make_no_difference():
    texts = make_texts([64, 700, 3, 512, 130] * 60, special=0.01)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(texts)
        torch.set_num_threads(2)
        assert_same(run(texts), expected)
    finally:
        torch.set_num_threads(threads)


SCRIPT = """
import sys, torch
from spanbert_fast.ops.sample_spans import sample_spans
texts = torch.load(sys.argv[1])
torch.save(tuple(sample_spans(*texts, seed=1, sequence_ids=torch.arange(4), mask_token_id=4,
    random_token_pool=torch.tensor([1000, 1001, 1002, 1002]))), sys.argv[2])
"""


@compiled
def test_cpus_without_our_instructions_draw_the_same(tmp_path):
    texts = make_texts([64, 700, 3, 130])[:3]
    torch.save(texts, tmp_path / "texts.pt")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "texts.pt", tmp_path / "sample.pt"],
        check=True,
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
    )
    sample = SpanSample(*torch.load(tmp_path / "sample.pt"))
    assert_same(sample, run((*texts, None)))


def test_fixed_shapes_hold_the_sample_and_nothing_else():
    texts = make_texts([40, 7, 130], special=0.1)
    options, sample = SpanOptions(), run(texts)
    fixed, counts = run_fixed(texts, options)
    capacity = span_capacity(options.law(), 177, 3)
    assert capacity == 29  # 177 * 3 // 20 + 3
    masked, spans, with_targets, targets, refused = counts.tolist()
    assert refused == 0 and masked == len(sample.mlm_positions)
    counted = {
        "mlm_positions": (masked, 0),
        "mlm_targets": (masked, -100),
        "span_boundaries": (with_targets, 0),
        "span_starts": (spans, 0),
        "span_ends": (spans, -1),
        "cu_span_lengths": (with_targets + 1, targets),
        "sbo_targets": (targets, -100),
        "span_replacements": (spans, -1),
    }
    assert_bitwise_equal(fixed.input_ids, sample.input_ids)
    for name, (count, filling) in counted.items():
        field = getattr(fixed, name)
        assert len(field) == capacity + (name == "cu_span_lengths")
        assert_bitwise_equal(field[:count], getattr(sample, name), name)
        assert (field[count:] == filling).all(), name
    for options in (SpanOptions(complete_words=True), SpanOptions(mask_ratio=1.0)):
        assert span_capacity(options.law(), 177, 3) == 177


@compiled
def test_compile():
    texts = make_texts([40, 7, 130], special=0.1)
    options = SpanOptions(scheme={"geometric": 0.5, "word": 0.5})
    function = torch.compile(run_fixed, fullgraph=True, backend="aot_eager")
    sample, counts = function(texts, options)
    expected, expected_counts = run_fixed(texts, options)
    assert_same(sample, expected)
    assert_bitwise_equal(counts, expected_counts)
