"""embedding_layer_norm of word embeddings for 28,996 words, beside torch.nn.functional.

The forward reads a word's row for each token and writes y; the tables of positions and types stay
in cache. The backward reads dy and the rows again and writes the word embeddings' gradient. This
is dense, with zeros for most words, and makes up most of the bytes.
"""

import torch
from op_case import COMPILED, DTYPES, OURS, PYTORCH, OpCase, Provider, compiled, leaf
from torch.nn import functional as F

from spanbert_fast.ops.dropout import Dropout
from spanbert_fast.ops.embedding_layer_norm import embedding_layer_norm

VARIANTS = ("bf16", "fp32")
SIZES = {"tiny": (32, 96, 50), "cpu": (4096, 768, 28_996), "cuda": (32_768, 1024, 28_996)}
POSITIONS, TYPES, DROPOUT = 512, 2, 0.1


def case(variant: str, device: str, size: str) -> OpCase:
    """The three tables, and the norm's parameters; dropout 0.1."""
    tokens, hidden, vocab = SIZES[size]
    dtype, seed = DTYPES[variant], torch.tensor(2019, device=device)
    # word frequencies fall as in text, by rank
    ranks = torch.arange(1, vocab + 1, device=device)
    words = torch.multinomial(1 / ranks, tokens, replacement=True)
    places = torch.arange(tokens, device=device) % POSITIONS
    ids = (words, places, torch.zeros_like(words))
    shapes = ((vocab, hidden), (POSITIONS, hidden), (TYPES, hidden), (hidden,), (hidden,))
    leaves = [leaf(*shape, dtype=dtype, device=device) for shape in shapes]
    dy = leaf(tokens, hidden, dtype=dtype, device=device).detach()

    def ours(p: float):
        dropout = Dropout(p, seed) if p else None
        return lambda *tables: embedding_layer_norm(*ids, *tables, dropout=dropout)

    def eager(p: float):
        def function(word, position, token_type, weight, bias):
            rows = F.embedding(ids[0], word) + F.embedding(ids[1], position)
            z = rows + F.embedding(ids[2], token_type)
            return F.dropout(F.layer_norm(z, (hidden,), weight, bias, 1e-12), p)

        return function

    return OpCase(
        op="embedding_layer_norm",
        variant=variant,
        shape={"tokens": tokens, "hidden_size": hidden, "vocab_size": vocab},
        dtype=variant,
        leaves=leaves,
        dy=dy,
        providers={
            OURS: Provider(ours(DROPOUT), ours(0.0)),
            PYTORCH: Provider(eager(DROPOUT), eager(0.0)),
            COMPILED: compiled(eager(DROPOUT), eager(0.0)),
        },
        bytes_moved=(2 * dy.nbytes, 4 * dy.nbytes + leaves[0].nbytes),
    )
