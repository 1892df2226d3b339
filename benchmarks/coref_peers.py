"""What `bench_coref.py` compares with: coreference on padded batches.

`Padded` has our weights in the form of the public code, written from its description (Kirstain et
al. 2021, arXiv 2101.00434; Otmazgin et al. 2022, arXiv 2209.04280): a batch of documents is
(documents, segments, length) with every document padded to the one with most segments, and the
scores of all word pairs as mentions, and of all pairs of mentions, are dense. `FastCoref` is the
model class of the package fastcoref itself, with random weights of the same sizes.
"""

import sys
import types
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from spanbert_fast.models import SpanBertForCoreference
from spanbert_fast.reference.antecedent_loss import distance_buckets


class Spans(NamedTuple):
    """The mentions of a padded batch: (documents, mentions) each, `kept` where one is real."""

    starts: torch.Tensor
    ends: torch.Tensor
    scores: torch.Tensor
    kept: torch.Tensor


def stock_config(model: SpanBertForCoreference) -> BertConfig:
    """transformers' configuration of our encoder, with its fastest attention on padded batches."""
    fields = {**model.config.to_dict(), "model_type": "bert"}
    return BertConfig.from_dict(fields, attn_implementation="sdpa")


def padded_segments(batch: dict, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, real): (documents, segments, length); `real` is False at padding."""
    lengths = batch["cu_seqlens"].diff().long()
    segment_starts = batch["cu_seqlens"][:-1].long()
    first_pieces = batch["first_pieces"][batch["cu_words"][:-1].long()]
    document = torch.searchsorted(first_pieces, segment_starts + 1, right=True) - 1
    counts = document.bincount()
    place = torch.arange(len(lengths)) - (counts.cumsum(0) - counts)[document]
    length = int(lengths.max())
    real = torch.zeros(len(counts), int(counts.max()), length, dtype=torch.bool)
    real[document, place] = torch.arange(length) < lengths[:, None]
    ids = torch.full(real.shape, padding, dtype=torch.int64)
    ids[real] = batch["input_ids"]
    return ids, real


class Padded(nn.Module):
    """transformers' encoder and our start-to-end head, on padded batches."""

    def __init__(self, model: SpanBertForCoreference):
        super().__init__()
        self.encoder = BertModel(stock_config(model), add_pooling_layer=False)
        self.encoder.load_state_dict(model.bert.state_dict())
        self.head, self.config = model.coref, model.config

    def forward(self, **batch) -> dict[str, torch.Tensor]:
        """loss where the batch has gold mentions, else antecedents, as numbers of the batch's
        mentions."""
        ids, real = padded_segments(batch)
        mask = real.flatten(0, 1).long()
        mask[:, 0] = 1  # a segment of padding alone attends to its first place
        hidden = self.encoder(input_ids=ids.flatten(0, 1), attention_mask=mask).last_hidden_state
        hidden = hidden.flatten(0, 1)
        rows = real.flatten().nonzero().squeeze(1)
        words = batch["cu_words"].diff().long()
        is_word = torch.arange(int(words.max())) < words[:, None]
        word_rows = torch.zeros((2, *is_word.shape), dtype=torch.int64)
        word_rows[0, is_word] = rows[batch["first_pieces"]]
        word_rows[1, is_word] = rows[batch["last_pieces"]]
        firsts, lasts = hidden[word_rows[0]], hidden[word_rows[1]]
        sentences = torch.full(is_word.shape, -1, dtype=torch.int64)
        sentences[is_word] = batch["sentences"]
        scores, is_candidate = self.mention_scores(firsts, lasts, sentences)
        spans = self.keep_best(scores, is_candidate, words)
        pairs = self.pair_scores(firsts, lasts, spans)
        if "gold_starts" not in batch:
            best, antecedents = pairs.max(2)
            shift = spans.kept.sum(1).cumsum(0) - spans.kept.sum(1)
            chosen = torch.where(best > 0, antecedents + shift[:, None], -1)
            return {"antecedents": chosen[spans.kept]}
        clusters = gold_clusters(batch, words, scores.shape)
        return {"loss": self.loss(scores, is_candidate, spans, pairs, clusters)}

    def mention_scores(self, firsts, lasts, sentences) -> tuple[torch.Tensor, torch.Tensor]:
        """(scores, is_candidate): (documents, words, words), from the first word to the last."""
        head, place = self.head, torch.arange(sentences.shape[1])
        starts, ends = F.gelu(head.mention_start(firsts)), F.gelu(head.mention_end(lasts))
        scores = head.start_end(starts) @ ends.transpose(1, 2)
        scores = scores + head.start_score(starts) + head.end_score(ends).transpose(1, 2)
        widths = place - place[:, None]
        inside = (widths >= 0) & (widths < head.max_width)
        scores = scores + head.width_scores[widths.clamp(0, head.max_width - 1)]
        same = (sentences[:, :, None] == sentences[:, None]) & (sentences >= 0)[:, :, None]
        return scores, same & inside

    def keep_best(self, scores, is_candidate, words) -> Spans:
        """The best spans of each document in the order of the text, padded to the most."""
        wanted = (self.config.top_span_ratio * words.double()).ceil().long()
        wanted = torch.minimum(wanted, is_candidate.sum((1, 2)))
        flat = scores.masked_fill(~is_candidate, -torch.inf).flatten(1)
        best = flat.detach().topk(int(wanted.max()), dim=1).indices
        kept = torch.arange(best.shape[1]) < wanted[:, None]
        best = best.masked_fill(~kept, flat.shape[1] - 1).sort(1).values
        count = scores.shape[1]
        chosen = flat.gather(1, best).masked_fill(~kept, 0.0)
        return Spans(best // count, best % count, chosen, kept)

    def pair_scores(self, firsts, lasts, spans: Spans) -> torch.Tensor:
        """(documents, mentions, mentions): -inf where the second is no candidate of the first."""
        head, place = self.head, torch.arange(spans.starts.shape[1])
        starts, ends = F.gelu(head.antecedent_start(firsts)), F.gelu(head.antecedent_end(lasts))
        size = starts.shape[2]
        keys = torch.cat(
            [
                starts.gather(1, spans.starts[:, :, None].expand(-1, -1, size)),
                ends.gather(1, spans.ends[:, :, None].expand(-1, -1, size)),
            ],
            2,
        )
        pairs = head.antecedent(keys) @ keys.transpose(1, 2)
        pairs = pairs + spans.scores[:, :, None] + spans.scores[:, None]
        distance = place[:, None] - place
        buckets = distance_buckets(distance).expand(pairs.shape)
        pairs = pairs + head.distance(keys).gather(2, buckets)
        is_pair = (distance > 0) & spans.kept[:, :, None] & spans.kept[:, None]
        return pairs.masked_fill(~is_pair, -torch.inf)

    def loss(self, scores, is_candidate, spans: Spans, pairs, clusters) -> torch.Tensor:
        """As `SpanBertForCoreference` has it."""
        of_mention = clusters.flatten(1).gather(1, spans.starts * clusters.shape[2] + spans.ends)
        is_gold = (of_mention[:, :, None] == of_mention[:, None]) & (of_mention >= 0)[:, :, None]
        is_gold &= pairs.isfinite()
        none = torch.zeros_like(pairs[:, :, :1])
        gold_none = torch.where(is_gold.any(2, keepdim=True), -torch.inf, none)
        gold = torch.cat([gold_none, pairs.masked_fill(~is_gold, -torch.inf)], 2).logsumexp(2)
        losses = torch.cat([none, pairs], 2).logsumexp(2) - gold
        count = max(1, int(spans.kept.sum()))
        mention_loss = F.binary_cross_entropy_with_logits(
            scores[is_candidate], (clusters[is_candidate] >= 0).float(), reduction="sum"
        )
        weight = self.config.mention_loss_weight
        return (losses[spans.kept].sum() + weight * mention_loss) / count


def gold_clusters(batch: dict, words: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """int64 (documents, words, words): the cluster of each span, -1 for none."""
    first_words = batch["cu_words"][:-1].long()
    document = torch.searchsorted(first_words, batch["gold_starts"], right=True) - 1
    starts, ends = (batch[f"gold_{end}"] - first_words[document] for end in ("starts", "ends"))
    clusters = torch.full(shape, -1, dtype=torch.int64)
    clusters[document, starts, ends] = batch["gold_clusters"]
    return clusters


class FastCoref(nn.Module):
    """fastcoref's own model class on the same documents; its weights are random.

    It works on pieces, not on words, and has no mention loss; its head has Layer Norms.

    Args:
        model: whose sizes it takes.
        folder: an unpacked source distribution of fastcoref.
    """

    def __init__(self, model: SpanBertForCoreference, folder: Path):
        super().__init__()
        # fastcoref/__init__.py imports spaCy, which the model class does not need
        for name in ("fastcoref", "fastcoref.coref_models", "fastcoref.utilities"):
            package = types.ModuleType(name)
            package.__path__ = [str(folder.joinpath(*name.split(".")))]
            sys.modules[name] = package
        from fastcoref.coref_models.modeling_fcoref import FCorefModel

        config = stock_config(model)
        config.coref_head = {
            "max_span_length": model.config.max_span_width,
            "top_lambda": model.config.top_span_ratio,
            "ffnn_size": model.config.coref_feature_size or model.config.hidden_size,
            "dropout_prob": model.config.coref_dropout,
        }
        # transformers 5 makes this in post_init, which the class does not call
        FCorefModel.all_tied_weights_keys = {}
        self.model = FCorefModel(config)

    def forward(self, **batch) -> dict[str, torch.Tensor]:
        """loss where the batch has gold mentions."""
        ids, real = padded_segments(batch)
        mask = real.long()
        mask[:, :, 0] = 1
        given = {"input_ids": ids, "attention_mask": mask, "leftovers": {
            "input_ids": [], "attention_mask": []}}  # fmt: skip
        if "gold_starts" not in batch:
            self.model(given)
            return {}
        return {"loss": self.model(given, self._gold(batch, real))[0]}

    def _gold(self, batch: dict, real: torch.Tensor) -> torch.Tensor:
        """int64 (documents, clusters, mentions, 2) of places among a document's pieces, padded
        with -1."""
        documents, segments, length = real.shape
        rows = real.flatten().nonzero().squeeze(1) % (segments * length)
        first_words = batch["cu_words"][:-1].long()
        clusters: list[dict[int, list]] = [{} for _ in range(documents)]
        names = ("starts", "ends", "clusters")
        for start, end, cluster in zip(*(batch[f"gold_{n}"] for n in names), strict=True):
            document = int(torch.searchsorted(first_words, start, right=True)) - 1
            place = [int(rows[batch["first_pieces"][start]]), int(rows[batch["last_pieces"][end]])]
            clusters[document].setdefault(int(cluster), []).append(place)
        most = max(len(of_document) for of_document in clusters)
        longest = max(len(c) for of_document in clusters for c in of_document.values())
        gold = torch.full((documents, most, longest, 2), -1)
        for document, of_document in enumerate(clusters):
            for number, mentions in enumerate(of_document.values()):
                gold[document, number, : len(mentions)] = torch.tensor(mentions)
        return gold
