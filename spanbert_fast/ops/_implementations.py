"""Which implementation each op runs here, and why: the answer that `spanbert-fast env` prints."""

import importlib
import importlib.util
from importlib.metadata import version
from typing import NamedTuple

import torch

from spanbert_fast import _extension
from spanbert_fast.ops import _common
from spanbert_fast.ops._cpu import compiled_ops
from spanbert_fast.ops._cuda import triton_ops

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
    importlib.import_module(f"spanbert_fast.ops.{op}")  # registers its kernels
    extension = _extension._C
    if op == "sample_spans":  # CUDA is in the extension too; without it, the reference samples
        if extension is None:
            return "reference", "the package was installed without its compiled extension"
        if device == "cuda" and not extension.build_info()["cuda"]:
            return "none", "the extension was built without a CUDA toolkit"
        return ("C++" if device == "cpu" else "CUDA"), "compiled extension"
    if device == "cpu" and op in compiled_ops:
        return "C++", f"compiled extension, {extension.isa_level()}"
    if device == "cpu" and extension is None:
        return "PyTorch", "the package was installed without its compiled extension"
    if device == "cuda" and op in triton_ops:
        return "Triton", f"triton {version('triton')}"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "PyTorch", "triton is not installed"
    return "PyTorch", f"there is no {'Triton' if device == 'cuda' else 'C++'} kernel of this op yet"
