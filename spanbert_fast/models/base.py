"""What all SpanBERT models share: loading, saving, initialisation and refusals."""

import logging
import pickle
import re
import struct
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from spanbert_fast import digests
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.errors import DataError
from spanbert_fast.models import loading
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


class SpanBertPreTrainedModel(PreTrainedModel):
    """Base of the SpanBERT models; parameters carry Hugging Face BERT's names (contract C1)."""

    config: SpanBertConfig
    config_class = SpanBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SpanBertEmbeddings", "TransformerLayer"]
    # A loss is the mean over its own batch, so the Trainer must divide it by the accumulation
    # steps. With **kwargs and no such flag it would divide by a count of labels instead.
    accepts_loss_kwargs = False
    _supports_sdpa = True  # accepts the default setting; attention is always `varlen_attention`

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
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
                `info["unexpected_keys"]` the set of those that the model does not have.

        Raises:
            DataError: a tensor of the encoder is missing, left over, of another shape, or not
                finite; a file is corrupt, or differs from the one that its digest describes.
        """
        where = f"the checkpoint {pretrained_model_name_or_path}"
        folder = _local_folder(pretrained_model_name_or_path, kwargs.get("subfolder"))
        has_digests = folder is not None and (folder / digests.FILE).is_file()
        if has_digests:
            _refuse(where, digests.damage(folder, _weights_in(folder)))

        def load(**more):
            try:
                if folder is not None and not ignore_mismatched_sizes:
                    loading.refuse_another_size(folder, kwargs.get("config"))
                return super(SpanBertPreTrainedModel, cls).from_pretrained(
                    pretrained_model_name_or_path,
                    *model_args,
                    ignore_mismatched_sizes=True,  # differences are named below, in one line
                    output_loading_info=True,
                    **{**kwargs, **more},
                )
            except torch.OutOfMemoryError:
                raise
            except UNREADABLE as error:
                raise DataError(f"{where} cannot be read: {first_line(error)}") from error

        model, info = load()
        prefix = loading.foreign_prefix(info["missing_keys"], info["unexpected_keys"])
        if prefix in loading.PREFIXES:
            logger.info('%s: "%s" before the names of its tensors is left out', where, prefix)
            renaming = {f"^{re.escape(prefix)}": ""}
            model, info = load(key_mapping={**(kwargs.get("key_mapping") or {}), **renaming})
        missing, unexpected = info["missing_keys"], info["unexpected_keys"]
        _refuse(where, loading.encoder_fault(missing, unexpected, model.config.num_hidden_layers))
        if info["mismatched_keys"] and not ignore_mismatched_sizes:
            name, found, wanted = min(info["mismatched_keys"])
            raise DataError(
                f"{name} must have shape {tuple(wanted)} for {cls.__name__}, got {tuple(found)} "
                f"in {where}"
            )
        if has_digests:
            _refuse(where, digests.another_config(folder, model.config))
        name = loading.not_finite(model)
        _refuse(where, name and f"{name} holds values that are not finite (NaN or infinity)")
        heads = loading.heads_said(missing, unexpected)
        if heads is not None:
            logger.info("%s: %s", where, heads)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """As in Hugging Face, but always with the names of contract C1, even if the checkpoint came
        with norms named gamma and beta."""
        (Path(save_directory) / digests.FILE).unlink(
            missing_ok=True
        )  # they describe what is replaced now
        return super().save_pretrained(
            save_directory, *args, save_original_format=save_original_format, **kwargs
        )

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
                "transformers.BertModel with the same checkpoint returns them"
            )


def _refuse(where: str, fault: str | None) -> None:
    if fault is not None:
        raise DataError(f"{where}: {fault}")


def _local_folder(name, subfolder: str | None) -> Path | None:
    """The local folder of a checkpoint; None for a name on the Hub and for a state dict."""
    folder = Path(name, subfolder or "") if isinstance(name, (str, Path)) else None
    return folder if folder is not None and folder.is_dir() else None


def _weights_in(folder: Path) -> list[str]:
    """Names of the files of weights. Other files of the folder may be edited by hand."""
    return sorted(path.name for path in folder.glob("model*.safetensors*"))
