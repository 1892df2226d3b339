"""Span pre-training of any encoder of the table of families, under its own names.

The model is transformers' own masked LM of the family (RobertaForMaskedLM, ...), accelerated, with
the span boundary head beside its masked-LM head. Its checkpoint is that masked LM's, and
`cls.span_boundary.*`.
"""

import dataclasses
import functools
import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from spanbert_fast.accelerated.accelerate import accelerate
from spanbert_fast.accelerated.encoder import FastModel
from spanbert_fast.accelerated.families import BY_MODELING, FAMILIES, OTHERS, Family
from spanbert_fast.accelerated.packed import Packed
from spanbert_fast.accelerated.registry import fast_class
from spanbert_fast.config import SPAN_FIELDS, SpanBertConfig, add_span_fields
from spanbert_fast.errors import UsageError
from spanbert_fast.models.checked import CheckedCheckpoints
from spanbert_fast.models.inputs import Encoded, EncoderInputs
from spanbert_fast.models.pretraining import SpanBertForPreTraining
from spanbert_fast.models.span_objectives import SpanObjectives
from spanbert_fast.nn.heads import SpanBoundaryHead
from spanbert_fast.nn.linear import is_plain
from spanbert_fast.nn.span_losses import PretrainingHeads
from spanbert_fast.ops.dropout import DropoutPlan

if TYPE_CHECKING:
    # the family's own class, which `pretraining_class` puts behind ours
    from spanbert_fast.accelerated.masked_lm import MaskedLMHead as _MaskedLM
else:
    _MaskedLM = object

_OWN = ("bert", SpanBertConfig.model_type)  # types of which SpanBertForPreTraining is the model


class EncoderForSpanPreTraining(SpanObjectives, CheckedCheckpoints, _MaskedLM):
    """A family's masked LM with the span boundary head; `pretraining_class` makes the classes.

    It takes what `SpanBertForPreTraining` takes, packed or padded, and returns the same.
    """

    row: Family
    base_model: FastModel
    accepts_loss_kwargs = False  # see SpanBertPreTrainedModel

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        accelerate(self)  # the model is accelerated already; this refuses unsupported settings
        add_span_fields(config)
        if not hasattr(self, "cls"):
            self.cls = nn.Module()
        decoder = self.get_submodule(self._lm_head().decoder)
        assert isinstance(decoder, nn.Linear)
        self.cls.span_boundary = SpanBoundaryHead(
            config.hidden_size,
            config.vocab_size,
            config.max_span_targets,
            config.span_position_embedding_size,
            getattr(config, "layer_norm_eps", 1e-12),
            decoder_size=decoder.in_features,
        )
        self.post_init()

    @property
    def max_positions(self) -> int:
        """Tokens of the longest sequence."""
        return self.base_model.embeddings.num_places()

    def encoder_inputs(self, *, every_stage: bool = False, **given) -> EncoderInputs:
        """The packed value of a forward's arguments; see `EncoderInputs.of`. Positions count as in
        the family."""
        embeddings = self.base_model.embeddings
        if given.get("token_type_ids") is not None and not hasattr(
            embeddings, "token_type_embeddings"
        ):
            raise ValueError(f"token_type_ids must be None for {self.row.title}, which has none")
        inputs = EncoderInputs.of(
            **given, max_positions=self.max_positions, every_stage=every_stage
        )
        if given.get("position_ids") is None:
            inputs = inputs._replace(position_ids=embeddings.places(given, inputs.packing))
        return inputs

    def encode(
        self,
        inputs: EncoderInputs,
        *,
        rows: torch.Tensor | None = None,
        plan: DropoutPlan | None = None,
    ) -> Encoded:
        if not self.training:
            plan = None
        elif plan is None:
            plan = DropoutPlan.draw(inputs.position_ids.device)
        # everything is in packed rows from here on
        packing = dataclasses.replace(inputs.packing, indices=None, padded_shape=None)
        packed = Packed(packing, plan, self.base_model.num_layers(), rows)
        stages: list[torch.Tensor] | None = [] if inputs.every_stage else None
        given = {
            name: getattr(inputs, name)
            for name in ("input_ids", "inputs_embeds", "position_ids", "token_type_ids")
        }
        return Encoded(self.base_model.packed(given, packed, stages), inputs.packing, stages)

    def pretraining_heads(self) -> PretrainingHeads:
        name = self._lm_head().decoder
        decoder = self.get_submodule(name)
        if not is_plain(decoder, nn.Linear) or decoder.bias is None:
            raise TypeError(f"{name} must be a plain nn.Linear with a bias, got {decoder}")
        return PretrainingHeads(
            self.features,
            decoder.weight,
            decoder.bias,
            self.cls.span_boundary,
            self.config.sbo_weight,
            self.config.sbo_denominator_offset,
        )


@functools.cache
def pretraining_class(config_class: type[PreTrainedConfig]) -> type[EncoderForSpanPreTraining]:
    """The model for configurations of a class of transformers.

    Raises:
        UsageError: transformers has no masked LM of it, or `accelerate` does not know its family.
    """
    # one class, though some of transformers' tables have several in a row
    stock: Any = MODEL_FOR_MASKED_LM_MAPPING.get(config_class, None)
    known = ", ".join(family.title for family in FAMILIES if family.lm_head is not None)
    if stock is None:
        raise UsageError(
            f"the model must have a masked-LM head, got {config_class.__name__}, for which "
            f"transformers has none (span pre-training knows {known})"
        )
    family, ours = BY_MODELING.get(stock.__module__), fast_class(stock)
    if family is None or ours is None or family.lm_head is None:
        reason = OTHERS.get(stock.__module__, "spanbert_fast does not compute its layers")
        raise UsageError(f"the model must be one of {known}, got {stock.__name__}: {reason}")
    return type(
        stock.__name__,
        (EncoderForSpanPreTraining, ours),
        {
            "__module__": __name__,
            "__doc__": f"transformers' {stock.__name__} with a span boundary head.",
            # transformers' class, not the bases before it
            **{name: getattr(stock, name) for name in ("config_class", "base_model_prefix")},
        },
    )


def __getattr__(name: str) -> type[nn.Module]:
    """Find a class by its name, as pickle does."""
    for family in FAMILIES:
        if family.lm_head is not None and family.classes.get(name) and name.endswith("ForMaskedLM"):
            stock = getattr(importlib.import_module(family.modeling), name)
            return pretraining_class(stock.config_class)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class AutoModelForSpanPreTraining:
    """The model with both objectives for any encoder of the table of families.

        >>> model = AutoModelForSpanPreTraining.from_pretrained("runs/first/model")
        >>> type(model).__name__  # of a RoBERTa, "RobertaForMaskedLM" with a span boundary head
        'SpanBertForPreTraining'

    A model is transformers' masked LM of its family with one more head: `model(**batch)` takes a
    `DataCollatorForSpanMasking`'s batches, `save_pretrained(folder, span_boundary_apart=True)`
    writes a checkpoint that transformers loads without warnings.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load from a directory or the Hub; see `SpanBertForPreTraining.from_pretrained`, also for
        what is refused.

        Args:
            kwargs: those of every `from_pretrained`, and fields of the configuration.

        Raises:
            UsageError: the family has no masked-LM head, or is not in the table.
            DataError: the checkpoint is incomplete, damaged or not finite.
        """
        places = {
            name: kwargs[name]
            for name in ("cache_dir", "local_files_only", "revision", "subfolder", "token")
            if name in kwargs
        }
        config = kwargs.pop("config", None)
        if config is None:
            content, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **places)
            if content.get("model_type", "bert") in _OWN:  # the original release's has no type
                return SpanBertForPreTraining.from_pretrained(
                    pretrained_model_name_or_path, **kwargs
                )
            config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **places)
        if config.model_type in _OWN:
            return SpanBertForPreTraining.from_pretrained(
                pretrained_model_name_or_path, config=config, **kwargs
            )
        add_span_fields(config, **{n: kwargs.pop(n) for n in SPAN_FIELDS if n in kwargs})
        for name in [name for name in kwargs if hasattr(config, name) and name != "dtype"]:
            setattr(config, name, kwargs.pop(name))
        kind = pretraining_class(type(config))  # type: ignore[arg-type]  # as in `fast_class`
        return kind.from_pretrained(pretrained_model_name_or_path, config=config, **kwargs)

    @classmethod
    def from_config(cls, config: PreTrainedConfig):
        """A new model with random weights.

        Raises:
            UsageError: the family has no masked-LM head, or is not in the table.
        """
        if config.model_type in _OWN:
            fields = {**config.to_dict(), "model_type": SpanBertConfig.model_type}
            return SpanBertForPreTraining(SpanBertConfig.from_dict(fields))
        return pretraining_class(type(config))(config)  # type: ignore[arg-type]
