"""Reads questions with contexts and answers from SQuAD 1.1, SQuAD 2.0 and MRQA files."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spanbert_fast.data.text_files import decoded_text, first_line, plain_suffix
from spanbert_fast.errors import DataError
from spanbert_fast.schema import parse_json
from spanbert_fast.tasks.base import Bad, Example
from spanbert_fast.tasks.reading import BadItem, json_item, numbered_lines


@dataclasses.dataclass
class Question(Example):
    """A question about a text.

    Attributes:
        question, context: as in the file. The answer is a part of the context.
        answers: all correct texts; empty if the context has no answer; None if the file does not
            say.
        span: (start, end) of the first gold answer in characters of the context, end exclusive,
            without blanks at its edges; None if there is none.
    """

    question: str
    context: str
    answers: list[str] | None = None
    span: tuple[int, int] | None = None


def read_questions(path: Path) -> Iterator[Question | Bad]:
    """The questions of a file in order.

    Args:
        path: SQuAD's JSON, nested (data, paragraphs, qas) or flat (data, or a list, of id,
            question, context, answers); the same objects as lines of JSON, as in the Hub's data
            sets; or MRQA's JSON lines. The content tells which it is. A file of lines has the
            suffix .jsonl or begins with a header or a context. Ids may be whole numbers; a line
            without an id gets its number.

    Raises:
        DataError: the file has neither form.
    """
    found = _mrqa(path) if _has_lines(path) else _squad(path)
    seen: set[str] = set()
    for item in found:
        if not isinstance(item, Bad):
            if item.id in seen:
                yield Bad(item.place, f'the id "{item.id}" has come before')
                continue
            seen.add(item.id)
        yield item


def _has_lines(path: Path) -> bool:
    if plain_suffix(path) == ".jsonl":
        return True
    try:
        item = json.loads(first_line(path))
    except (ValueError, RecursionError):
        return False
    if not isinstance(item, dict):
        return False
    return "header" in item or any(
        {"context", other} <= item.keys() for other in ("qas", "question")
    )


# SQuAD


def _squad(path: Path) -> Iterator[Question | Bad]:
    content = parse_json(decoded_text(path), path)
    data = content.get("data") if isinstance(content, dict) else content
    if not isinstance(data, list):
        raise DataError(f'{path}: needs an object with a list "data", as SQuAD has it')
    for number, item in enumerate(data):
        place = f"{path}, data[{number}]"
        if not isinstance(item, dict):
            yield Bad(place, f"must be an object, got {_kind(item)}")
        elif "paragraphs" in item:
            yield from _paragraphs(item, path, place)
        else:
            yield _squad_question(item, item, path, place)


def _paragraphs(article: dict, path: Path, place: str) -> Iterator[Question | Bad]:
    try:
        for number, paragraph in enumerate(_list(article, "paragraphs")):
            at = f"{place}.paragraphs[{number}]"
            try:
                for i, item in enumerate(_list(_object(paragraph), "qas")):
                    yield _squad_question(item, paragraph, path, f"{at}.qas[{i}]")
            except BadItem as error:
                yield Bad(at, str(error))
    except BadItem as error:
        yield Bad(place, str(error))


def _squad_question(item: Any, paragraph: dict, path: Path, place: str) -> Question | Bad:
    try:
        name = _id(_object(item), "id")
        place = f"{path}, question {name}"
        question, context = _text(item, "question"), _context(paragraph)
        starts = None
        if "answers.text" in item:  # the columns of a flattened table
            columns = {key: item.get(f"answers.{key}") for key in ("text", "answer_start")}
            item = {**item, "answers": columns}
        if item.get("answers") is not None:
            starts = _columns(item["answers"])
        elif item.get("is_impossible"):
            starts = []
        spans = [_found(text, start, context) for text, start in starts or ()]
        _check_impossible(item, spans)
    except BadItem as error:
        return Bad(place, str(error))
    answers = None if starts is None else [text for text, _ in starts]
    return Question(name, place, question, context, answers, spans[0] if spans else None)


def _columns(answers: Any) -> list[tuple[str, int]]:
    """(text, start) of each answer, from a list of objects or an object of two lists."""
    if isinstance(answers, dict):
        texts, starts = _list(answers, "text"), _list(answers, "answer_start")
        if len(texts) != len(starts):
            raise BadItem(f"has {len(texts)} answers and {len(starts)} starts")
        answers = [
            {"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)
        ]
    elif not isinstance(answers, list):
        raise BadItem(f'"answers" must be a list or an object, got {_kind(answers)}')
    pairs = []
    for answer in answers:
        start = _object(answer).get("answer_start")
        if isinstance(start, float) and start.is_integer():  # pandas writes whole numbers as floats
            start = int(start)
        if type(start) is not int:
            raise BadItem(f'"answer_start" must be a whole number, got {_kind(start)}')
        pairs.append((_text(answer, "text"), start))
    return pairs


def _found(text: str, start: int, context: str) -> tuple[int, int]:
    there = context[start : start + len(text)] if start >= 0 else ""
    if there != text:
        raise BadItem(f"the answer {text!r} is not at its offset {start}, {there!r} is")
    return _trimmed(start, start + len(text), context)


# MRQA


def _mrqa(path: Path) -> Iterator[Question | Bad]:
    for number, place, line in numbered_lines(path):
        try:
            item = _object(json_item(line))
            if "header" in item:
                continue
            if "qas" not in item and "question" in item:
                yield _squad_question({"id": number, **item}, item, path, place)
                continue
            context, questions = _context(item), _list(item, "qas")
        except BadItem as error:
            yield Bad(place, str(error))
        else:
            for question in questions:
                yield _mrqa_question(question, context, place)


def _mrqa_question(item: Any, context: str, place: str) -> Question | Bad:
    try:
        name = _id(_object(item), "qid" if "qid" in item else "id")
        question = _text(item, "question")
        answers = spans = None
        if item.get("detected_answers") is not None:
            spans = _detected(_list(item, "detected_answers"), context)
        if item.get("answers") is not None:
            answers = [_string(answer, '"answers"') for answer in _list(item, "answers")]
            if bool(answers) is not bool(spans):
                raise BadItem(f"has {len(answers)} answers, of which {len(spans or ())} detected")
        elif spans is not None:
            answers = [context[start:end] for start, end in spans]
        elif item.get("is_impossible"):
            answers = []
        _check_impossible(item, spans)
    except BadItem as error:
        return Bad(place, str(error))
    return Question(name, place, question, context, answers, spans[0] if spans else None)


def _detected(answers: list, context: str) -> list[tuple[int, int]]:
    """All spans of all answers; in the file their ends are inclusive."""
    spans = []
    for answer in answers:
        for pair in _list(_object(answer), "char_spans"):
            if not isinstance(pair, list) or [type(place) for place in pair] != [int, int]:
                raise BadItem(f'"char_spans" must hold pairs of whole numbers, got {pair!r}')
            start, last = pair
            if not 0 <= start <= last < len(context):
                raise BadItem(f"the span {pair} is not within the {len(context)} characters")
            text, there = answer.get("text"), context[start : last + 1]
            # the dataset's authors may have tokenised or lower-cased the text
            if isinstance(text, str) and _letters(text) != _letters(there):
                raise BadItem(f"the answer {text!r} is not at its offset {start}, {there!r} is")
            spans.append(_trimmed(start, last + 1, context))
    return spans


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


# Checks


def _check_impossible(item: dict, spans: list | None) -> None:
    if item.get("is_impossible") and spans:
        raise BadItem('has answers and "is_impossible"')


def _trimmed(start: int, end: int, context: str) -> tuple[int, int]:
    text = context[start:end]
    if not text.strip():
        raise BadItem(f"the answer at the offset {start} is blank")
    return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())


def _context(item: dict) -> str:
    context = _text(item, "context")
    if not context.strip():
        raise BadItem('"context" is blank')
    return context


def _id(item: dict, key: str) -> str:
    value = item.get(key)
    return str(value) if type(value) is int else _text(item, key)


def _text(item: dict, key: str) -> str:
    if key not in item:
        raise BadItem(f'has no "{key}"')
    return _string(item[key], f'"{key}"')


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadItem(f"{name} must be a string, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadItem(f"{name} has half a surrogate pair") from error
    return value


def _list(item: dict, key: str) -> list:
    if not isinstance(item.get(key), list):
        raise BadItem(f'"{key}" must be a list, got {_kind(item.get(key))}')
    return item[key]


def _object(value: Any) -> dict:
    if not isinstance(value, dict):
        raise BadItem(f"must be an object, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """The JSON type of a value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "nothing"}
    return names.get(type(value), repr(value))
