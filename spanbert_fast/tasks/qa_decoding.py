"""Decodes the start and end logits of a text's windows into its best answers."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Answer:
    """One possible answer.

    Attributes:
        text: as it stands in the context; "" for no answer.
        start, end: characters of the context, end exclusive.
        start_logit, end_logit: of the model.
    """

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        """The sum of both logits."""
        return self.start_logit + self.end_logit


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The model's answer to one question.

    Attributes:
        text: the best answer that is not empty; "" only where the context has no word piece.
        score: its start logit plus its end logit.
        null_odds: the score of "no answer" minus `score`; high if there is probably no answer.
        null: the empty answer, with the logits of the window where they are lowest.
        nbest: the best answers of different texts, best first; `null` is not among them.
    """

    text: str
    score: float
    null_odds: float
    null: Answer
    nbest: list[Answer]

    def rows(self, with_null: bool) -> list[dict[str, str | float]]:
        """The n-best list, with `null` in its place or without it, as SQuAD's files have it: text,
        probability (the softmax of the scores), start_logit and end_logit."""
        answers = self.nbest + [self.null] * (with_null or not self.nbest)
        answers.sort(key=lambda answer: -answer.score)
        weights = [math.exp(answer.score - answers[0].score) for answer in answers]
        return [
            {
                "text": answer.text,
                "probability": weight / sum(weights),
                "start_logit": answer.start_logit,
                "end_logit": answer.end_logit,
            }
            for answer, weight in zip(answers, weights, strict=True)
        ]


def best_answers(
    context: str,
    offsets: Sequence[np.ndarray],
    firsts: Sequence[int],
    context_starts: Sequence[int],
    logits: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    n_best_size: int,
    max_answer_length: int,
) -> Prediction:
    """The answers with the highest start plus end logits, over all windows of a context.

    An answer in several windows takes its score from the window in which its side with less context
    has the most, or from the earlier of two equal windows. (BERT's code for SQuAD considers only
    the answer's first piece, and so may lose an answer that is long for the window.) All pairs of
    start and end are compared, not only the best starts with the best ends.

    Args:
        offsets: for each window, int (pieces, 2): start and end characters of its context pieces.
        firsts: for each window, the index of its first piece in the context; ascending.
        context_starts: for each window, the place of that piece in the model's input.
        logits: for each window, (start_logits, end_logits), each (length,). Place 0 is [CLS], whose
            two logits are the score of "no answer".
        n_best_size: number of answers to keep.
        max_answer_length: in word pieces.
    """
    candidates = []
    lasts = [first + len(window) - 1 for first, window in zip(firsts, offsets, strict=True)]
    for window, (start_logits, end_logits) in enumerate(logits):
        at, length = context_starts[window], len(offsets[window])
        scores = _span_scores(start_logits[at:], end_logits[at:], length, max_answer_length)
        scores[~_own_spans(firsts, lasts, window, max_answer_length)] = -np.inf
        # several spans may have the same text, so keep more than are needed
        for flat in _largest(scores.ravel(), 2 * n_best_size):
            start, more = divmod(flat, max_answer_length)
            end = start + more
            left, right = int(offsets[window][start, 0]), int(offsets[window][end, 1])
            pair = float(start_logits[at + start]), float(end_logits[at + end])
            candidates.append(Answer(context[left:right], left, right, *pair))
    null = min(
        (Answer("", 0, 0, float(start[0]), float(end[0])) for start, end in logits),
        key=lambda answer: answer.score,
    )
    nbest: dict[str, Answer] = {}
    for answer in sorted(candidates, key=_order):
        if answer.text not in nbest:
            nbest[answer.text] = answer
        if len(nbest) == n_best_size:
            break
    best = next(iter(nbest.values()), null)
    return Prediction(best.text, best.score, null.score - best.score, null, list(nbest.values()))


def _order(answer: Answer) -> tuple[float, int, int]:
    return -answer.score, answer.start, answer.end


def _own_spans(
    firsts: Sequence[int], lasts: Sequence[int], window: int, longest: int
) -> np.ndarray:
    """bool (length, longest): whether the span of piece i and j more pieces lies in the window, and
    in no other window that gives it more context.

    From window to window, the context before a span shrinks and the context after it grows. So the
    smaller of the two has one peak, and a comparison with both neighbours finds it.
    """
    starts = np.arange(firsts[window], lasts[window] + 1)[:, None]
    ends = starts + np.arange(longest)

    def poorer_side(other: int) -> np.ndarray:
        return np.minimum(starts - firsts[other], lasts[other] - ends)

    here = poorer_side(window)
    own = here >= 0
    if window > 0:
        own &= here > poorer_side(window - 1)
    if window + 1 < len(firsts):
        own &= here >= poorer_side(window + 1)
    return own


def _span_scores(
    start_logits: np.ndarray, end_logits: np.ndarray, length: int, longest: int
) -> np.ndarray:
    """float64 (length, longest): the score of the span of piece i and j more pieces."""
    ends = np.full(length + longest, -np.inf)
    ends[:length] = end_logits[:length]
    starts = start_logits[:length, None].astype(np.float64)
    return starts + np.lib.stride_tricks.sliding_window_view(ends, longest)[:length]


def _largest(scores: np.ndarray, count: int) -> list[int]:
    """Indices of the `count` largest finite scores, in any order."""
    count = min(count, int(np.isfinite(scores).sum()))
    return np.argpartition(-scores, count - 1)[:count].tolist() if count else []
