"""What all SpanBERT models share beside their checkpoints: initialisation and refusals."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models.checked import CheckedCheckpoints
from spanbert_fast.models.inputs import EncoderInputs
from spanbert_fast.nn.coreference import StartToEndHead

_TASK_HEADS = ("classifier", "qa_outputs")


class SpanBertPreTrainedModel(CheckedCheckpoints, PreTrainedModel):
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

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, StartToEndHead):
            # one candidate in fifty is a mention: without this start, learning it takes many steps
            init.constant_(module.width_scores, -4.0)

    @torch.no_grad()
    def initialize_head(self) -> set[str]:
        """Draw the weights of a task's head anew; returns their names."""
        names = set()
        for name, module in self.named_children():
            if name in _TASK_HEADS:
                head: Any = module  # a linear layer, or an adapter around one
                head.weight.normal_(std=self.config.initializer_range)
                head.bias.zero_()
                names |= {f"{name}.weight", f"{name}.bias"}
        return names

    @property
    def max_positions(self) -> int:
        """Tokens of the longest sequence."""
        return self.config.max_position_embeddings

    def encoder_inputs(self, *, every_stage: bool = False, **given) -> EncoderInputs:
        """The packed value of a forward's arguments; see `EncoderInputs.of`."""
        return EncoderInputs.of(**given, max_positions=self.max_positions, every_stage=every_stage)
