"""Which implementation each op runs on this machine, and why. `spanbert-fast env` prints it."""

import importlib
from importlib.metadata import version
from typing import NamedTuple

import torch

from spanbert_fast import _extension
from spanbert_fast.ops import OPS
from spanbert_fast.ops._backend import runs_reference
from spanbert_fast.ops._register import KERNELS, has_cpu_kernel, has_triton, op_of


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
    if runs_reference():
        return "reference", 'use_backend("reference") is on'
    importlib.import_module(f"spanbert_fast.ops.{op}")  # registers its kernels
    extension = _extension._C
    if op == "sample_spans":  # CUDA is in the extension too; without it, the reference samples
        if extension is None:
            return "reference", "the package was installed without its compiled extension"
        if device == "cuda" and not extension.build_info()["cuda"]:
            return "none", "the extension was built without a CUDA toolkit"
        return ("C++" if device == "cpu" else "CUDA"), "compiled extension"
    names = [name for name in KERNELS if op_of(name) == op]
    if not names and not (op == "adamw" and device == "cuda"):
        return "PyTorch", "it consists of PyTorch's own operators"
    if device == "cpu" and extension is not None and all(map(has_cpu_kernel, names)):
        return "C++", f"compiled extension, {extension.isa_level()}"
    if device == "cpu":
        return "PyTorch", "the package was installed without its compiled extension"
    if has_triton:
        return "Triton", f"triton {version('triton')}"
    return "PyTorch", "triton is not installed"
