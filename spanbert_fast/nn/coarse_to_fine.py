"""The coarse-to-fine head of Lee et al. 2018, which Joshi et al. 2019 and 2020 use."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from spanbert_fast.nn.coreference import (
    Antecedents,
    CoreferenceHead,
    Mentions,
    Words,
    candidate_mask,
    feed_forward,
)
from spanbert_fast.nn.linear import apply_linear
from spanbert_fast.ops._antecedents import NUM_DISTANCES, distance_buckets
from spanbert_fast.ops.antecedent_top_k import antecedent_top_k
from spanbert_fast.ops.span_representation import span_representation

_FEATURES = 20  # size of the embeddings of widths and distances
_SPANS = 4096  # span representations in memory at once
_PAIRS = 8192  # pairs in memory at once


class CoarseToFineHead(CoreferenceHead):
    """Span representations, coarse pruning of antecedents, fine scores of those that are left.

    A span is g = [x_start; x_end; x^; width], where x^ is the mean of its pieces by attention (Lee
    et al. 2017, arXiv 1707.07045, equation 1 and section 4). Let s_m = FFNN_m(g),
    s_c(i, j) = g_i . W_c g_j and s_a(i, j) = FFNN_a([g_i; g_j; g_i * g_j; distance]). A mention
    keeps the K antecedents with the highest s_m(i) + s_m(j) + s_c(i, j), and scores each of them
    s_m(i) + s_m(j) + s_c(i, j) + s_a(i, j) (Lee et al. 2018, arXiv 1804.05392, equations 6 and 7,
    section 4). Joshi et al. 2019 (arXiv 1908.09091) put it on BERT, on independent segments; Joshi
    et al. 2020 (arXiv 1907.10529) on SpanBERT. Speakers and genres are not features here.

    `depth` above 1 is higher-order inference (Lee et al. 2018, equations 3 to 5): g_i becomes
    f_i g_i + (1 - f_i) a_i, where a_i is the expected antecedent. Xu and Choi 2020 (arXiv
    2009.12013) find that it adds nothing, so the default is 1.

    The representations of all candidates are never in memory at once: they are computed, scored and
    dropped in parts, and in training computed again for the gradients.

    Args:
        feature_size: size of the hidden layers.
        max_antecedents: K.
        depth: 1 for first-order inference.
    """

    def __init__(
        self,
        hidden_size: int,
        feature_size: int,
        *,
        max_width: int,
        max_antecedents: int,
        depth: int,
        dropout: float,
    ):
        super().__init__(hidden_size, max_width=max_width, dropout=dropout)
        self.max_antecedents, self.depth = max_antecedents, depth
        size = 3 * hidden_size + _FEATURES
        self.attention = nn.Linear(hidden_size, 1)
        self.widths = nn.Embedding(max_width, _FEATURES)
        self.width_prior = nn.Embedding(max_width, _FEATURES)
        self.mention = feed_forward(size, feature_size, dropout)
        self.width_score = feed_forward(_FEATURES, feature_size, dropout)
        self.coarse = nn.Linear(size, size)
        self.coarse_distance = nn.Embedding(NUM_DISTANCES, _FEATURES)
        self.distance_score = nn.Linear(_FEATURES, 1)
        self.query = nn.Linear(size, feature_size)
        self.key = nn.Linear(size, feature_size, bias=False)
        self.product = nn.Linear(size, feature_size, bias=False)
        self.fine_distance = nn.Embedding(NUM_DISTANCES, feature_size)
        self.fine_score = nn.Linear(feature_size, 1)
        self.gate = nn.Linear(2 * size, size) if depth > 1 else None

    def _representations(self, hidden, logits, words: Words, starts, ends) -> torch.Tensor:
        g = span_representation(
            hidden, hidden, words.firsts[starts], words.lasts[ends], inner=hidden, logits=logits
        )
        widths = self.widths(ends - starts).to(g.dtype)
        return torch.cat([g, self.dropout(widths)], 1)

    def _inputs(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.dropout(hidden)
        return hidden, apply_linear(self.attention, hidden).squeeze(1).float()

    def mention_scores(self, hidden: torch.Tensor, words: Words) -> torch.Tensor:
        is_candidate = candidate_mask(words, self.max_width)
        starts, widths = is_candidate.nonzero(as_tuple=True)
        hidden, logits = self._inputs(hidden)

        def scores(hidden, logits, starts, ends):
            g = self._representations(hidden, logits, words, starts, ends)
            return self.mention(g).squeeze(1).float()

        parts = [
            self._in_parts(scores, hidden, logits, s, s + w)
            for s, w in zip(starts.split(_SPANS), widths.split(_SPANS), strict=True)
        ]
        prior = self.width_score(self.width_prior.weight).squeeze(1).float()
        band = prior.expand(is_candidate.shape)
        return band + torch.zeros_like(band).index_put((starts, widths), torch.cat(parts))

    def _in_parts(self, function, *arguments) -> torch.Tensor:
        if torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)

    def _pairs(self, g: torch.Tensor, mentions: Mentions):
        """(scores, antecedents, is_there): each (mentions, K); the scores are differentiable."""
        queries = self.dropout(apply_linear(self.coarse, g))
        prior = self.distance_score(self.coarse_distance.weight).squeeze(1).float()
        distances = prior.expand(len(g), NUM_DISTANCES)
        k = min(self.max_antecedents, max(1, len(g)))
        coarse = (queries, g, mentions.scores, distances)
        best, antecedents = antecedent_top_k(*coarse, mentions.cu_mentions, k)
        is_there = antecedents >= 0
        antecedents = antecedents.clamp(min=0)
        own, others = apply_linear(self.query, g), apply_linear(self.key, g)

        def scores(g, queries, own, others, scores_of, rows, antecedents):
            keys = g[antecedents]
            buckets = distance_buckets(rows[:, None] - antecedents)
            s = (queries[rows, None] * keys).sum(2).float() + prior[buckets]
            s = s + scores_of[rows, None] + scores_of[antecedents]
            pair = apply_linear(self.product, (g[rows, None] * keys).flatten(0, 1))
            pair = pair.unflatten(0, antecedents.shape) + own[rows, None] + others[antecedents]
            pair = torch.relu(pair + self.fine_distance(buckets).to(pair.dtype))
            return s + self.fine_score(self.dropout(pair)).squeeze(2).float()

        step = max(1, _PAIRS // k)
        numbers = torch.arange(len(g), device=g.device)
        fixed = (g, queries, own, others, mentions.scores)
        parts = [
            self._in_parts(scores, *fixed, rows, near)
            for rows, near in zip(numbers.split(step), antecedents.split(step), strict=True)
        ]
        made = torch.cat(parts) if parts else best
        return made.masked_fill(~is_there, -torch.inf), antecedents, is_there

    def _kept(self, hidden, words: Words, mentions: Mentions):
        hidden, logits = self._inputs(hidden)
        g = self._representations(hidden, logits, words, mentions.starts, mentions.ends)
        for _ in range(self.depth - 1):
            assert self.gate is not None
            scores, antecedents, _ = self._pairs(g, mentions)
            p = torch.cat([scores.new_zeros((len(g), 1)), scores], 1).softmax(1).to(g.dtype)
            expected = p[:, :1] * g + (p[:, 1:, None] * g[antecedents]).sum(1)
            f = torch.sigmoid(apply_linear(self.gate, torch.cat([g, expected], 1)))
            g = f * g + (1 - f) * expected
        return self._pairs(g, mentions)

    def loss(
        self, hidden: torch.Tensor, words: Words, mentions: Mentions, clusters: torch.Tensor
    ) -> torch.Tensor:
        """See `CoreferenceHead`; over the K antecedents that the pruning keeps."""
        scores, antecedents, is_there = self._kept(hidden, words, mentions)
        is_gold = (clusters[antecedents] == clusters[:, None]) & (clusters[:, None] >= 0) & is_there
        none = scores.new_zeros((len(scores), 1))
        gold_none = none.masked_fill(is_gold.any(1, keepdim=True), -torch.inf)
        gold = torch.cat([gold_none, scores.masked_fill(~is_gold, -torch.inf)], 1)
        return torch.cat([none, scores], 1).logsumexp(1) - gold.logsumexp(1)

    def best(self, hidden: torch.Tensor, words: Words, mentions: Mentions) -> Antecedents:
        scores, antecedents, _ = self._kept(hidden, words, mentions)
        if not len(scores):
            return Antecedents(antecedents.new_empty((0,)), scores.new_empty((0,)))
        top, place = scores.max(1)
        chosen = antecedents.gather(1, place[:, None]).squeeze(1)
        return Antecedents(chosen.masked_fill(top <= 0, -1), top)
