"""The configuration of a SpanBERT model."""

from huggingface_hub.dataclasses import strict
from transformers import BertConfig


@strict
class SpanBertConfig(BertConfig):
    """A BertConfig with the fields of the span objectives.

    Args:
        max_span_targets: places of a span that have a target in the span boundary objective.
        span_position_embedding_size: features of a place's embedding p_k.
        sbo_weight: weight of the span boundary loss beside the masked-LM loss.
        sbo_denominator_offset: added to the count that the span boundary loss is divided by; the
            released code has 1.
        pair_loss_weight: weight of the auxiliary pair-likelihood loss; 0 leaves it out.
        pair_loss_form: "likelihood" (bounded) or "printed"; see `nn.span_pair_losses`.
        residual_in_fp32: keep the hidden states between the layers in fp32 under autocast, as
            transformers does; the default keeps them in autocast's dtype, which is faster.
    """

    model_type = "spanbert"

    max_span_targets: int = 20
    span_position_embedding_size: int = 200
    sbo_weight: float = 1.0
    sbo_denominator_offset: int = 0
    pair_loss_weight: float = 0.0
    pair_loss_form: str = "likelihood"
    residual_in_fp32: bool = False

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        kind = config.get("model_type", "bert")  # a directory of the original release has none
        if kind not in ("bert", cls.model_type):
            raise ValueError(f'model_type must be "bert" or "{cls.model_type}", got "{kind}"')
        return {**config, "model_type": cls.model_type}, kwargs

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
        if self.pair_loss_form not in ("likelihood", "printed"):
            raise ValueError(
                f'pair_loss_form must be "likelihood" or "printed", got "{self.pair_loss_form}"'
            )
