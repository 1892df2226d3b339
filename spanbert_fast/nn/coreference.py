"""Coreference heads behind one interface: scores of mentions and of their antecedents.

They work on the words of documents whose encoded pieces lie in packed rows, segment after segment
(Joshi et al. 2019, arXiv 1908.09091: independent segments). Every candidate span gets a mention
score. The best spans are kept (Lee et al. 2017, arXiv 1707.07045, section 5), and each of them
chooses an antecedent before it, or "none".
"""

import abc
from typing import NamedTuple

import torch
from torch import nn

from spanbert_fast.nn.linear import apply_linear, linear_gelu, reset_linear
from spanbert_fast.ops._antecedents import NUM_DISTANCES
from spanbert_fast.ops.antecedent_loss import antecedent_loss
from spanbert_fast.ops.antecedent_top_k import antecedent_top_k
from spanbert_fast.ops.span_representation import span_representation


class Words(NamedTuple):
    """The words of some documents, one document after another.

    Attributes:
        firsts, lasts: int64 (words,), the packed rows of each word's first and last piece.
        sentences: int64 (words,), rising sentence numbers; a mention lies in one sentence. A
            sentence that two segments share has two numbers.
        cu_words: int32 (documents + 1,), prefix sums of the documents' words.
    """

    firsts: torch.Tensor
    lasts: torch.Tensor
    sentences: torch.Tensor
    cu_words: torch.Tensor


class Mentions(NamedTuple):
    """The spans of words that are kept, in the order of the text.

    Attributes:
        starts, ends: int64 (mentions,), words, both inclusive.
        scores: (mentions,) in fp32, the mention scores.
        cu_mentions: int32 (documents + 1,).
    """

    starts: torch.Tensor
    ends: torch.Tensor
    scores: torch.Tensor
    cu_mentions: torch.Tensor


class Antecedents(NamedTuple):
    """The antecedent of each mention.

    Attributes:
        antecedents: int64 (mentions,), numbers of mentions; -1 for none.
        scores: (mentions,), the best candidate's score; -inf where there is no candidate. A mention
            has an antecedent if its score is above 0, the score of "none".
    """

    antecedents: torch.Tensor
    scores: torch.Tensor


def candidate_mask(words: Words, max_width: int) -> torch.Tensor:
    """bool (words, max_width): whether the span of w + 1 words from word i is a candidate."""
    count = words.sentences.shape[0]
    place = torch.arange(count, device=words.sentences.device)
    last = torch.searchsorted(words.sentences, words.sentences, right=True) - 1
    return place[:, None] + torch.arange(max_width, device=place.device) <= last[:, None]


def keep_best(
    band: torch.Tensor, is_candidate: torch.Tensor, words: Words, ratio: float
) -> Mentions:
    """The best ceil(ratio * words) candidates of each document (at most all), in text order.

    Args:
        band: (words, max_width), the mention score of each span.
        is_candidate: (words, max_width); see `candidate_mask`.
    """
    width = band.shape[1]
    scores = band.detach().masked_fill(~is_candidate, -torch.inf)
    kept, counts = [], [0]
    bounds = words.cu_words.tolist()
    for begin, end in zip(bounds, bounds[1:], strict=False):
        wanted = min(-int(-ratio * (end - begin) // 1), int(is_candidate[begin:end].sum()))
        best = scores[begin:end].flatten().topk(wanted).indices
        kept.append(best.sort().values + begin * width)  # by start, then by width
        counts.append(counts[-1] + wanted)
    chosen = torch.cat(kept) if kept else words.firsts[:0]
    starts = chosen // width
    return Mentions(
        starts,
        starts + chosen % width,
        band.flatten()[chosen],
        torch.tensor(counts, dtype=torch.int32, device=band.device),
    )


def banded_products(queries: torch.Tensor, keys: torch.Tensor, width: int) -> torch.Tensor:
    """(words, width): queries[i] . keys[i + w], 0 beyond the end; memory linear in the words.

    Each block of 64 queries is multiplied with the 64 + width - 1 keys within its reach.
    """
    count, features = queries.shape
    block = 64
    blocks = -(-count // block)
    reach = block + width - 1
    queries = nn.functional.pad(queries, (0, 0, 0, blocks * block - count))
    keys = nn.functional.pad(keys, (0, 0, 0, blocks * block + width - 1 - count))
    if blocks == 0:
        return queries.new_zeros((0, width))
    windows = keys.unfold(0, reach, block)  # (blocks, features, reach)
    products = queries.view(blocks, block, features) @ windows
    place = torch.arange(block, device=keys.device)[:, None] + torch.arange(
        width, device=keys.device
    )
    band = products.gather(2, place.expand(blocks, block, width))
    return band.reshape(blocks * block, width)[:count]


class CoreferenceHead(nn.Module, abc.ABC):
    """The interface of both heads.

    Args:
        hidden_size: features of the encoder.
        max_width: words of the longest candidate.
        dropout: probability, for the encoder's output and inside the head.
    """

    def __init__(self, hidden_size: int, *, max_width: int, dropout: float):
        super().__init__()
        self.hidden_size, self.max_width = hidden_size, max_width
        self.dropout = nn.Dropout(dropout)

    @abc.abstractmethod
    def mention_scores(self, hidden: torch.Tensor, words: Words) -> torch.Tensor:
        """(words, max_width) in fp32, of every span; any number for spans that are no candidates.

        Args:
            hidden: (rows, hidden_size), the encoded pieces.
        """

    @abc.abstractmethod
    def loss(
        self, hidden: torch.Tensor, words: Words, mentions: Mentions, clusters: torch.Tensor
    ) -> torch.Tensor:
        """(mentions,) in fp32: -log of the probability of the gold antecedents.

        Args:
            clusters: int64 (mentions,), negative for a mention that is in no gold cluster.
        """

    @abc.abstractmethod
    def best(self, hidden: torch.Tensor, words: Words, mentions: Mentions) -> Antecedents:
        """The most probable antecedent of each mention."""


class StartToEndHead(CoreferenceHead):
    """Scores mentions and antecedents from boundary tokens, without span representations.

    Kirstain et al. 2021 (arXiv 2101.00434). With four projections of each token x,
    m^s = GeLU(W_m^s x) and so on, a span q has the mention score (equation 4)

        f_m(q) = v_s . m^s_start + v_e . m^e_end + m^s_start . B_m m^e_end

    and a pair has the antecedent score f_a(c, q) (equation 5): four bilinear forms between the
    starts and the ends of both, which are one form between the [a^s_start; a^e_end] of both. A pair
    scores f_m(c) + f_m(q) + f_a(c, q), and "none" scores 0 (equations 1 and 2).

    Two scores of span-based models are added: one of a span's width, and one of the distance
    between mentions, projected from the query (the prior in the released code of Lee et al. 2018),
    since independent segments do not tell how far apart two mentions are.

    Args:
        feature_size: size of each projection.
    """

    def __init__(self, hidden_size: int, feature_size: int, *, max_width: int, dropout: float):
        super().__init__(hidden_size, max_width=max_width, dropout=dropout)
        self.mention_start = nn.Linear(hidden_size, feature_size)
        self.mention_end = nn.Linear(hidden_size, feature_size)
        self.start_score = nn.Linear(feature_size, 1)
        self.end_score = nn.Linear(feature_size, 1, bias=False)
        self.start_end = nn.Linear(feature_size, feature_size, bias=False)
        self.width_scores = nn.Parameter(torch.zeros(max_width))
        self.antecedent_start = nn.Linear(hidden_size, feature_size)
        self.antecedent_end = nn.Linear(hidden_size, feature_size)
        self.antecedent = nn.Linear(2 * feature_size, 2 * feature_size)
        self.distance = nn.Linear(2 * feature_size, NUM_DISTANCES)

    def _projected(self, layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        return self.dropout(linear_gelu(layer, rows))

    def mention_scores(self, hidden: torch.Tensor, words: Words) -> torch.Tensor:
        starts = self._projected(self.mention_start, self.dropout(hidden[words.firsts]))
        ends = self._projected(self.mention_end, self.dropout(hidden[words.lasts]))
        # adding v_e to the queries adds v_e . m^e_end to every product
        queries = apply_linear(self.start_end, starts) + self.end_score.weight.to(starts.dtype)
        band = banded_products(queries, ends, self.max_width).float()
        return band + apply_linear(self.start_score, starts).float() + self.width_scores.float()

    def _pairs(
        self, hidden: torch.Tensor, words: Words, mentions: Mentions
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first arguments of the antecedent ops."""
        starts = self._projected(self.antecedent_start, self.dropout(hidden[words.firsts]))
        ends = self._projected(self.antecedent_end, self.dropout(hidden[words.lasts]))
        keys = span_representation(starts, ends, mentions.starts, mentions.ends)
        queries = apply_linear(self.antecedent, keys)
        distances = apply_linear(self.distance, keys)
        return queries, keys, mentions.scores, distances.float()

    def loss(
        self, hidden: torch.Tensor, words: Words, mentions: Mentions, clusters: torch.Tensor
    ) -> torch.Tensor:
        pairs = self._pairs(hidden, words, mentions)
        return antecedent_loss(*pairs, clusters, mentions.cu_mentions)

    def best(self, hidden: torch.Tensor, words: Words, mentions: Mentions) -> Antecedents:
        pairs = self._pairs(hidden, words, mentions)
        scores, antecedents = antecedent_top_k(*pairs, mentions.cu_mentions, 1)
        scores, antecedents = scores[:, 0], antecedents[:, 0]
        return Antecedents(antecedents.masked_fill(scores <= 0, -1), scores)


def feed_forward(in_size: int, hidden_size: int, dropout: float) -> nn.Sequential:
    """A hidden layer with ReLU and one output, as in Lee et al. 2017."""
    inner, outer = nn.Linear(in_size, hidden_size), nn.Linear(hidden_size, 1)
    for layer in (inner, outer):
        reset_linear(layer)
    return nn.Sequential(inner, nn.ReLU(), nn.Dropout(dropout), outer)
