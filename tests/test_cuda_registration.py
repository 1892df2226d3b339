"""Each op finds its Triton kernel where its CUDA registration looks for it."""

import importlib
import inspect

import pytest
import torch

pytest.importorskip("triton")

from spanbert_fast.ops import OPS  # noqa: E402
from spanbert_fast.ops._register import KERNELS, op_of  # noqa: E402

for op in OPS:
    importlib.import_module(f"spanbert_fast.ops.{op}")

NAMES = [
    *(f"{op}_{way}" for way in ("fwd", "bwd") for op in (
        "bias_gelu",
        "dropout_add_layer_norm",
        "embedding_layer_norm",
        "linear_cross_entropy",
        "span_boundary_gather",
        "antecedent_loss",
        "span_representation",
    )),
    "antecedent_top_k_fwd",
    "varlen_attention_fwd",
    "varlen_attention_bwd",
    "pad_fwd",
    "unpad_fwd",
]  # fmt: skip


def test_every_registered_function_is_here():
    assert {*NAMES, "sample_spans"} == set(KERNELS)


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_takes_what_the_op_is_given(name):
    op, way = name.rsplit("_", 1)
    ops = importlib.import_module(f"spanbert_fast.ops.{op_of(name)}")
    composite_name = f"_composite_{way}" if op == op_of(name) else f"_composite_{name}"
    if op == "varlen_attention":
        composite_name = f"composite_{way}"
    kernel = getattr(importlib.import_module(f"spanbert_fast.kernels.{op_of(name)}"), name)
    taken = list(inspect.signature(kernel).parameters)
    assert taken == list(inspect.signature(getattr(ops, composite_name)).parameters)
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"spanbert_fast::{name}", "CUDA")
