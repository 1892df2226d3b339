"""Reads fairseq's `model.pt` without running code that it contains."""

import contextlib
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.models.checked import first_line
from spanbert_fast.models.loading import refuse_inflating


class _StandIn:
    """Replaces every class that the file names: it holds attributes and runs no code."""

    def __new__(cls, *args: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


@contextlib.contextmanager
def _pickle_of(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """(stream, number of pickles up to the object), for both formats of torch.save."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(name) as stream:
                yield stream, 1
    else:  # before torch 1.6: magic number, protocol and system come first
        with path.open("rb") as stream:
            yield stream, 4


def _classes_named_in(path: Path) -> set[str]:
    """Full names of the classes and functions that the pickle refers to; nothing is executed."""
    names = set()
    with _pickle_of(path) as (stream, pickles):
        for _ in range(pickles):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL" and argument is not None:
                    names.add(argument.replace(" ", "."))
    return names


def read_checkpoint(path: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """(args or None, tensors) of a training checkpoint.

    Raises:
        UsageError: there is no such file.
        DataError: it cannot be read, or a tensor is not floating or not finite.
    """
    if not path.is_file():
        raise UsageError(f"model_pt must be a file, got {path}")
    try:
        refuse_inflating(path)
        names = _classes_named_in(path)
        stand_ins: list[Callable | tuple[Callable, str]] = [(_StandIn, name) for name in names]
        with torch.serialization.safe_globals(stand_ins):  # torch's own classes come first
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickletools, zipfile and torch, which have many
        raise DataError(f"model_pt cannot be read: {path}: {first_line(error)}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise DataError(f"model_pt must hold a dict with the key 'model', got {path}")
    tensors = checkpoint["model"]
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise DataError(f"{name} must be a floating tensor in {path}, got {type(tensor)}")
        if tensor.numel() and not all(bound.isfinite() for bound in torch.aminmax(tensor)):
            raise DataError(f"{name} must be finite in {path}, it holds NaN or infinity")
    return checkpoint.get("args"), tensors
