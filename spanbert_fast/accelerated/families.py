"""The families of encoders that `accelerate` knows: one row of a table each.

A row says which of transformers' classes stand where, and what differs from BERT. Everything else
(`registry`, `accelerate`) works from the rows alone.
"""

import dataclasses
from collections.abc import Mapping

from torch.nn import functional as F
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndCrossAttentions,
)
from transformers.utils import ModelOutput

from spanbert_fast.accelerated.distilled import (
    DistilledAttention,
    DistilledFeedForward,
    DistilledLayer,
)
from spanbert_fast.accelerated.encoder import FastEncoder, FastLayer, FastModel
from spanbert_fast.accelerated.heads import (
    FirstTokenHead,
    QuestionAnsweringHead,
    SummaryHead,
    TokenHead,
)
from spanbert_fast.accelerated.masked_lm import LMHead, MaskedLMHead, PreTrainingHead
from spanbert_fast.accelerated.packed import Fast
from spanbert_fast.accelerated.parts import (
    ErnieEmbeddings,
    FastAttention,
    FastEmbeddings,
    FastIntermediate,
    FastOutput,
    FastSelfAttention,
    LayoutEmbeddings,
    PositionsFromPadding,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """One row.

    Attributes:
        name: of the module here whose classes are this family's: `spanbert_fast.accelerated.NAME`.
        title: what people call it.
        modeling: the module of transformers that defines its classes; imported when a model of the
            family is met, or one of its classes is asked for.
        classes: transformers' class name -> the mixin of its role.
        lm_head: how the masked-LM head is made; None where there is none.
        encoder: the name of the model's child that holds its layers.
        encoder_output, model_output: classes of what these return.
    """

    name: str
    title: str
    modeling: str
    classes: Mapping[str, type[Fast]]
    lm_head: LMHead | None = None
    encoder: str = "encoder"
    encoder_output: type[ModelOutput] = BaseModelOutputWithPastAndCrossAttentions
    model_output: type[ModelOutput] = BaseModelOutputWithPoolingAndCrossAttentions


_LAYER = {
    "SelfAttention": FastSelfAttention,
    "SelfOutput": FastOutput,
    "Attention": FastAttention,
    "Intermediate": FastIntermediate,
    "Output": FastOutput,
    "Layer": FastLayer,
}
_MODEL = {"Embeddings": FastEmbeddings, "Encoder": FastEncoder, "Model": FastModel}
_HEADS = {
    "ForMaskedLM": MaskedLMHead,
    "ForCausalLM": TokenHead,
    "ForSequenceClassification": FirstTokenHead,
    "ForMultipleChoice": FirstTokenHead,
    "ForTokenClassification": TokenHead,
    "ForQuestionAnswering": QuestionAnsweringHead,
}
_BERT = {
    **_LAYER,
    **_MODEL,
    **_HEADS,
    "LMHeadModel": TokenHead,
    "ForNextSentencePrediction": FirstTokenHead,
    "ForPreTraining": PreTrainingHead,
}
_ROBERTA = {**_LAYER, **_MODEL, **_HEADS, "Embeddings": PositionsFromPadding}

_BERT_HEAD = LMHead(
    ("cls.predictions.transform",), "cls.predictions.decoder", ("cls", "cls.predictions")
)
_ROBERTA_HEAD = LMHead(
    ("lm_head.dense", F.gelu, "lm_head.layer_norm"), "lm_head.decoder", ("lm_head",)
)


def _modeling(package: str, name: str | None = None) -> str:
    return f"transformers.models.{package}.modeling_{name or package}"


def _named(prefix: str, roles: Mapping[str, type[Fast]]) -> dict[str, type[Fast]]:
    return {f"{prefix}{role}": mixin for role, mixin in roles.items()}


FAMILIES = (
    Family("bert", "BERT", _modeling("bert"), _named("Bert", _BERT), _BERT_HEAD),
    Family("roberta", "RoBERTa", _modeling("roberta"), _named("Roberta", _ROBERTA), _ROBERTA_HEAD),
    Family(
        "xlm_roberta",
        "XLM-RoBERTa",
        _modeling("xlm_roberta"),
        _named("XLMRoberta", _ROBERTA),
        _ROBERTA_HEAD,
    ),
    Family(
        "camembert",
        "CamemBERT",
        _modeling("camembert"),
        _named("Camembert", _ROBERTA),
        _ROBERTA_HEAD,
    ),
    Family(
        "data2vec_text",
        "Data2VecText",
        _modeling("data2vec", "data2vec_text"),
        _named("Data2VecText", _ROBERTA),
        _ROBERTA_HEAD,
    ),
    Family(
        "electra",
        "ELECTRA",
        _modeling("electra"),
        # its discriminator's loss leaves out padding by itself
        _named("Electra", {**_LAYER, **_MODEL, **_HEADS, "ForMultipleChoice": SummaryHead}),
        LMHead(("generator_predictions",), "generator_lm_head"),
        model_output=BaseModelOutputWithPastAndCrossAttentions,
    ),
    Family(
        "distilbert",
        "DistilBERT",
        _modeling("distilbert"),
        {
            "Embeddings": FastEmbeddings,
            "DistilBertSelfAttention": DistilledAttention,
            "FFN": DistilledFeedForward,
            "TransformerBlock": DistilledLayer,
            "Transformer": FastEncoder,
            "DistilBertModel": FastModel,
            **_named("DistilBert", _HEADS),
        },
        LMHead(("vocab_transform", "activation", "vocab_layer_norm"), "vocab_projector"),
        encoder="transformer",
        encoder_output=BaseModelOutput,
        model_output=BaseModelOutput,
    ),
    Family(
        "ernie",
        "ERNIE",
        _modeling("ernie"),
        _named("Ernie", {**_BERT, "Embeddings": ErnieEmbeddings}),
        _BERT_HEAD,
    ),
    Family(
        "layoutlm",
        "LayoutLM",
        _modeling("layoutlm"),
        _named("LayoutLM", {**_LAYER, **_MODEL, **_HEADS, "Embeddings": LayoutEmbeddings}),
        _BERT_HEAD,
        encoder_output=BaseModelOutput,
        model_output=BaseModelOutputWithPooling,
    ),
    Family(
        "bert_generation",
        "BertGeneration",
        _modeling("bert_generation"),
        {
            **_named("BertGeneration", {**_LAYER, "Embeddings": FastEmbeddings}),
            "BertEncoder": FastEncoder,
            "BertGenerationEncoder": FastModel,
        },
        model_output=BaseModelOutputWithPastAndCrossAttentions,
    ),
)

BY_MODELING = {family.modeling: family for family in FAMILIES}

# Encoders that look like BERT and are not; transformers' module -> why.
OTHERS = {
    _modeling("mpnet"): "MPNet adds a bias by relative position to its attention scores",
    _modeling("deberta"): "DeBERTa's attention has terms of relative positions",
    _modeling("deberta_v2"): "DeBERTa-v2's attention has terms of relative positions",
    _modeling("roformer"): "RoFormer rotates queries and keys by their positions",
    _modeling("xlm_roberta_xl"): "XLM-RoBERTa-XL has its norms in front of attention",
    _modeling("roberta_prelayernorm"): "RoBERTa-PreLayerNorm has its norms in front of attention",
    _modeling("albert"): "ALBERT's layers share their parameters, in modules of their own",
    _modeling("modernbert"): "ModernBERT rotates queries and keys, and norms in front of attention",
}
