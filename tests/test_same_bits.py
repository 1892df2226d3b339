"""Results have equal bits where docs/same_bits.md promises it."""

from pathlib import Path

import pytest

from same_bits_cases import PROMISES, table
from spanbert_fast.testing import assert_bitwise_equal

PAGE = Path(__file__).parents[1] / "docs/same_bits.md"
KEPT = [p for p in PROMISES if not p.why_not]


@pytest.mark.parametrize("promise", KEPT, ids=lambda p: f"{p.what}, {p.facet}")
def test_what_is_promised_is_so(promise, one_thread):
    pairs = promise.results()
    assert pairs and all(one for one, _ in pairs)
    for one, other in pairs:
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_bitwise_equal(a, b, f"result {number}")


def test_the_page_has_the_table():
    assert table() in PAGE.read_text()
