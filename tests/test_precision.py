"""`--precision auto`, and the messages about a slow choice."""

import logging

import pytest
import torch

from spanbert_fast.errors import UsageError
from spanbert_fast.training import precision
from spanbert_fast.training.precision import fastest_precision, resolved_precision

CPU = torch.device("cpu")


def cpu_with(monkeypatch, *, bfloat16: bool) -> None:
    """Pretend a CPU with units for bf16 products, or one without them."""
    product = torch.bfloat16 if bfloat16 else torch.float32
    monkeypatch.setattr(precision, "product_dtype", lambda dtype, device: product)


@pytest.mark.parametrize("bfloat16, expected", [(True, "bf16"), (False, "fp32")])
def test_auto_takes_the_fastest(monkeypatch, caplog, bfloat16, expected):
    cpu_with(monkeypatch, bfloat16=bfloat16)
    with caplog.at_level(logging.INFO, "spanbert_fast"):
        assert resolved_precision("auto", CPU) == expected
    assert [r.getMessage() for r in caplog.records] == [
        f"precision {expected}: the fastest on this cpu"
    ]


@pytest.mark.parametrize(
    "bfloat16, chosen, words",
    [
        (False, "bf16", "no units for bf16 products"),
        (True, "fp32", "bf16 would be faster"),
        (True, "bf16", None),
        (False, "fp32", None),
    ],
)
def test_a_slow_choice_is_kept_and_said(monkeypatch, caplog, bfloat16, chosen, words):
    cpu_with(monkeypatch, bfloat16=bfloat16)
    with caplog.at_level(logging.INFO, "spanbert_fast"):
        assert resolved_precision(chosen, CPU) == chosen
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == (words is not None)
    assert words is None or words in messages[0]


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(UsageError, match="must be auto, fp32 or bf16 on a CPU, got fp16"):
        resolved_precision("fp16", CPU)


def test_the_answer_is_that_of_this_machine():
    assert fastest_precision(CPU) in ("fp32", "bf16")
    assert fastest_precision(torch.device("meta")) == "fp32"
