"""What all SpanBERT models share: loading, saving, initialisation, refusals."""

import pickle
import struct

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.errors import DataError
from spanbert_fast.nn.heads import MaskedLMHead, SpanBoundaryHead

# What reading a missing, truncated or corrupt checkpoint may raise.
UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    struct.error,
)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its name where it has none."""
    return str(error).strip().split("\n")[0] or type(error).__name__


class SpanBertPreTrainedModel(PreTrainedModel):
    """Base of the SpanBERT models; parameters carry Hugging Face BERT's names (contract C1)."""

    config: SpanBertConfig
    config_class = SpanBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SpanBertEmbeddings", "TransformerLayer"]
    # A loss is the mean over its own batch: the Trainer divides it by the accumulation steps. With
    # **kwargs alone it would leave that, and a factor of the processes, to a count of the labels.
    accepts_loss_kwargs = False
    _supports_sdpa = True  # the default setting loads; attention is always `varlen_attention`

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
        (pytorch_model.bin, a config.json without model_type, norms named gamma and beta).

        Args:
            ignore_mismatched_sizes: initialise tensors of another shape anew instead of raising.
            output_loading_info: return (model, info); `info["missing_keys"]` is the set of the
                parameters that the checkpoint lacks and that were initialised,
                `info["unexpected_keys"]` of those that the model has no place for.

        Raises:
            DataError: a tensor of the checkpoint has another shape, or its file is corrupt.
        """
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                ignore_mismatched_sizes=True,  # what differs is named below, in one line
                output_loading_info=True,
                **kwargs,
            )
        except torch.OutOfMemoryError:
            raise
        except UNREADABLE as error:
            reason = first_line(error)
            raise DataError(
                f"the checkpoint {pretrained_model_name_or_path} cannot be read: {reason}"
            ) from error
        if info["mismatched_keys"] and not ignore_mismatched_sizes:
            name, found, wanted = min(info["mismatched_keys"])
            raise DataError(
                f"{name} must have shape {tuple(wanted)} for {cls.__name__}, got {tuple(found)} "
                f"in the checkpoint {pretrained_model_name_or_path}"
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args, save_original_format: bool = False, **kwargs):
        """As in Hugging Face, but always under the names of contract C1: a checkpoint that came
        with norms named gamma and beta is not written so again."""
        return super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (MaskedLMHead, SpanBoundaryHead)):
            init.zeros_(module.bias)

    def wants_hidden_states(self, argument: bool | None) -> bool:
        """The caller's choice, else the configuration's."""
        return bool(self.config.output_hidden_states if argument is None else argument)

    def refuse_attentions(self, output_attentions: bool | None) -> None:
        """Raise where attention probabilities are wanted: they are never stored here."""
        if output_attentions if output_attentions is not None else self.config.output_attentions:
            raise ValueError(
                "output_attentions must be False: attention probabilities are not kept; "
                "transformers.BertModel with the same checkpoint returns them"
            )
