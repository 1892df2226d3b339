"""Counter-based dropout: which elements a seed drops (contract C4).

Each element has one random byte. It is dropped if and only if `byte < threshold`, where
`threshold = round(256 p)`; kept elements are scaled by `256 / (256 - threshold)`. This is unbiased,
at a rate within 1/512 of p. The bytes come from Philox4x32 with 7 rounds, keyed by the 64-bit seed.
All places of a model share the seed; a `site` number gives each place its own bytes.
"""

from typing import NamedTuple

import torch

from spanbert_fast.reference.philox import MASK32, philox4x32, split_key

ROUNDS = 7
_HIDDEN_STREAM = 0xFFFF  # takes the place of attention's head number, which is always smaller


def dropout_threshold(dropout_p: float) -> int:
    """The byte threshold t of a dropout probability; 0 only for p = 0.

    Raises:
        ValueError: p is negative, or so near 0 or 1 that a byte cannot express it.
    """
    threshold = int(256 * dropout_p + 0.5)  # rounds a half up
    if dropout_p != 0 and not 1 <= threshold <= 255:
        raise ValueError(f"dropout_p must be 0 or in [1/512, 511/512), got {dropout_p}")
    return threshold


def dropout_scale(threshold: int) -> float:
    """The factor of kept elements."""
    return 256 / (256 - threshold)


class Dropout(NamedTuple):
    """Which elements of one place in a model are dropped (contract C4).

    Attributes:
        p: probability of dropping, to 1/256.
        seed: int64 0-dim tensor on the device of the elements.
        site: the number of the place, which gives it its own mask. `DropoutPlan` numbers the places
            of a model.
        rows: int64 (tokens,), if only some rows of hidden states are computed: their numbers in the
            whole matrix. So a row's mask does not depend on which other rows are computed.
    """

    p: float
    seed: torch.Tensor
    site: int = 0
    rows: torch.Tensor | None = None

    @property
    def threshold(self) -> int:
        """The byte below which an element is dropped."""
        return dropout_threshold(self.p)


class DropoutPlan(NamedTuple):
    """The dropout of every place in a model, from one seed.

        >>> plan = DropoutPlan(torch.tensor(1))
        >>> plan.attention(layer=3, p=0.1).site, plan.after_feed_forward(layer=3, p=0.1).site
        (3, 7)

    Attention of layer i is site i. Hidden states after attention and after the feed-forward of
    layer i are the hidden sites 2i and 2i + 1, the embeddings hidden site 2 * num_layers.

    Attributes:
        seed: int64 0-dim tensor.
    """

    seed: torch.Tensor

    @classmethod
    def draw(cls, device: torch.device) -> "DropoutPlan":
        """Draw the seed from torch's generator of `device`. torch.manual_seed controls it, and a
        restored generator state gives the same masks again."""
        return cls(torch.randint(2**63 - 1, (), device=device))

    def attention(self, layer: int, p: float) -> Dropout:
        """Dropout of attention probabilities."""
        return Dropout(p, self.seed, layer)

    def after_attention(self, layer: int, p: float, rows: torch.Tensor | None = None) -> Dropout:
        """Dropout of the output of attention's projection."""
        return Dropout(p, self.seed, 2 * layer, rows)

    def after_feed_forward(self, layer: int, p: float, rows: torch.Tensor | None = None) -> Dropout:
        """Dropout of the output of the feed-forward network."""
        return Dropout(p, self.seed, 2 * layer + 1, rows)

    def embeddings(self, num_layers: int, p: float) -> Dropout:
        """Dropout of the sum of the embeddings."""
        return Dropout(p, self.seed, 2 * num_layers)


def dropped(x: torch.Tensor, dropout: Dropout | None) -> torch.Tensor:
    """Apply dropout to a (tokens, hidden_size) matrix, or to the rows that `dropout.rows` lists."""
    if dropout is None or dropout.p == 0:
        return x
    tokens, hidden_size = x.shape
    keep = hidden_keep_mask(dropout, tokens, hidden_size, x.device)
    return x * keep * dropout_scale(dropout.threshold)


def hidden_keep_mask(
    dropout: Dropout, tokens: int, hidden_size: int, device: torch.device
) -> torch.Tensor:
    """Which elements of a (tokens, hidden_size) matrix are kept.

    Element `e = row * hidden_size + column` owns byte `e % 4` of word `(e % 256) // 64` of Philox
    call `16 * (e // 256) + (e % 64) // 4`. These are four rows of 64 bytes, each 16 calls wide, so
    16 lanes compute 256 consecutive elements with no shuffle. Counter: (call low, call high,
    site << 16 | 0xFFFF, 0). `dropout.rows` gives the number of each row; the default is its place.

    Returns:
        bool (tokens, hidden_size).
    """
    rows, threshold = dropout.rows, dropout.threshold
    if rows is None:
        rows = torch.arange(tokens, device=device)
    key = split_key(dropout.seed)
    stream = torch.full((), dropout.site << 16 | _HIDDEN_STREAM, device=rows.device)
    zero = torch.zeros_like(stream)
    if hidden_size % 256 == 0:  # whole calls per row: no word is made twice
        calls = torch.arange(hidden_size // 16, device=rows.device)
        calls = rows[:, None] * (hidden_size // 16) + calls
        words = torch.stack(philox4x32((calls & MASK32, calls >> 32, stream, zero), key, ROUNDS))
        words = words.view(4, len(rows), hidden_size // 256, 16, 1).permute(1, 2, 0, 3, 4)
        shifts = torch.arange(0, 32, 8, device=rows.device)
        return ((words >> shifts & 0xFF) >= threshold).reshape(len(rows), hidden_size)
    element = rows[:, None] * hidden_size + torch.arange(hidden_size, device=rows.device)
    call = 16 * (element // 256) + element % 64 // 4
    words = torch.stack(philox4x32((call & MASK32, call >> 32, stream, zero), key, ROUNDS))
    word = words.gather(0, (element % 256 // 64)[None]).squeeze(0)
    return (word >> 8 * (element % 4) & 0xFF) >= threshold


def attention_keep_mask(
    dropout: Dropout, sequences: torch.Tensor, num_heads: int, seqlen: int
) -> torch.Tensor:
    """Which attention probabilities are kept: a function of (seed, site, sequence, head, i, j).

    The byte of query i and key j lies at one bit position of eight words, so 32 elements are
    compared at once. Words come in two calls with the counter
    (8 (i // 16) + i % 8, 2 (4 (j // 64) + j % 8 // 2) + call, site << 16 | head, sequence); byte
    bits 7 6 5 0 are words 0 1 2 3 of call 0, bits 4 3 2 1 words 0 1 2 3 of call 1. The element's
    bit is `8 (2 ((i // 8) % 2) + j % 2) + 7 - (j % 64) // 8`.

    Args:
        sequences: int64 (batch,), each sequence's number in the batch.

    Returns:
        bool (batch, num_heads, seqlen, seqlen).
    """
    device = sequences.device
    query_tiles, key_tiles = -(-seqlen // 16), -(-seqlen // 64)
    # (batch, heads, query groups, key groups): one word for each 2 queries x 16 keys
    c0 = torch.arange(8 * query_tiles, device=device)[None, None, :, None]
    c1 = 2 * torch.arange(4 * key_tiles, device=device)[None, None, None, :]
    c2 = (dropout.site << 16 | torch.arange(num_heads, device=device))[None, :, None, None]
    c3 = sequences[:, None, None, None]
    key, threshold = split_key(dropout.seed), dropout.threshold
    w7, w6, w5, w0 = philox4x32((c0, c1, c2, c3), key, ROUNDS)
    w4, w3, w2, w1 = philox4x32((c0, c1 + 1, c2, c3), key, ROUNDS)
    keep = torch.full_like(w0, MASK32)
    for bit, word in enumerate((w0, w1, w2, w3, w4, w5, w6, w7)):
        keep = word & keep if threshold >> bit & 1 else word | keep

    batch = len(sequences)
    keep = keep.view(batch, num_heads, query_tiles, 1, 8, key_tiles, 1, 4, 1)
    query_half = torch.arange(2, device=device).view(2, 1, 1, 1, 1, 1)
    key_octet = torch.arange(8, device=device).view(1, 1, 1, 8, 1, 1)
    key_parity = torch.arange(2, device=device).view(1, 1, 1, 1, 1, 2)
    kept = keep >> (8 * (2 * query_half + key_parity) + 7 - key_octet) & 1
    kept = kept.reshape(batch, num_heads, 16 * query_tiles, 64 * key_tiles)
    return kept[:, :, :seqlen, :seqlen].bool()
