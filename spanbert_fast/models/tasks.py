"""Task heads: sequence and token classification, extractive question answering."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models.base import SpanBertPreTrainedModel
from spanbert_fast.models.encoder import SpanBertModel, first_rows
from spanbert_fast.nn.packing import Packing, first_token_rows


def classifier_dropout(config: SpanBertConfig) -> nn.Dropout:
    """Dropout before a classifier, as in Hugging Face's BERT."""
    p = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if p is None else p)


class SpanBertForSequenceClassification(SpanBertPreTrainedModel):
    """Drop-in for `transformers.BertForSequenceClassification`.

    The last layer computes only each sequence's first token, which is all the pooler reads.
    """

    def __init__(self, config: SpanBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = SpanBertModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify whole sequences.

        Args:
            labels: (batch,) int64 classes or floats for regression, or (batch, num_labels) floats
                for several labels at once; config.problem_type decides, as in Hugging Face.
            others: see `SpanBertModel.forward`.

        Returns:
            logits (batch, num_labels) and the mean loss.
        """
        self.refuse_attentions(output_attentions, kwargs)
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        packing = self.bert.packing_of(
            input_ids, attention_mask, inputs_embeds, cu_seqlens, max_seqlen
        )
        every_row = self.wants_hidden_states(output_hidden_states)
        encoded = self.bert.encode(
            *inputs,
            packing=packing,
            rows=None if every_row else first_token_rows(packing),
            output_hidden_states=every_row,
        )
        first = first_rows(encoded) if every_row else encoded.hidden_states
        logits = self.classifier(self.dropout(self.bert.pooler(first)))
        return SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=encoded.padded_stages(),
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        kind = self.config.problem_type
        if kind is None:
            if self.num_labels == 1:
                kind = "regression"
            elif labels.dtype in (torch.int64, torch.int32):
                kind = "single_label_classification"
            else:
                kind = "multi_label_classification"
            self.config.problem_type = kind
        logits = logits.float()
        if kind == "regression":
            return F.mse_loss(logits.view(labels.shape), labels.float())
        if kind == "single_label_classification":
            return F.cross_entropy(logits, labels.view(-1).long())
        return F.binary_cross_entropy_with_logits(logits, labels.float())


class SpanBertForTokenClassification(SpanBertPreTrainedModel):
    """Drop-in for `transformers.BertForTokenClassification`."""

    def __init__(self, config: SpanBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = SpanBertModel(config, add_pooling_layer=False)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """Classify every token.

        Args:
            labels: int64, shaped as input_ids; -100 where no loss is taken. Labels where
                attention_mask is 0 are never read.
            others: see `SpanBertModel.forward`.

        Returns:
            logits, shaped as the input with num_labels added; loss, the mean over labelled tokens.
        """
        self.refuse_attentions(output_attentions, kwargs)
        encoded = self.bert.encode(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            cu_seqlens,
            max_seqlen,
            output_hidden_states=self.wants_hidden_states(output_hidden_states),
        )
        logits = self.classifier(self.dropout(encoded.hidden_states))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float(), encoded.packing.pack(labels))
        return TokenClassifierOutput(
            loss=loss,
            logits=encoded.packing.unpack(logits),
            hidden_states=encoded.padded_stages(),
        )


class SpanBertForQuestionAnswering(SpanBertPreTrainedModel):
    """Drop-in for `transformers.BertForQuestionAnswering`.

    One difference, on purpose: a padding position can be neither start nor end. Its logits are the
    lowest finite number, where Hugging Face scores padding like text.
    """

    def __init__(self, config: SpanBertConfig):
        super().__init__(config)
        self.bert = SpanBertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """Score every token as the first and the last of the answer.

        Args:
            start_positions, end_positions: int64 (batch,), places within each sequence; a place
                outside the sequence (an answer that was cut off) takes no part in the loss.
            others: see `SpanBertModel.forward`.

        Returns:
            start_logits and end_logits (batch, seqlen), also for packed input, where seqlen is
            max_seqlen; loss, the mean of both cross-entropies.
        """
        self.refuse_attentions(output_attentions, kwargs)
        encoded = self.bert.encode(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            cu_seqlens,
            max_seqlen,
            output_hidden_states=self.wants_hidden_states(output_hidden_states),
        )
        logits = self._padded(self.qa_outputs(encoded.hidden_states), encoded.packing)
        start_logits, end_logits = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self._loss(start_logits, start_positions) / 2
            loss = loss + self._loss(end_logits, end_positions) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits.contiguous(),
            end_logits=end_logits.contiguous(),
            hidden_states=encoded.padded_stages(),
        )

    @staticmethod
    def _padded(logits: torch.Tensor, packing: Packing) -> torch.Tensor:
        """(total_tokens, 2) -> (batch, seqlen, 2), the lowest number where there is no token."""
        if packing.padded_shape is not None:
            if packing.indices is None:
                return packing.unpack(logits)
            batch, seqlen = packing.padded_shape
            padded = logits.new_full((batch * seqlen, 2), torch.finfo(logits.dtype).min)
            return padded.index_put((packing.indices,), logits).view(batch, seqlen, 2)
        places = torch.arange(packing.max_seqlen, device=logits.device)
        slots = packing.cu_seqlens[:-1, None].long() + places
        real = slots < packing.cu_seqlens[1:, None]
        rows = logits[slots.clamp(max=max(len(logits) - 1, 0))]
        return rows.masked_fill(~real[..., None], torch.finfo(logits.dtype).min)

    @staticmethod
    def _loss(logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        ignored = logits.shape[1]
        positions = positions.view(-1).clamp(0, ignored)
        return F.cross_entropy(logits.float(), positions, ignore_index=ignored)
