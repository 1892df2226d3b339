"""Maps word pieces to characters of the context, and answers to word pieces."""

import unicodedata

import numpy as np


def take_accents(offsets: np.ndarray, context: str) -> None:
    """Extend each piece, in place, over the combining accents that follow it. A tokenizer that
    strips accents leaves them out of every piece, and an answer would lose its last accent."""
    if context.isascii() or unicodedata.is_normalized("NFC", context):
        return
    for i, end in enumerate(offsets[:, 1].tolist()):
        while end < len(context) and unicodedata.combining(context[end]):
            end += 1
        offsets[i, 1] = end


def answer_pieces(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """The first and the last piece of context[start:end]; None where it has no piece."""
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first, last) if first <= last else None
