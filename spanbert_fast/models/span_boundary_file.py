"""The span boundary head in a file of its own, which only this library reads.

`model.safetensors` then holds what BertForMaskedLM has, and transformers loads it without a warning
about unexpected tensors.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file

from spanbert_fast.errors import DataError

FILE = "span_boundary.safetensors"
_WEIGHTS = "model.safetensors"
_PREFIX = "cls.span_boundary."


def set_apart(folder: Path) -> None:
    """Move the span boundary head of a saved checkpoint into its own file.

    Weights that are in several files stay as they are.
    """
    path = folder / _WEIGHTS
    if not path.is_file():
        return
    state = load_file(path)
    head = {name: state.pop(name) for name in list(state) if name.startswith(_PREFIX)}
    if head:
        for name, tensors in ((FILE, head), (_WEIGHTS, state)):
            partial = folder / (name + ".partial")
            save_file(tensors, partial, metadata={"format": "pt"})
            os.replace(partial, folder / name)


def head_file(name, **kwargs) -> Path | None:
    """The file of the head in a checkpoint; None if there is none.

    Args:
        name: a folder, or the name of a repository on the Hub.
        kwargs: of `from_pretrained`.
    """
    if not isinstance(name, (str, Path)):
        return None
    if Path(name).is_dir():
        path = Path(name, kwargs.get("subfolder") or "", FILE)
        return path if path.is_file() else None
    known = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    options = {key: kwargs[key] for key in known if kwargs.get(key) is not None}
    found = cached_file(
        str(name),
        FILE,
        **options,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


@torch.no_grad()
def load_head(model: nn.Module, path: Path) -> set[str]:
    """Fill the model's span boundary head from its file; returns the parameters' names.

    Raises:
        DataError: a tensor is missing, left over, or of another shape.
    """
    state = load_file(path)
    own = {name: p for name, p in model.named_parameters() if name.startswith(_PREFIX)}
    shapes = [
        json.dumps({name: list(t.shape) for name, t in sorted(tensors.items())})
        for tensors in (own, state)
    ]
    if shapes[0] != shapes[1]:
        raise DataError(f"{path}: must hold tensors of the shapes {shapes[0]}, has {shapes[1]}")
    for name, parameter in own.items():
        parameter.copy_(state[name])
    return set(own)
