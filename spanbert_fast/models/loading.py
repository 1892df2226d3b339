"""Checks of a checkpoint: every tensor of the encoder is there, under its name, and finite."""

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.errors import DataError
from spanbert_fast.schema import regular_file

# Prefixes that training scripts, wrappers and other models put before BERT's own names.
PREFIXES = (
    "module.",
    "model.",
    "_orig_mod.",
    "bert.",
    "roberta.",
    "electra.",
    "transformer.",
    "encoder.",
    "auto_model.",
    "0.auto_model.",
    "base_model.model.",
)
_MOST_INFLATION = 1 << 20  # bytes that a zip archive may have beyond its size: its own headers
_SMALL = 1 << 26  # parameters
_ENCODER = re.compile(r"(bert\.)?(embeddings|encoder)\.")
# Buffers that older versions of transformers wrote; they hold 0, 1, 2, ...
_BUFFERS = re.compile(r"(bert\.)?embeddings\.(position_ids|token_type_ids)")
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
_NAMED = 3  # the most tensors that a message names


def foreign_prefix(missing: Iterable[str], unexpected: Iterable[str]) -> str | None:
    """The prefix of the names of the encoder's tensors in a file; None if there is none.

    Args:
        missing: names that the model has and the file lacks.
        unexpected: names that the file has and the model lacks.
    """
    unexpected = set(unexpected)
    for name in sorted(filter(_ENCODER.match, missing))[:8]:  # more than enough names
        own = name.removeprefix("bert.")
        for found in sorted(unexpected, key=len):
            if found.endswith("." + own):
                return found.removesuffix(own).removesuffix("bert.") or None
    return None


def encoder_fault(
    missing: Iterable[str], unexpected: Iterable[str], num_hidden_layers: int
) -> str | None:
    """What is wrong with a file's encoder, and the likely cause; None if nothing is.

    Heads, and the pooler that only some heads read, may be missing or left over.

    Args:
        missing, unexpected: see `foreign_prefix`.
        num_hidden_layers: of the configuration.
    """
    prefix = foreign_prefix(missing, unexpected)
    missing = sorted(filter(_ENCODER.match, missing))
    extra = sorted(
        name for name in unexpected if _ENCODER.match(name) and not _BUFFERS.fullmatch(name)
    )
    if not missing and not extra:
        return None
    what = "lacks" if missing else "also holds"
    names = missing or extra
    named = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    layers = [int(found[1]) for name in (*missing, *extra) if (found := _LAYER.search(name))]
    if prefix is not None:
        cause = f'the names in the file begin with "{prefix}"'
    elif len(layers) == len(names) and extra and min(layers) >= num_hidden_layers:
        cause = f"the configuration's num_hidden_layers is {num_hidden_layers}"
    elif len(layers) == len(names) and max(layers) == num_hidden_layers - 1:
        cause = f"the configuration's num_hidden_layers is {num_hidden_layers}"
    else:
        cause = "it is incomplete, or another model's"
    count = f"{len(names)} tensor{'s' * (len(names) > 1)} of the encoder"
    return f"{what} {count} ({named}): {cause}"


def heads_said(missing: Iterable[str], unexpected: Iterable[str]) -> str | None:
    """One line that names the heads that the file lacks and those that the model does not use."""
    parts = []
    for names, said in ((missing, "lacks {}: initialised"), (unexpected, "{} left out")):
        groups = sorted({_head_of(name) for name in names if not _BUFFERS.fullmatch(name)})
        if groups:
            parts.append(said.format(", ".join(groups)))
    return "; ".join(parts) or None


def refuse_inflating(path: Path) -> None:
    """Raise DataError if a file of `torch.save` would be larger in memory than on disk.

    Such a file is a zip archive whose members are not compressed.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        inside = sum(member.file_size for member in archive.infolist())
    size = path.stat().st_size
    if inside > size + _MOST_INFLATION:
        raise DataError(f"{path}: must hold at most its size, {size:,} bytes, holds {inside:,}")


def refuse_another_size(folder: Path, config: SpanBertConfig | None) -> None:
    """Raise DataError if a folder's weights are too small for the encoder of its configuration.

    Args:
        config: the encoder's; None for the folder's own.
    """
    safe, torches = folder.glob("model*.safetensors"), [*folder.glob("pytorch_model*.bin")]
    stored = sum(regular_file(path).stat().st_size for path in (*safe, *torches))
    for path in torches:
        refuse_inflating(path)
        try:  # the names and shapes alone
            torch.load(path, map_location="meta", weights_only=True)
        except Exception as error:  # the unpickler fails in many ways
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise DataError(f"{path} cannot be read: {reason}") from error
    if not isinstance(config, SpanBertConfig):
        config = SpanBertConfig.from_pretrained(folder)
    hidden, inner = config.hidden_size, config.intermediate_size
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    parameters = rows * hidden
    parameters += config.num_hidden_layers * (4 * hidden * hidden + 2 * hidden * inner)
    # even quantised weights have more than two bits each; other checks describe the faults of a
    # small model better
    if parameters > max(4 * stored, _SMALL):
        raise DataError(
            f"{folder}: config.json says an encoder of {parameters:,} parameters, the weights "
            f"have {stored:,} bytes"
        )


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The narrowest floating dtype of a folder's .safetensors; None where it has none of them."""
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    found = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}
    return min(
        (names[name] for name in sorted(found & names.keys())),
        key=lambda dtype: dtype.itemsize,
        default=None,
    )


def not_finite(model: nn.Module) -> str | None:
    """The name of the first parameter that holds NaN or infinity; None if none does."""
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # FSDP's part of it
        if tensor.numel() and tensor.is_floating_point() and not tensor.is_meta:
            if not all(bound.isfinite() for bound in torch.aminmax(tensor)):
                return name
    return None


def _head_of(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in ("bert", "cls") else 1]) + ".*"
