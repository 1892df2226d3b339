"""SpanBERT models behind the Hugging Face model API, registered with its Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models.any_encoder import AutoModelForSpanPreTraining
from spanbert_fast.models.coreference import CoreferenceOutput, SpanBertForCoreference
from spanbert_fast.models.encoder import SpanBertModel
from spanbert_fast.models.heads import (
    SpanBertForQuestionAnswering,
    SpanBertForSequenceClassification,
    SpanBertForTokenClassification,
)
from spanbert_fast.models.masked_lm import SpanBertForMaskedLM
from spanbert_fast.models.pretraining import SpanBertForPreTraining
from spanbert_fast.models.span_objectives import SpanBertForPreTrainingOutput

AutoConfig.register(SpanBertConfig.model_type, SpanBertConfig)
for _auto, _model in (
    (AutoModel, SpanBertModel),
    (AutoModelForPreTraining, SpanBertForPreTraining),
    (AutoModelForMaskedLM, SpanBertForMaskedLM),
    (AutoModelForSequenceClassification, SpanBertForSequenceClassification),
    (AutoModelForTokenClassification, SpanBertForTokenClassification),
    (AutoModelForQuestionAnswering, SpanBertForQuestionAnswering),
):
    _auto.register(SpanBertConfig, _model)

__all__ = [
    "AutoModelForSpanPreTraining",
    "CoreferenceOutput",
    "SpanBertConfig",
    "SpanBertForCoreference",
    "SpanBertForMaskedLM",
    "SpanBertForPreTraining",
    "SpanBertForPreTrainingOutput",
    "SpanBertForQuestionAnswering",
    "SpanBertForSequenceClassification",
    "SpanBertForTokenClassification",
    "SpanBertModel",
]
