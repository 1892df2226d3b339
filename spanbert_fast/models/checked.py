"""Loading and saving of models whose checkpoints are checked."""

import contextlib
import logging
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from spanbert_fast import digests
from spanbert_fast.errors import DataError
from spanbert_fast.models import loading, span_boundary_file
from spanbert_fast.nn.heads import MaskedLMHead, SpanBoundaryHead

logger = logging.getLogger("spanbert_fast")

# What reading a missing, truncated or corrupt checkpoint may raise.
UNREADABLE = (
    AssertionError,
    AttributeError,
    MemoryError,
    OverflowError,
    UnicodeError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    struct.error,
    zipfile.BadZipFile,
)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its name if it has no message."""
    return str(error).strip().split("\n")[0] or type(error).__name__


class CheckedCheckpoints(PreTrainedModel):
    """A model whose checkpoints are whole and finite, or refused; its span boundary head, if it has
    one, may be in a file of its own."""

    config_class: type[PreTrainedConfig]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        new_head: bool = False,
        **kwargs,
    ):
        """Load from a directory or the Hub, as every Hugging Face model does.

        Reads BERT and SpanBERT checkpoints, and the directories of the original SpanBERT release
        (pytorch_model.bin, a config.json without model_type, norms named gamma and beta). Heads
        that the checkpoint lacks are initialised. The encoder must be complete and finite. If all
        names have a prefix of `loading.PREFIXES`, it is removed.

        Args:
            ignore_mismatched_sizes: initialise tensors of another shape instead of raising.
            output_loading_info: return (model, info). `info["missing_keys"]` is the set of
                parameters that the checkpoint lacks and that were initialised,
                `info["unexpected_keys"]` of those that the model has no place for.
            new_head: initialise a task's head though the checkpoint has one, of another task.

        Raises:
            DataError: a tensor of the encoder is missing, left over, of another shape, or not
                finite; a file is corrupt, or differs from the one that its digest describes.
        """
        where = f"the checkpoint {pretrained_model_name_or_path}"
        folder = _local_folder(pretrained_model_name_or_path, kwargs.get("subfolder"))
        has_digests = folder is not None and (folder / digests.FILE).is_file()
        if folder is not None and has_digests:
            _refuse(where, digests.damage(folder, _weights_in(folder)))

        def load(**more):
            try:
                if folder is not None and not ignore_mismatched_sizes:
                    loading.refuse_another_size(folder, kwargs.get("config"), cls.config_class)
                with _without_report():  # what differs is named below, in one line
                    return super(CheckedCheckpoints, cls).from_pretrained(
                        pretrained_model_name_or_path,
                        *model_args,
                        ignore_mismatched_sizes=True,
                        output_loading_info=True,
                        **{**kwargs, **more},
                    )
            except torch.OutOfMemoryError:
                raise
            except UNREADABLE as error:
                raise DataError(f"{where} cannot be read: {first_line(error)}") from error

        model, info = load()
        names = loading.Names(cls.base_model_prefix)
        prefix = names.foreign_prefix(info["missing_keys"], info["unexpected_keys"])
        if prefix in loading.PREFIXES:
            logger.info('%s: "%s" before the names of its tensors is left out', where, prefix)
            renaming = {f"^{re.escape(prefix)}": ""}
            model, info = load(key_mapping={**(kwargs.get("key_mapping") or {}), **renaming})
        if any(name.startswith("cls.span_boundary.") for name in info["missing_keys"]):
            path = span_boundary_file.head_file(pretrained_model_name_or_path, **kwargs)
            if path is not None:
                info["missing_keys"] -= _read_head(where, model, path)
        if new_head:
            info["missing_keys"] |= model.initialize_head()
            info["mismatched_keys"] = {
                found for found in info["mismatched_keys"] if found[0] not in info["missing_keys"]
            }
        missing, unexpected = info["missing_keys"], info["unexpected_keys"]
        _refuse(where, names.encoder_fault(missing, unexpected, model.config.num_hidden_layers))
        if info["mismatched_keys"] and not ignore_mismatched_sizes:
            name, found, wanted = min(info["mismatched_keys"])
            raise DataError(
                f"{name} must have shape {tuple(wanted)} for {cls.__name__}, got {tuple(found)} "
                f"in {where}"
            )
        if folder is not None and has_digests:
            _refuse(where, digests.another_config(folder, model.config))
        name = loading.not_finite(model)
        _refuse(where, name and f"{name} holds values that are not finite (NaN or infinity)")
        heads = names.heads_said(missing, unexpected)
        if heads is not None:
            logger.log(logging.WARNING if missing else logging.INFO, "%s: %s", where, heads)
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory,
        *args,
        save_original_format: bool = False,
        span_boundary_apart: bool = False,
        **kwargs,
    ):
        """As in Hugging Face, but always under the names of contract C1: a checkpoint that came
        with norms named gamma and beta is not written so again.

        Args:
            span_boundary_apart: write the span boundary head into `span_boundary_file.FILE`, so
                that transformers finds in `model.safetensors` what BertForMaskedLM has and nothing
                else. A Trainer's checkpoints have all in one file, which it loads by itself.
        """
        for name in (digests.FILE, span_boundary_file.FILE):  # of what is replaced
            (Path(save_directory) / name).unlink(missing_ok=True)
        kwargs["save_original_format"] = save_original_format
        result = super().save_pretrained(save_directory, *args, **kwargs)
        if span_boundary_apart and kwargs.get("is_main_process", True):
            span_boundary_file.set_apart(Path(save_directory))
        return result

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (MaskedLMHead, SpanBoundaryHead)):
            init.zeros_(module.bias)

    def wants_hidden_states(self, argument: bool | None) -> bool:
        """The caller's choice, or else that of the configuration."""
        return bool(self.config.output_hidden_states if argument is None else argument)

    def refuse_attentions(self, output_attentions: bool | None) -> None:
        """Raise if attention probabilities are wanted, since they are never stored."""
        if output_attentions if output_attentions is not None else self.config.output_attentions:
            raise ValueError(
                "output_attentions must be False: attention probabilities are not kept; "
                "transformers' own class with the same checkpoint returns them"
            )


class _ReportFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """transformers' table of missing and left-over tensors is not printed inside."""
    transformers_logger, report = logging.getLogger("transformers.modeling_utils"), _ReportFilter()
    transformers_logger.addFilter(report)
    try:
        yield
    finally:
        transformers_logger.removeFilter(report)


def _read_head(where: str, model: nn.Module, path: Path) -> set[str]:
    try:
        return span_boundary_file.load_head(model, path)
    except UNREADABLE as error:
        raise DataError(f"{where} cannot be read: {path.name}: {first_line(error)}") from error


def _refuse(where: str, fault: str | None) -> None:
    if fault is not None:
        raise DataError(f"{where}: {fault}")


def _local_folder(name, subfolder: str | None) -> Path | None:
    """The local folder of a checkpoint; None for a name on the Hub and for a state dict."""
    folder = Path(name, subfolder or "") if isinstance(name, (str, Path)) else None
    return folder if folder is not None and folder.is_dir() else None


def _weights_in(folder: Path) -> list[str]:
    """Names of the files of weights. Other files of the folder may be edited by hand."""
    found = {path.name for path in folder.glob("model*.safetensors*")}
    return sorted(found | {p.name for p in [folder / span_boundary_file.FILE] if p.is_file()})
