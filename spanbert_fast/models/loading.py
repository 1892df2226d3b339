"""Checks of a checkpoint: every tensor of the encoder is there, under its name, and finite."""

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig

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
_STACKS = "encoder|transformer"  # the name of a model's list of layers
_LAYER = re.compile(rf"({_STACKS})\.layer\.(\d+)\.")
_NAMED = 3  # the most tensors that a message names


class Names:
    """The names of a model's tensors, with those that older versions of transformers wrote.

    Args:
        base: the prefix of the encoder's names, such as "bert".
    """

    def __init__(self, base: str):
        self._own = own = f"{base}."
        own = re.escape(own)
        self._encoder = re.compile(rf"({own})?(embeddings|embeddings_project|{_STACKS})\.")
        # buffers, which hold 0, 1, 2, ...
        self._buffers = re.compile(rf"({own})?embeddings\.(position_ids|token_type_ids)")

    def foreign_prefix(self, missing: Iterable[str], unexpected: Iterable[str]) -> str | None:
        """The prefix of the names of the encoder's tensors in a file; None if there is none.

        Args:
            missing: names that the model has and the file lacks.
            unexpected: names that the file has and the model lacks.
        """
        unexpected = set(unexpected)
        for name in sorted(filter(self._encoder.match, missing))[:8]:  # one would do
            own = name.removeprefix(self._own)
            for found in sorted(unexpected, key=len):
                if found.endswith("." + own):
                    return found.removesuffix(own).removesuffix(self._own) or None
        return None

    def encoder_fault(
        self, missing: Iterable[str], unexpected: Iterable[str], num_hidden_layers: int
    ) -> str | None:
        """What is wrong with a file's encoder, and the likely cause; None if nothing is.

        Heads, and the pooler that only some heads read, may be missing or left over.

        Args:
            missing, unexpected: see `foreign_prefix`.
            num_hidden_layers: of the configuration.
        """
        prefix = self.foreign_prefix(missing, unexpected)
        missing = sorted(filter(self._encoder.match, missing))
        extra = sorted(
            name
            for name in unexpected
            if self._encoder.match(name) and not self._buffers.fullmatch(name)
        )
        if not missing and not extra:
            return None
        what = "lacks" if missing else "also holds"
        names = missing or extra
        named = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        layers = [int(found[2]) for name in (*missing, *extra) if (found := _LAYER.search(name))]
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

    def heads_said(self, missing: Iterable[str], unexpected: Iterable[str]) -> str | None:
        """One line that names the heads that a file lacks and those that it has too many."""
        parts = []
        for names, said in ((missing, "lacks {}: initialised"), (unexpected, "{} left out")):
            groups = sorted(
                {self._head_of(name) for name in names if not self._buffers.fullmatch(name)}
            )
            if groups:
                parts.append(said.format(", ".join(groups)))
        return "; ".join(parts) or None

    def _head_of(self, name: str) -> str:
        parts = name.split(".")
        return ".".join(parts[: 2 if parts[0] in (self._own[:-1], "cls") else 1]) + ".*"


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


def refuse_another_size(
    folder: Path, config: PreTrainedConfig | None, kind: type[PreTrainedConfig]
) -> None:
    """Raise DataError if a folder's weights are too small for the encoder of its configuration.

    Args:
        config: the encoder's; None for the folder's own.
        kind: the class of configurations.
    """
    safe, torches = folder.glob("model*.safetensors"), [*folder.glob("pytorch_model*.bin")]
    stored = sum(regular_file(path).stat().st_size for path in (*safe, *torches))
    for path in torches:
        refuse_inflating(path)
        try:  # the names and shapes alone
            torch.load(path, map_location="meta", weights_only=True)
        except Exception as error:  # the unpickler raises errors of many types
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise DataError(f"{path} cannot be read: {reason}") from error
    if not isinstance(config, kind):
        config = kind.from_pretrained(folder)
    hidden = config.hidden_size
    inner = config.hidden_dim if hasattr(config, "hidden_dim") else config.intermediate_size
    rows = config.vocab_size + config.max_position_embeddings
    rows += getattr(config, "type_vocab_size", 0)
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
    """The narrowest floating dtype in a folder's .safetensors; None if there are none."""
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
        # under FSDP, the local part
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if tensor.numel() and tensor.is_floating_point() and not tensor.is_meta:
            if not all(bound.isfinite() for bound in torch.aminmax(tensor)):
                return name
    return None
