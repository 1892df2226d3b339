"""SpanBertForPreTraining: an encoder with the masked-LM head and the span boundary head."""

import torch

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models.encoder import SpanBertModel
from spanbert_fast.models.inputs import Encoded, EncoderInputs
from spanbert_fast.models.masked_lm import TiedDecoder
from spanbert_fast.models.span_objectives import SpanObjectives
from spanbert_fast.nn.heads import MaskedLMHead, SpanBoundaryHead
from spanbert_fast.nn.span_losses import (
    PretrainingHeads,
    SpanPretrainingLoss,
    SpanPretrainingLosses,
)
from spanbert_fast.nn.targets import Denominators, SpanTargets
from spanbert_fast.ops.dropout import DropoutPlan


class SpanBertForPreTraining(SpanObjectives, TiedDecoder):
    """SpanBERT with both heads (Joshi et al. 2020, section 3): masked LM and span boundaries.

    >>> from transformers import AutoTokenizer
    >>> from spanbert_fast import DataCollatorForSpanMasking
    >>> tokenizer = AutoTokenizer.from_pretrained("runs/first/model")
    >>> model = SpanBertForPreTraining.from_pretrained("runs/first/model")
    >>> batch = DataCollatorForSpanMasking(tokenizer)([tokenizer("The river follows the winter.")])
    >>> bool(model(**batch).loss > 0)
    True
    """

    cls: SpanPretrainingLoss

    def __init__(self, config: SpanBertConfig):
        super().__init__(config)
        self.bert = SpanBertModel(config, add_pooling_layer=False)
        self.cls = SpanPretrainingLoss(
            MaskedLMHead(config.hidden_size, config.vocab_size, config.layer_norm_eps),
            SpanBoundaryHead(
                config.hidden_size,
                config.vocab_size,
                config.max_span_targets,
                config.span_position_embedding_size,
                config.layer_norm_eps,
            ),
            config.sbo_weight,
            config.sbo_denominator_offset,
        )
        self.post_init()

    def encode(
        self,
        inputs: EncoderInputs,
        *,
        rows: torch.Tensor | None = None,
        plan: DropoutPlan | None = None,
    ) -> Encoded:
        return self.bert.encode(inputs, rows=rows, plan=plan)

    def pretraining_heads(self) -> PretrainingHeads:
        return self.cls.over(self.cls.predictions.decoder.weight)

    def span_losses(
        self,
        hidden_states: torch.Tensor,
        targets: SpanTargets,
        denominators: Denominators,
        return_predictions: bool,
    ) -> SpanPretrainingLosses:
        weight = self.cls.predictions.decoder.weight
        return self.cls(hidden_states, weight, targets, denominators, return_predictions)
