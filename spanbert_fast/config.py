"""The configuration of a SpanBERT model."""

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import BertConfig, PreTrainedConfig

from spanbert_fast.errors import DataError
from spanbert_fast.schema import (
    TEXT,
    TRUTH,
    check,
    digits,
    list_of,
    number,
    object_of,
    one_of,
    optional,
    read_json,
    whole,
)

_SIZES = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 16,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "intermediate_size": 1 << 20,
    "max_position_embeddings": 1 << 20,
    "type_vocab_size": 1 << 16,
    "max_span_targets": 1 << 12,
    "span_position_embedding_size": 1 << 14,
    "num_labels": 1 << 20,
    "max_span_width": 1 << 10,
    "max_top_antecedents": 1 << 16,
    "coref_depth": 1 << 6,
}
_COREF_HEADS = ("start-to-end", "coarse-to-fine")
_DTYPES = ("float64", "float32", "float16", "bfloat16")
_SHARE, _WEIGHT = number(0, 1), number(0, 1e9)
# Rules for config.json: every field is checked before it is used.
_RULES = {
    **{name: whole(1, most) for name, most in _SIZES.items()},
    "hidden_dropout_prob": _SHARE,
    "attention_probs_dropout_prob": _SHARE,
    "classifier_dropout": optional(_SHARE),
    "layer_norm_eps": _SHARE,
    "initializer_range": number(0, 100),
    "sbo_weight": _WEIGHT,
    "sbo_denominator_offset": whole(0, 1 << 20),
    "pair_loss_weight": _WEIGHT,
    "coref_head": one_of(*_COREF_HEADS),
    "coref_feature_size": whole(0, 1 << 16),
    "coref_dropout": _SHARE,
    "top_span_ratio": number(0, 100),
    "mention_loss_weight": _WEIGHT,
    "pad_token_id": optional(whole(-1, 1 << 24)),
    "id2label": object_of(digits(1 << 20), TEXT),
    "label2id": object_of(TEXT, whole(0, 1 << 20)),
    "architectures": optional(list_of(TEXT)),
    **dict.fromkeys(("dtype", "torch_dtype"), optional(one_of(*_DTYPES))),
    **dict.fromkeys(("model_type", "hidden_act"), TEXT),
    "pair_loss_form": one_of("likelihood", "printed"),
    **dict.fromkeys(("is_decoder", "add_cross_attention", "residual_in_fp32"), TRUTH),
}


@strict
class SpanBertConfig(BertConfig):
    """A BertConfig with the fields of the span objectives.

        >>> SpanBertConfig(num_hidden_layers=2).max_span_targets
        20

    Args:
        max_span_targets: number of places of a span that the span boundary objective predicts.
        span_position_embedding_size: features of the embedding p_k of a place.
        sbo_weight: weight of the span boundary loss beside the masked-LM loss.
        sbo_denominator_offset: added to the number of targets that the span boundary loss is
            divided by; the released code adds 1.
        pair_loss_weight: weight of the auxiliary pair-likelihood loss; 0 leaves it out.
        pair_loss_form: "likelihood" (bounded) or "printed"; see `nn.span_pair_losses`.
        residual_in_fp32: under autocast, keep the hidden states between the layers in fp32, as
            transformers does. The default keeps them in autocast's dtype, which is faster.
        coref_head: "start-to-end" or "coarse-to-fine"; see `models.coreference`, also for what
            follows.
        coref_feature_size: width of the head's hidden layers; 0 for hidden_size.
        coref_dropout: dropout in the coreference head.
        max_span_width: words of the longest candidate mention.
        top_span_ratio: candidate mentions kept in a document, as a share of its words.
        max_top_antecedents: candidate antecedents that coarse-to-fine scores for each mention.
        coref_depth: 2 or more for coarse-to-fine's higher-order inference.
        mention_loss_weight: weight of the mention loss beside the antecedent loss.
    """

    model_type = "spanbert"  # in memory; on disk it is "bert", see to_json_file

    max_span_targets: int = 20
    span_position_embedding_size: int = 200
    sbo_weight: float = 1.0
    sbo_denominator_offset: int = 0
    pair_loss_weight: float = 0.0
    pair_loss_form: str = "likelihood"
    residual_in_fp32: bool = False
    coref_head: str = "start-to-end"
    coref_feature_size: int = 0
    coref_dropout: float = 0.3
    max_span_width: int = 30
    top_span_ratio: float = 0.4
    max_top_antecedents: int = 50
    coref_depth: int = 1
    mention_loss_weight: float = 1.0

    @classmethod
    def from_pretrained(  # type: ignore[override]  # its options are kwargs
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> "SpanBertConfig":
        """As in Hugging Face.

        Raises:
            DataError: config.json is not JSON, or one of its fields has an invalid value.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (DataError, OSError):
            raise
        except Exception as error:  # the library raises errors of many types
            reason = " ".join(str(error).split()) or type(error).__name__
            path = f"{pretrained_model_name_or_path}/config.json"
            raise DataError(f"{path} cannot be used: {reason}") from error

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        path = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "", "config.json")
        if path.exists():
            content = check(path, read_json(path), _RULES, all_of_them=False)
            hidden, heads = (
                content.get(name, getattr(cls, name))
                for name in ("hidden_size", "num_attention_heads")
            )
            if hidden % heads:
                raise DataError(
                    f"{path}: hidden_size must be a multiple of num_attention_heads = {heads}, got "
                    f"{hidden}"
                )
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        # the original release's config.json has no model_type
        kind = config.get("model_type", "bert")
        if kind not in ("bert", cls.model_type):
            raise ValueError(f'model_type must be "bert" or "{cls.model_type}", got "{kind}"')
        return {**config, "model_type": cls.model_type}, kwargs

    def to_json_file(self, json_file_path, use_diff: bool = True) -> None:
        """Write the configuration as that of an ordinary BERT, with the span fields beside BERT's.

        Whoever has transformers alone loads the checkpoint by its Auto classes and pipelines; and
        the classes of this package read a BERT's configuration anyway.
        """
        content = json.loads(self.to_json_string(use_diff=use_diff))
        content["model_type"] = BertConfig.model_type
        if content.get("architectures"):
            content["architectures"] = [_stock_name(name) for name in content["architectures"]]
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        Path(json_file_path).write_text(text, encoding="utf-8")

    def __post_init__(self, **kwargs):
        """Refuse what the packed encoder does not compute."""
        super().__post_init__(**kwargs)
        if self.hidden_act != "gelu":
            raise ValueError(f'hidden_act must be "gelu" (the erf form), got "{self.hidden_act}"')
        if self.is_decoder or self.add_cross_attention:
            raise ValueError("is_decoder and add_cross_attention must be False: this is an encoder")
        kind = getattr(self, "position_embedding_type", "absolute") or "absolute"
        if kind != "absolute":
            raise ValueError(f'position_embedding_type must be "absolute", got "{kind}"')
        if self.coref_head not in _COREF_HEADS:
            wanted = " or ".join(f'"{name}"' for name in _COREF_HEADS)
            raise ValueError(f'coref_head must be {wanted}, got "{self.coref_head}"')
        if self.pair_loss_form not in ("likelihood", "printed"):
            raise ValueError(
                f'pair_loss_form must be "likelihood" or "printed", got "{self.pair_loss_form}"'
            )


SPAN_FIELDS = (
    "max_span_targets",
    "span_position_embedding_size",
    "sbo_weight",
    "sbo_denominator_offset",
    "pair_loss_weight",
    "pair_loss_form",
)


def add_span_fields(config: PreTrainedConfig, **given: Any) -> None:
    """Give the configuration of any encoder the fields of the span objectives, as SpanBertConfig
    has them.

    Args:
        given: values in place of those that the configuration has, or of the defaults.

    Raises:
        DataError: a value is not valid.
    """
    values = {name: getattr(config, name, getattr(SpanBertConfig, name)) for name in SPAN_FIELDS}
    values |= given
    where = f"the configuration of a {config.model_type}"
    check(where, values, {name: _RULES[name] for name in SPAN_FIELDS})
    for name, value in values.items():
        setattr(config, name, value)


def _stock_name(architecture: str) -> str:
    """transformers' class that computes the same of the weights that it knows."""
    if architecture == "SpanBertForPreTraining":
        return "BertForMaskedLM"
    if architecture == "SpanBertForCoreference":  # transformers has no such class
        return architecture
    return architecture.removeprefix("Span")
