"""Numbers and values that every part of the package agrees on."""

import dataclasses

IGNORED_TARGET = -100  # no loss is taken of it, as throughout transformers
WORDS = ("tokenizer", "tokens", "characters")  # what spans are made of; see `WordStarts.of`
# Ġ and ▁, as which tokens of byte-level BPE and of SentencePiece spell a space
SPACES = ("\u0120", "\u2581")


@dataclasses.dataclass(frozen=True)
class FilledSpan:
    """One run of masks, filled.

    Attributes:
        text: the filling as text; of WordPiece with a leading "##" where it continues the word
            before it.
        token_ids, tokens: one entry per mask.
        log_probabilities: of each token, natural logarithm.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    log_probabilities: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Filling:
    """One way to fill all masks of a text.

    Attributes:
        text: the whole text, filled; outside the masks it is as it came.
        score: log-probability of the filling, the sum over its tokens.
        spans: the runs of masks, from left to right.
    """

    text: str
    score: float
    spans: tuple[FilledSpan, ...]
