"""Splits plain text into sentences and words by rules.

Words are roughly those of the Penn Treebank: letters and digits with inner points, hyphens and
apostrophes; "n't", "'s", "'re" and the like are words of their own; so is every other sign.

A sentence ends at a run of . ! ? with the quotes and brackets that close after it, if a capital
letter, a digit or an opening sign follows. A single point after a known title or abbreviation, or
after one capital letter (an initial), ends none. A blank line always ends a sentence.
"""

import re

_CLITIC = r"(?:['’](?:s|S|m|M|d|D|ll|LL|re|RE|ve|VE)\b)"
_WORD = re.compile(
    rf"""
      [^\W_]+(?=n['’][tT]\b) | n['’][tT]\b              # do | n't
    | {_CLITIC}                                         # 's
    | (?:[^\W_]\.){{2,}}                                # U.S.
    | \d+(?:[.,:]\d+)+                                  # 1,000.5
    | [^\W_]+(?:(?:[-&]|['’](?!(?:s|S|m|M|d|D|ll|LL|re|RE|ve|VE)\b))[^\W_]+)*
    | \.{{2,}} | -{{2,}} | `` | '' | \S
    """,
    re.VERBOSE,
)
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr st prof rev gen col capt lieut lt sgt maj hon esq jr sr messrs mme mlle mt "
    "no nos vol vols fig figs eq eqs cf vs etc al inc ltd co corp dept est approx "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
_ENDS = frozenset(".!?…")
_CLOSING = frozenset("\"'”’)]}»''")
_OPENING = frozenset("\"'“‘([{«``")


def words_of(text: str) -> list[str]:
    """The words of a text, in order, without blanks."""
    return [match.group() for match in _WORD.finditer(text)]


def sentences_of(paragraph: str) -> list[list[str]]:
    """The sentences of a paragraph; each has at least one word."""
    words = list(_WORD.finditer(paragraph))
    sentences: list[list[str]] = []
    current: list[str] = []
    for i, match in enumerate(words):
        current.append(match.group())
        if i + 1 < len(words) and _ends_here(paragraph, words, i):
            sentences.append(current)
            current = []
    return [*sentences, current] if current else sentences


def _ends_here(text: str, words: list[re.Match], i: int) -> bool:
    following = words[i + 1]
    if following.start() == words[i].end():  # no blank between them
        return False
    mark = i
    while mark > 0 and words[mark].group() in _CLOSING and words[mark].group() not in _ENDS:
        mark -= 1
    sign = words[mark].group()
    if sign[-1] not in _ENDS or (len(sign) > 1 and sign[0].isalnum()):
        return False
    first = following.group()[0]
    if not (first.isupper() or first.isdigit() or first in _OPENING):
        return False
    if sign != "." or mark == 0 or words[mark - 1].end() != words[mark].start():
        return True
    before = words[mark - 1].group()
    is_initial = len(before) == 1 and before.isupper() and before != "I"
    return not (is_initial or before.lower() in _ABBREVIATIONS)
