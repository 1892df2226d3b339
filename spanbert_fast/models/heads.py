"""Task heads: sequence and token classification, extractive question answering."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models.base import SpanBertPreTrainedModel
from spanbert_fast.models.encoder import SpanBertModel
from spanbert_fast.models.inputs import EncoderInputs, takes_encoder_inputs
from spanbert_fast.nn.linear import apply_linear
from spanbert_fast.nn.packing import Packing
from spanbert_fast.nn.position_loss import position_loss


def classifier_dropout(config: SpanBertConfig) -> nn.Dropout:
    """Dropout before a classifier, as in Hugging Face's BERT."""
    p = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if p is None else p)


def new_classifier(config: SpanBertConfig) -> nn.Linear:
    """A linear layer from hidden_size to the configuration's labels."""
    return nn.Linear(config.hidden_size, len(config.id2label or ()))


class SpanBertForSequenceClassification(SpanBertPreTrainedModel):
    """Drop-in for `transformers.BertForSequenceClassification`.

    The last layer computes only the first token of each sequence, which is all the pooler reads.

        >>> model = SpanBertForSequenceClassification.from_pretrained("runs/first/model")
        >>> model(torch.tensor([[2, 7, 9, 3]])).logits.shape  # two classes by default
        torch.Size([1, 2])
    """

    def __init__(self, config: SpanBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = SpanBertModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = new_classifier(config)
        self.post_init()

    @takes_encoder_inputs
    def forward(
        self, inputs: EncoderInputs, labels: torch.Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Classify whole sequences.

        Args:
            labels: (batch,) int64 classes or floats for regression, or (batch, num_labels) floats
                for several labels at once; config.problem_type decides, as in Hugging Face.
            others: see `SpanBertModel.forward`.

        Returns:
            logits (batch, num_labels) and the mean loss.
        """
        encoded, first_tokens = self.bert.encode_first_tokens(inputs)
        assert self.bert.pooler is not None, "the class makes its encoder with a pooler"
        logits = apply_linear(self.classifier, self.dropout(self.bert.pooler(first_tokens)))
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
    """Drop-in for `transformers.BertForTokenClassification`.

    >>> folder = "runs/first/model"
    >>> model = SpanBertForTokenClassification.from_pretrained(folder, num_labels=5)
    >>> model(torch.tensor([[2, 7, 9, 3]])).logits.shape
    torch.Size([1, 4, 5])
    """

    def __init__(self, config: SpanBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = SpanBertModel(config, add_pooling_layer=False)
        self.dropout = classifier_dropout(config)
        self.classifier = new_classifier(config)
        self.post_init()

    @takes_encoder_inputs
    def forward(
        self, inputs: EncoderInputs, labels: torch.Tensor | None = None
    ) -> TokenClassifierOutput:
        """Classify every token.

        Args:
            labels: int64, shaped as input_ids; -100 where no loss is taken. Labels where
                attention_mask is 0 are never read.
            others: see `SpanBertModel.forward`.

        Returns:
            logits, shaped as the input with num_labels added; loss, the mean over labelled tokens.
        """
        encoded = self.bert.encode(inputs)
        logits = apply_linear(self.classifier, self.dropout(encoded.hidden_states))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float(), inputs.packing.pack(labels))
        return TokenClassifierOutput(
            loss=loss,
            logits=encoded.packing.unpack(logits),
            hidden_states=encoded.padded_stages(),
        )


class SpanBertForQuestionAnswering(SpanBertPreTrainedModel):
    """Drop-in for `transformers.BertForQuestionAnswering`.

    One difference, on purpose: an answer can neither start nor end at padding, whose logits are the
    lowest finite number. Hugging Face scores padding like text.

        >>> model = SpanBertForQuestionAnswering.from_pretrained("runs/first/model")
        >>> model(torch.tensor([[2, 7, 3, 9, 3]])).start_logits.shape
        torch.Size([1, 5])
    """

    def __init__(self, config: SpanBertConfig):
        super().__init__(config)
        self.bert = SpanBertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @takes_encoder_inputs
    def forward(
        self,
        inputs: EncoderInputs,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Score every token as the first and the last of the answer.

        Args:
            start_positions, end_positions: int64 (batch,), places within each sequence. A place
                outside its sequence (of an answer that was cut off) takes no part in the loss.
            others: see `SpanBertModel.forward`.

        Returns:
            start_logits and end_logits (batch, seqlen); for packed input, seqlen is max_seqlen.
            loss, the mean of both cross-entropies.
        """
        encoded = self.bert.encode(inputs)
        logits, is_token = self._padded(
            apply_linear(self.qa_outputs, encoded.hidden_states), inputs.packing
        )
        start_logits, end_logits = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = position_loss(start_logits, start_positions, is_token) / 2
            loss = loss + position_loss(end_logits, end_positions, is_token) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits.contiguous(),
            end_logits=end_logits.contiguous(),
            hidden_states=encoded.padded_stages(),
        )

    @staticmethod
    def _padded(logits: torch.Tensor, packing: Packing) -> tuple[torch.Tensor, torch.Tensor]:
        """(total_tokens, 2) as (batch, seqlen, 2), with the lowest number at padding; and bool
        (batch, seqlen), true at tokens."""
        lowest = torch.finfo(logits.dtype).min
        if packing.padded_shape is not None:
            batch, seqlen = packing.padded_shape
            if packing.indices is None:
                return packing.unpack(logits), logits.new_ones((batch, seqlen), dtype=torch.bool)
            padded = logits.new_full((batch * seqlen, 2), lowest)
            padded = padded.index_put((packing.indices,), logits).view(batch, seqlen, 2)
            is_token = logits.new_zeros(batch * seqlen, dtype=torch.bool)
            return padded, is_token.index_fill(0, packing.indices, True).view(batch, seqlen)
        places = torch.arange(packing.max_seqlen, device=logits.device)
        slots = packing.cu_seqlens[:-1, None].long() + places
        is_token = slots < packing.cu_seqlens[1:, None]
        # padding reads an extra row after the last one, which exists even in an empty batch
        rows = F.pad(logits, (0, 0, 0, 1))[slots.clamp(max=len(logits))]
        return rows.masked_fill(~is_token[..., None], lowest), is_token
