"""The inputs that the span sampler refuses, and its messages."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_fast import use_backend
from spanbert_fast.ops.sample_spans import SpanOptions, sample_spans

OPTIONS = {field.name for field in dataclasses.fields(SpanOptions)}
MASK = 4
POOL = torch.tensor([1000, 1001, 1002, 1002])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.tensor([5, 6, 7, -1, 9])}, "input_ids must be in .*, got -1"),
        ({"input_ids": torch.tensor([5, 6, 7, 2**31, 9])}, "input_ids must be in .* got 214748364"),
        ({"input_ids": torch.zeros(5, 1).long()},
         r"input_ids must have shape \(total_tokens,\), got \(5, 1\)"),
        ({"cu_seqlens": torch.tensor([0, 3, 2, 5], dtype=torch.int32)},
         "cu_seqlens must not fall, got 3 then 2 at index 2"),
        ({"cu_seqlens": torch.tensor([0, 3, 3, 5], dtype=torch.int32)},
         "cu_seqlens must have no empty sequence, got one at index 1"),
        ({"cu_seqlens": torch.tensor([1, 2, 3, 5], dtype=torch.int32)}, "must start at 0, got 1"),
        ({"cu_seqlens": torch.tensor([0, 2, 3, 6], dtype=torch.int32)}, "must end at 5, got 6"),
        ({"special_mask": torch.tensor([0, 0, 1, 1, 1]).bool()},
         "special_mask must leave a maskable token in every sequence, got none in sequence 1"),
        ({"mask_ratio": 0.0}, r"mask_ratio must be in \(0, 1\], got 0.0"),
        ({"mask_ratio": 1.5}, r"mask_ratio must be in \(0, 1\], got 1.5"),
        ({"mask_ratio": 1e-9}, "mask_ratio must be at least 1e-6, got 1e-09"),
        ({"mask_ratio": float("nan")}, r"mask_ratio must be in \(0, 1\], got nan"),
        ({"geometric_p": -0.1}, r"geometric_p must be in \(0, 1\], got -0.1"),
        ({"min_span_words": 0}, "min_span_words must be at least 1, got 0"),
        ({"min_span_words": 5, "max_span_words": 4}, r"max_span_words must be in \[.* got 4"),
        ({"max_span_words": 257}, r"max_span_words must be in \[.*256\], got 257"),
        ({"max_span_targets": 0}, "max_span_targets must be at least 1, got 0"),
        ({"replacement": "word"}, 'replacement must be one of "span", "token", got .word.'),
        ({"endpoints": "both"}, "endpoints must be one of .* got 'both'"),
        ({"scheme": "geo"}, "scheme must be one of .* got 'geo'"),
        ({"scheme": {"word": 0.5}}, "scheme must have shares that add up to 1, got"),
        ({"scheme": {"word": 1.5, "subword": -0.5}},
         r"scheme\['word'\] must be in \[0, 1\], got 1.5"),
        ({"scheme": {"given": 1.0}}, r'scheme\["given"\] must be at most 0.999, got 1.0'),
        ({"scheme": "given"}, 'given_spans must be given with the scheme "given", got None'),
        ({"scheme": "given", "given_probability": 1.0},
         r"given_probability must be in \(0, 1\), got 1.0"),
        ({"given_spans": torch.zeros(0, 2).long()},
         'given_spans must be None without the scheme "given", got a tensor of shape'),
        ({"scheme": "given", "given_spans": torch.tensor([[3, 3], [0, 0]])},
         "given_spans must be in order of their first token, got 3 then 0 at index 1"),
        ({"scheme": "given", "given_spans": torch.tensor([[1, 0]])},
         r"given_spans\[0\] must be 0 <= first <= last < 5, got \(1, 0\)"),
        ({"scheme": "given", "given_spans": torch.tensor([[0, 5]])},
         r"given_spans\[0\] must be 0 <= first <= last < 5, got \(0, 5\)"),
        ({"scheme": "given", "given_spans": torch.tensor([[1, 2]])},
         r"given_spans\[0\] must lie in one sequence, got \(1, 2\) over the end of .* 0 at 2"),
        ({"scheme": "given", "given_spans": torch.tensor([[0, 1]]),
          "special_mask": torch.tensor([0, 1, 0, 0, 0]).bool()},
         r"given_spans\[0\] must hold no special token, got \(0, 1\)"),
        ({"random_token_pool": torch.zeros(0).long()},
         "random_token_pool must hold at least one token id"),
        ({"random_token_pool": torch.tensor([1, -5])}, r"random_token_pool must be in .* got -5"),
        ({"mask_token_id": -1}, r"mask_token_id must be in \[0, 2\*\*31\), got -1"),
        ({"seed": 2**64}, "seed must be a 64-bit integer, got 18446744073709551616"),
        ({"sequence_ids": torch.arange(4)}, r"sequence_ids must have shape \(3,\), got \(4,\)"),
        ({"word_starts": torch.ones(4).bool()}, r"word_starts must have shape \(5,\), got \(4,\)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_bad_values(change, message, backend):
    with use_backend(backend), pytest.raises(ValueError, match=message):
        call(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 2, 3, 5])}, "cu_seqlens must be int32, got torch.int64"),
        ({"input_ids": torch.arange(5, dtype=torch.int32)}, "input_ids must be int64, got"),
        ({"word_starts": torch.ones(5)}, "word_starts must be bool, got torch.float32"),
        ({"special_mask": torch.ones(5)}, "special_mask must be bool, got torch.float32"),
        ({"sequence_ids": torch.arange(3.0)}, "sequence_ids must be int64, got torch.float32"),
    ],
)
def test_bad_types(change, message):
    with pytest.raises(TypeError, match=message):
        call(change)


EXTREMES = st.one_of(
    st.integers(-3, 8), st.sampled_from([-(2**31), 2**31 - 1, 2**31 - 64, 64, 1000])
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    bounds=st.lists(EXTREMES, min_size=1, max_size=6),
    spans=st.lists(st.tuples(EXTREMES, EXTREMES), max_size=4),
    special=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_nothing_is_read_out_of_bounds(bounds, spans, special):
    """Any numbers give an error or a sample; a build with sanitizers proves it."""
    change = {
        "cu_seqlens": torch.tensor(bounds, dtype=torch.int32),
        "sequence_ids": torch.arange(len(bounds) - 1),
        "special_mask": torch.tensor(special),
        "scheme": "given",
        "given_spans": torch.tensor(spans, dtype=torch.int64).reshape(-1, 2),
    }
    outcomes = []
    for backend in ("kernels", "reference"):
        with use_backend(backend):
            try:
                outcomes.append([field.tolist() for field in call(change)])
            except ValueError as error:
                outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def call(change):
    arguments = {
        "input_ids": torch.arange(5) + 10,
        "cu_seqlens": torch.tensor([0, 2, 3, 5], dtype=torch.int32),
        "word_starts": torch.ones(5, dtype=torch.bool),
        "seed": 1,
        "sequence_ids": torch.arange(3),
        "mask_token_id": MASK,
        "random_token_pool": POOL,
    }
    options = {name: value for name, value in change.items() if name in OPTIONS}
    arguments |= {name: value for name, value in change.items() if name not in OPTIONS}
    return sample_spans(**arguments, options=SpanOptions(**options))


def test_options_are_a_value():
    options = SpanOptions(scheme={"word": 0.5, "geometric": 0.5}, mask_ratio=0.2)
    assert options == SpanOptions(scheme={"geometric": 0.5, "word": 0.5}, mask_ratio=0.2)
    assert len({options, SpanOptions(scheme={"geometric": 0.5, "word": 0.5}, mask_ratio=0.2)}) == 1
    assert options != SpanOptions() and len({options, SpanOptions()}) == 2
    assert dataclasses.replace(options, mask_ratio=0.15).law().budget(100) == 15
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.mask_ratio = 0.3
    # raised when the options are made
    with pytest.raises(ValueError, match="mask_ratio must be in"):
        dataclasses.replace(options, mask_ratio=2.0)
