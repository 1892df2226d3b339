"""Coreference resolution: SpanBertForCoreference, with one of two heads."""

import dataclasses

import torch
from torch.nn import functional as F
from transformers.utils import ModelOutput

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models.base import SpanBertPreTrainedModel
from spanbert_fast.models.encoder import SpanBertModel
from spanbert_fast.models.inputs import EncoderInputs, takes_encoder_inputs
from spanbert_fast.nn.coarse_to_fine import CoarseToFineHead
from spanbert_fast.nn.coreference import (
    CoreferenceHead,
    Mentions,
    StartToEndHead,
    Words,
    candidate_mask,
    keep_best,
)


@dataclasses.dataclass
class CoreferenceOutput(ModelOutput):
    """What `SpanBertForCoreference` returns.

    Attributes:
        loss: mean over the kept mentions, if gold mentions are given.
        antecedent_loss, mention_loss: its two parts; the second is not yet weighted.
        mention_starts, mention_ends: int64 (mentions,), words, both inclusive, in text order.
        mention_scores: (mentions,), logits of being a mention.
        antecedents: int64 (mentions,), numbers of mentions, -1 for none, if no gold mentions are
            given.
        antecedent_scores: (mentions,), the best candidate's score; -inf where there is none.
    """

    loss: torch.Tensor | None = None
    antecedent_loss: torch.Tensor | None = None
    mention_loss: torch.Tensor | None = None
    mention_starts: torch.Tensor | None = None
    mention_ends: torch.Tensor | None = None
    mention_scores: torch.Tensor | None = None
    antecedents: torch.Tensor | None = None
    antecedent_scores: torch.Tensor | None = None


def coreference_head(config: SpanBertConfig) -> CoreferenceHead:
    """The head that the configuration names."""
    size = config.coref_feature_size or config.hidden_size
    width, dropout = config.max_span_width, config.coref_dropout
    if config.coref_head == "start-to-end":
        return StartToEndHead(config.hidden_size, size, max_width=width, dropout=dropout)
    return CoarseToFineHead(
        config.hidden_size,
        size,
        max_antecedents=config.max_top_antecedents,
        depth=config.coref_depth,
        max_width=width,
        dropout=dropout,
    )


class SpanBertForCoreference(SpanBertPreTrainedModel):
    """Mentions and their antecedents in documents of any length.

    A document is cut into segments, which the encoder reads independently, as sequences of one
    packed batch (Joshi et al. 2019, arXiv 1908.09091, "independent"). Every word lies in one
    segment, so the rows of the segments, one after another, are the rows of the document. The head
    is `config.coref_head`: "start-to-end" or "coarse-to-fine" (`nn.coreference`,
    `nn.coarse_to_fine`).

    The loss is the negative marginal log-likelihood of the antecedents (Lee et al. 2017, section 3)
    plus `config.mention_loss_weight` times the binary cross-entropy of the mention scores over all
    candidates. Without the second term, clusters of one mention would teach nothing (Toshniwal et
    al. 2021, arXiv 2109.09667).

        >>> model = SpanBertForCoreference.from_pretrained("runs/first/model")
        >>> pieces, sentences = torch.tensor([1, 2, 3]), torch.tensor([0, 0, 1])
        >>> words = {"sentences": sentences, "cu_words": torch.tensor([0, 3], dtype=torch.int32)}
        >>> words.update(first_pieces=pieces, last_pieces=pieces)  # each word is one piece
        >>> len(model(torch.tensor([[2, 7, 9, 8, 3]]), **words).antecedents)  # 0.4 of 3, rounded up
        2
    """

    def __init__(self, config: SpanBertConfig):
        super().__init__(config)
        self.bert = SpanBertModel(config, add_pooling_layer=False)
        self.coref = coreference_head(config)
        self.post_init()

    @takes_encoder_inputs
    def forward(
        self,
        inputs: EncoderInputs,
        first_pieces: torch.Tensor | None = None,
        last_pieces: torch.Tensor | None = None,
        sentences: torch.Tensor | None = None,
        cu_words: torch.Tensor | None = None,
        gold_starts: torch.Tensor | None = None,
        gold_ends: torch.Tensor | None = None,
        gold_clusters: torch.Tensor | None = None,
    ) -> CoreferenceOutput:
        """Score documents whose segments are the sequences of the batch.

        Args:
            first_pieces, last_pieces: int64 (words,), the positions of each word's first and last
                piece in the packed input_ids (in the flat input_ids of a padded batch).
            sentences: int64 (words,), rising; see `nn.coreference.Words`.
            cu_words: int32 (documents + 1,).
            gold_starts, gold_ends: int64 (gold mentions,), words of the batch, both inclusive.
            gold_clusters: int64 (gold mentions,), 0 or more, no number in two documents.
            others: see `SpanBertModel.forward`.

        Returns:
            The loss if gold mentions are given, else the antecedents.

        Raises:
            ValueError: some of the arguments of words, or of gold mentions, are missing.
        """
        if first_pieces is None or last_pieces is None or sentences is None or cu_words is None:
            raise ValueError("first_pieces, last_pieces, sentences and cu_words must be given")
        rows = inputs.packing.packed_rows
        words = Words(rows(first_pieces), rows(last_pieces), sentences, cu_words)
        hidden = self.bert.encode(inputs).hidden_states
        if gold_starts is None:
            return self._resolved(hidden, words)
        if gold_ends is None or gold_clusters is None:
            missing = "gold_ends" if gold_ends is None else "gold_clusters"
            raise ValueError(f"{missing} must be given with gold_starts, got None")
        return self._losses(hidden, words, (gold_starts, gold_ends, gold_clusters))

    def resolve_words(
        self,
        hidden: torch.Tensor,
        first_pieces: torch.Tensor,
        last_pieces: torch.Tensor,
        sentences: torch.Tensor,
        cu_words: torch.Tensor,
    ) -> CoreferenceOutput:
        """The mentions and antecedents of documents that have been encoded, in one batch or more.

        Args:
            hidden: (rows, hidden_size), the segments' rows one after another.
            others: see `forward`; rows of `hidden`.
        """
        return self._resolved(hidden, Words(first_pieces, last_pieces, sentences, cu_words))

    def _resolved(self, hidden: torch.Tensor, words: Words) -> CoreferenceOutput:
        mentions, _, _ = self._mentions(hidden, words)
        antecedents, scores = self.coref.best(hidden, words, mentions)
        return CoreferenceOutput(
            mention_starts=mentions.starts,
            mention_ends=mentions.ends,
            mention_scores=mentions.scores,
            antecedents=antecedents,
            antecedent_scores=scores,
        )

    def _mentions(self, hidden, words: Words) -> tuple[Mentions, torch.Tensor, torch.Tensor]:
        band = self.coref.mention_scores(hidden, words)
        is_candidate = candidate_mask(words, self.config.max_span_width)
        return keep_best(band, is_candidate, words, self.config.top_span_ratio), band, is_candidate

    def _losses(self, hidden, words: Words, gold: tuple[torch.Tensor, ...]) -> CoreferenceOutput:
        mentions, band, is_candidate = self._mentions(hidden, words)
        starts, ends, clusters = gold
        width = self.config.max_span_width
        found = ends - starts < width
        places = (starts * width + ends - starts)[found]
        cluster_of_span = torch.full_like(is_candidate, -1, dtype=torch.int64).flatten()
        cluster_of_span[places] = clusters[found]
        kept = mentions.starts * width + mentions.ends - mentions.starts
        losses = self.coref.loss(hidden, words, mentions, cluster_of_span[kept])
        count = max(1, len(losses))
        is_mention = (cluster_of_span >= 0).view_as(band)[is_candidate].float()
        mention_loss = F.binary_cross_entropy_with_logits(
            band[is_candidate], is_mention, reduction="sum"
        )
        antecedent_loss, mention_loss = losses.sum() / count, mention_loss / count
        return CoreferenceOutput(
            loss=antecedent_loss + self.config.mention_loss_weight * mention_loss,
            antecedent_loss=antecedent_loss.detach(),
            mention_loss=mention_loss.detach(),
            mention_starts=mentions.starts,
            mention_ends=mentions.ends,
            mention_scores=mentions.scores.detach(),
        )
