"""Which implementation each op runs here, and why: the answer that `spanbert-fast env` prints."""

from typing import NamedTuple

import torch

from spanbert_fast import _extension
from spanbert_fast.ops import _common

# ops whose CPU implementation is in the compiled extension
_COMPILED_ON_CPU = ("sample_spans",)
OPS = (
    "bias_gelu",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "linear_cross_entropy",
    "pad",
    "sample_spans",
    "span_boundary_gather",
    "varlen_attention",
)


class Implementation(NamedTuple):
    """What runs when an op is called with tensors of `device`."""

    op: str
    device: str
    name: str
    reason: str


def implementations() -> list[Implementation]:
    """One entry per op and device of this machine."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [Implementation(op, device, *_of(op, device)) for op in OPS for device in devices]


def _of(op: str, device: str) -> tuple[str, str]:
    if _common.runs_reference():
        return "reference", 'use_backend("reference") is on'
    compiled = device == "cpu" and op in _COMPILED_ON_CPU
    if compiled and _extension._C is not None:
        return "C++", f"compiled extension, {_extension._C.isa_level()}"
    if compiled:
        return "reference", "the package was installed without its compiled extension"
    return "PyTorch", f"there is no {'Triton' if device == 'cuda' else 'C++'} kernel of this op yet"
