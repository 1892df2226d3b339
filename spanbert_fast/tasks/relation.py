"""Classifies the relation between two entities of a sentence, from its [CLS]."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spanbert_fast.data.tokenizer import piece_ids
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks.base import Bad, Defaults, Task
from spanbert_fast.tasks.relation_metrics import micro_scores, semeval_scores
from spanbert_fast.tasks.relation_reading import (
    FORMATS,
    NO_RELATION,
    Mention,
    Pair,
    format_of,
    read_pairs,
)
from spanbert_fast.tasks.writing import whole_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENTITIES = ("mask", "markers")


class Relation(Task[Pair, str]):
    """Relation extraction on TACRED, SemEval-2010 task 8 and data like SciERC.

        >>> from pathlib import Path
        >>> sentence = '1\\t"The <e1>fog</e1> came from the <e2>sea</e2>."'
        >>> _ = Path("dev.txt").write_text(f"{sentence}\\nEntity-Origin(e1,e2)\\n")
        >>> Relation().read("dev.txt").items[0].relation
        'Entity-Origin(e1,e2)'

    With `entities` "mask", one token replaces the subject and one the object. It names their role
    and type: [SUBJ-PERSON], [OBJ-DATE] (Joshi et al. 2020, section 4.1, after Zhang et al. 2017).
    With "markers", the words stay between two tokens: [SUBJ-PERSON] .. [/SUBJ-PERSON]. Data without
    types has [SUBJ] and [OBJ], for e1 and e2. These tokens are added to the tokenizer.

    A sentence that is longer than a window keeps both entities and the word pieces nearest to them.
    The figures are in percent. `f1` is that of TACRED's scorer (micro, without no_relation), and on
    SemEval's data that of SemEval's official scorer.

    Args:
        format: "tacred", "semeval" or "scierc"; None to find it from the training data.
        entities: "mask" or "markers". None chooses masks, but markers on SemEval, whose entities
            have no types and would be hidden by a mask.
        entity_tokens: the tokens that were added to the tokenizer; task.json has them.
        max_seq_length, labels: see `Task`.

    Raises:
        UsageError: an option has another value, or a window has no room for two entities.
    """

    name = "relation"
    head = "sequence-classification"
    metric = "f1"
    # The release's for TACRED; the paper chooses the rate from 5e-6, 1e-5, 2e-5, 3e-5, 5e-5
    # (Joshi et al. 2020, appendix B).
    defaults = Defaults(learning_rate=2e-5, epochs=10, batch_size=32, max_seq_length=128)
    predictions_file = "predictions.txt"

    def __init__(
        self,
        *,
        format: str | None = None,
        entities: str | None = None,
        entity_tokens: Sequence[str] | None = None,
        max_seq_length: int | None = None,
        labels: Sequence[str] | None = None,
    ):
        super().__init__(max_seq_length=max_seq_length, labels=labels)
        for name, value, allowed in (("format", format, FORMATS), ("entities", entities, ENTITIES)):
            if value not in (None, *allowed):
                raise UsageError(f"--{name} must be one of {', '.join(allowed)}, got {value}")
        if self.max_seq_length < 8:  # [CLS], [SEP], and two entities of a piece with their markers
            raise UsageError(f"--max-seq-length must be at least 8, got {self.max_seq_length}")
        self.format, self.entities = format, entities
        self.entity_tokens = None if entity_tokens is None else list(entity_tokens)

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """See `Task`."""
        add = parser.add_argument
        add("--format", choices=FORMATS, help="of the data (default: found out)")
        add("--entities", choices=ENTITIES, help="default: mask; on semeval markers")

    def state(self) -> dict[str, Any]:
        """See `Task`."""
        own = ("format", "entities", "entity_tokens")
        return {**super().state(), **{name: getattr(self, name) for name in own}}

    # Data

    def parse(self, path: Path) -> Iterator[Pair | Bad]:
        """See `Task` and `relation_reading.read_pairs`. A type that the training data did not have
        is bad, since the model has no token for it."""
        if self.format is None:
            self.format = format_of(path)
        if self.entities is None:
            self.entities = "markers" if self.format == "semeval" else "mask"
        for found in read_pairs(path, self.format):
            if not isinstance(found, Bad) and self.entity_tokens is not None:
                unknown = self._tokens(found).difference(self.entity_tokens)
                if unknown:
                    why = f"no entity of the training data gives the token {min(unknown)}"
                    found = Bad(found.place, why)
            yield found

    def _tokens(self, pair: Pair) -> set[str]:
        """The entity tokens of the pair."""
        tokens = {_opening(role, mention) for role, mention in _mentions(pair)}
        if self.entities == "markers":
            tokens |= {_closing(role, mention) for role, mention in _mentions(pair)}
        return tokens

    def learn(self, examples: Sequence[Pair]) -> None:
        """`labels`: all relations; `entity_tokens`: those of all roles and types.

        Raises:
            DataError: a relation is missing, or there is only one.
        """
        _refuse_unlabelled(examples)
        self.labels = sorted({str(example.relation) for example in examples})
        if len(self.labels) < 2:
            raise DataError(f"{examples[0].place}: every relation is {self.labels[0]}")
        self.entity_tokens = self.special_tokens(examples)

    def unknown_label(self, example: Pair) -> str | None:
        """See `Task`."""
        if example.relation is None or example.relation in self.learnt_labels():
            return None
        return f"the relation {example.relation} is not in the training data"

    def has_answers(self, examples: Sequence[Pair]) -> bool:
        """See `Task`."""
        return all(example.relation is not None for example in examples)

    def special_tokens(self, examples: Sequence[Pair]) -> list[str]:
        """See `Task`."""
        return sorted(set().union(*map(self._tokens, examples)))

    def misfit(self, example: Pair, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """See `Task`. Masked entities are one token each and always fit."""
        if self.entities == "mask":
            return None
        return self._too_long(self._pieces(example, tokenizer)[1])

    def _too_long(self, is_entity: np.ndarray) -> str | None:
        needed, room = int(is_entity.sum()), self.max_seq_length - 2
        if needed <= room:
            return None
        return (
            f"its entities have {needed} word pieces and markers, more than the {room} of "
            f"--max-seq-length {self.max_seq_length}"
        )

    def windows(self, example: Pair, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict]:
        """See `Task`; there is one.

        Raises:
            DataError: the entities alone are longer than a window.
            ValueError: the tokenizer does not know `special_tokens`.
        """
        pieces, is_entity = self._pieces(example, tokenizer)
        reason = self._too_long(is_entity)
        if reason is not None:
            raise DataError(f"{example.place}: {reason}")
        kept = pieces[_nearest(is_entity, self.max_seq_length - 2)].tolist()
        window: dict[str, Any] = {
            "input_ids": [tokenizer.cls_token_id, *kept, tokenizer.sep_token_id],
            "token_type_ids": [0] * (len(kept) + 2),
        }
        if self.labels is not None and example.relation in self.labels:
            # an unknown relation counts in the figures, but has no loss
            window["labels"] = self.labels.index(example.relation)
        yield window

    def _pieces(
        self, pair: Pair, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids of the sentence with entity tokens, whether each belongs to an entity)."""
        mentions = _mentions(pair)
        # the outer of two nested entities opens first and closes last
        opening = sorted(mentions, key=lambda item: -item[1].end)
        closing = sorted(mentions, key=lambda item: item[1].start)[::-1]
        markers = self.entities == "markers"
        cuts = sorted({0, len(pair.text), *(x for _, m in mentions for x in (m.start, m.end))})
        parts = [pair.text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
        texts = piece_ids(tokenizer, parts)
        ids: list[int] = []
        is_entity: list[bool] = []

        def add(new: Sequence[int], entity: bool) -> None:
            ids.extend(new)
            is_entity.extend([entity] * len(new))

        for at, text in zip(cuts, [*texts, []], strict=True):
            if markers:
                tokens = [_closing(role, m) for role, m in closing if m.end == at]
                add(_ids(tokens, tokenizer), True)
            tokens = [_opening(role, m) for role, m in opening if m.start == at]
            add(_ids(tokens, tokenizer), True)
            inside = any(m.start <= at < m.end for _, m in mentions)
            if markers or not inside:
                add(text, inside)
        return np.array(ids, np.int64), np.array(is_entity, bool)

    # Results

    def decode(
        self, example: Pair, windows: Sequence[dict], outputs: Sequence[dict[str, np.ndarray]]
    ) -> str:
        """The most likely relation."""
        return self.learnt_labels()[int(outputs[0]["logits"].argmax())]

    def metrics(self, examples: Sequence[Pair], predictions: Sequence[str]) -> dict[str, float]:
        """See `relation_metrics`.

        Raises:
            DataError: the file does not give the relation of a pair.
        """
        _refuse_unlabelled(examples)
        gold = [str(example.relation) for example in examples]
        if self.format == "semeval":
            return semeval_scores(gold, predictions)
        return micro_scores(gold, predictions, NO_RELATION.get(self.format or "", "no_relation"))

    def write(self, path: Path, examples: Sequence[Pair], predictions: Iterable[str]) -> list[Path]:
        """Write an id, a tab and a relation on each line, as SemEval's scorer reads them."""
        with whole_file(path) as file:
            for example, relation in zip(examples, predictions, strict=True):
                file.write(f"{example.id}\t{relation}\n")
        return [path]


def _mentions(pair: Pair) -> tuple[tuple[str, Mention], tuple[str, Mention]]:
    return ("SUBJ", pair.subject), ("OBJ", pair.object)


def _opening(role: str, mention: Mention) -> str:
    return f"[{role}]" if mention.kind is None else f"[{role}-{mention.kind}]"


def _closing(role: str, mention: Mention) -> str:
    return "[/" + _opening(role, mention)[1:]


def _ids(tokens: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer.convert_tokens_to_ids(tokens)  # type: ignore[assignment]  # of a list
    if tokenizer.unk_token_id in ids:
        unknown = tokens[ids.index(tokenizer.unk_token_id)]
        raise ValueError(f"tokenizer must know the task's special tokens, it has no {unknown}")
    return ids


def _nearest(is_entity: np.ndarray, room: int) -> np.ndarray:
    """The places, in order, of all entity pieces and of the pieces nearest to one, at most `room`.
    Of two pieces at equal distance, the earlier one is chosen."""
    places = np.arange(len(is_entity))
    entities = places[is_entity]
    after = np.searchsorted(entities, places).clip(max=len(entities) - 1)
    before = np.searchsorted(entities, places, side="right").clip(min=1) - 1
    distance = np.minimum(np.abs(entities[after] - places), np.abs(places - entities[before]))
    return np.sort(np.argsort(distance, kind="stable")[:room])


def _refuse_unlabelled(examples: Sequence[Pair]) -> None:
    unlabelled = next((example for example in examples if example.relation is None), None)
    if unlabelled is not None:
        raise DataError(f"{unlabelled.place}: has no relation")
