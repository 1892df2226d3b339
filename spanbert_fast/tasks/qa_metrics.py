"""Exact match and F1 of answers as SQuAD's evaluation scripts count them (Rajpurkar et al. 2016,
2018), and the threshold above which a question is left unanswered."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """The text in lower case, without ASCII punctuation and English articles, with single
    blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """1.0 where both are the same text once normalised, else 0.0."""
    return float(normalized(prediction) == normalized(gold))


def token_f1(prediction: str, gold: str) -> float:
    """F1 of the words that both have; 0.0 if one of them has no words."""
    predicted, wanted = normalized(prediction).split(), normalized(gold).split()
    common = (Counter(predicted) & Counter(wanted)).total()
    return 2 * common / (len(predicted) + len(wanted)) if common else 0.0


def answer_scores(
    prediction: str, answers: Sequence[str], *, version_2: bool = False
) -> tuple[float, float]:
    """(exact match, F1) of a prediction, each against the gold answer that gives the most.

    Args:
        answers: the gold answers; empty for an unanswerable question, whose only answer is "".
        version_2: as in the script of SQuAD 2.0, a gold answer of articles and punctuation alone
            counts only if there is no other, and then as "no answer".
    """
    if version_2:
        answers = [answer for answer in answers if normalized(answer)]
    if not answers:
        right = float(not normalized(prediction))
        return right, right
    return (
        max(exact_match(prediction, answer) for answer in answers),
        max(token_f1(prediction, answer) for answer in answers),
    )


def best_threshold(
    scores: Sequence[float], null_odds: Sequence[float], answerable: Sequence[bool]
) -> tuple[float, float]:
    """The threshold on null_odds, above which questions stay unanswered, with the best score.

    Args:
        scores: in [0, 1], what each question's answer scores if it is given.
        null_odds: high if the question probably has no answer.
        answerable: whether the question has an answer; leaving it unanswered then scores 0, else 1.

    Returns:
        (the mean score with the threshold, the threshold). Of several best thresholds it is the
        lowest, and an element of null_odds as in SQuAD's script. Two cases differ from the script.
        If it is best to answer nothing, the script returns 0.0, which is right only for
        probabilities; here the threshold is below all odds. And questions with equal odds are
        never separated, as they are in the script.
    """
    total = best = float(len(answerable) - sum(answerable))
    ordered = sorted(zip(null_odds, scores, answerable, strict=True), key=lambda item: item[0])
    threshold = ordered[0][0] - 1.0
    for i, (odds, score, has_answer) in enumerate(ordered):
        total += score if has_answer else score - 1.0
        tied = i + 1 < len(ordered) and ordered[i + 1][0] == odds
        if total > best and not tied:
            best, threshold = total, odds
    return best / len(ordered), threshold


def squad_figures(
    predictions: Sequence[str],
    null_odds: Sequence[float],
    answers: Sequence[Sequence[str]],
    threshold: float | None = None,
    *,
    choose: bool = False,
) -> dict[str, float]:
    """The figures of SQuAD's scripts, in percent; those of version 2.0 if a question has no answer.

    Args:
        predictions: each question's best text.
        null_odds: see `best_threshold`.
        answers: each question's gold answers.
        threshold: questions with higher odds are left unanswered; None answers all.
        choose: take the threshold that gives the best F1 on these very questions.

    Returns:
        exact, f1 and total. If there are unanswerable questions, also the same for those with
        (HasAns_) and without (NoAns_) an answer, and best_exact, best_f1 and their thresholds.
    """
    answerable = [bool(golds) for golds in answers]
    version_2 = not all(answerable)
    pairs = [
        answer_scores(prediction, golds, version_2=version_2)
        for prediction, golds in zip(predictions, answers, strict=True)
    ]
    if not version_2:
        return _means(pairs)
    exact, f1 = zip(*pairs, strict=True)
    best_exact, exact_threshold = best_threshold(exact, null_odds, answerable)
    best_f1, f1_threshold = best_threshold(f1, null_odds, answerable)
    if choose:
        threshold = f1_threshold
    kept = [
        pair if threshold is None or odds <= threshold else (float(not has_answer),) * 2
        for pair, odds, has_answer in zip(pairs, null_odds, answerable, strict=True)
    ]
    figures = _means(kept)
    for prefix, wanted in (("HasAns", True), ("NoAns", False)):
        part = [pair for pair, has in zip(kept, answerable, strict=True) if has is wanted]
        if part:
            figures |= {f"{prefix}_{name}": value for name, value in _means(part).items()}
    return figures | {
        "best_exact": 100.0 * best_exact,
        "best_exact_thresh": exact_threshold,
        "best_f1": 100.0 * best_f1,
        "best_f1_thresh": f1_threshold,
    }


def _means(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    exact, f1 = zip(*pairs, strict=True)
    total = len(pairs)
    return {"exact": 100.0 * sum(exact) / total, "f1": 100.0 * sum(f1) / total, "total": total}
