"""Reads labelled texts and pairs of texts from GLUE, CSV, TSV, JSON lines and .txt files."""

import csv
import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spanbert_fast.data.text_files import decoded_lines, decoded_text, first_line, plain_suffix
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.schema import parse_json
from spanbert_fast.tasks.base import Bad, Example
from spanbert_fast.tasks.reading import BadItem, json_item, numbered_lines

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")
LABEL_COLUMNS = ("label", "gold_label", "labels")
TEXT_COLUMNS = (
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("text",),
    ("sentence",),
)
# what pandas, R and databases write where there is no value
_MISSING = {"nan", "NaN", "null", "NULL", "None", "<NA>", "#N/A"}
_ID_COLUMNS = ("index", "id", "idx")
_COLA = ("source", "label", "star", "sentence")  # its training and dev files have no header
_COLA_TEST = ["index", "sentence"]
_FASTTEXT = "__label__"
_TXT = {1: ("text",), 2: ("label", "text"), 3: ("label", "text1", "text2")}
_LONGEST_CELL = 2**31 - 1  # csv's default, 131,072 characters, is less than a long document
_SURROGATE = re.compile("[\ud800-\udfff]")


class GlueTask(NamedTuple):
    """A task of GLUE (Wang et al. 2019).

    Attributes:
        text_columns, label_column: columns of its files.
        score: the figures whose mean is its score on GLUE's leaderboard.
    """

    text_columns: tuple[str, ...]
    label_column: str
    score: tuple[str, ...]


GLUE = {
    "cola": GlueTask(("sentence",), "label", ("mcc",)),
    "sst2": GlueTask(("sentence",), "label", ("accuracy",)),
    "mrpc": GlueTask(("#1 String", "#2 String"), "Quality", ("accuracy", "f1")),
    "stsb": GlueTask(("sentence1", "sentence2"), "score", ("pearson", "spearman")),
    "qqp": GlueTask(("question1", "question2"), "is_duplicate", ("accuracy", "f1")),
    "mnli": GlueTask(("sentence1", "sentence2"), "gold_label", ("accuracy",)),
    "qnli": GlueTask(("question", "sentence"), "label", ("accuracy",)),
    "rte": GlueTask(("sentence1", "sentence2"), "label", ("accuracy",)),
}


@dataclasses.dataclass
class Text(Example):
    """One text or two.

    Attributes:
        texts: as in the file.
        label: a class, or a number for regression; None if the file has none.
    """

    texts: tuple[str, ...]
    label: str | float | None


def read_texts(
    path: Path,
    *,
    glue_task: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    regression: bool = False,
) -> Iterator[Text | Bad]:
    """The texts of a file in order.

    Args:
        path: its suffix says what it is: .csv and .tsv with a header (quotes are quotes in .csv
            alone; a .csv may be separated by semicolons or tabs, as Excel writes it, may have
            blanks behind its separators, and may begin with Excel's line sep=), .jsonl or .ndjson
            with an object per line, .json with the same or with a list of objects, or .txt with
            label TAB text, label TAB text TAB text, a text alone on each line, or fastText's
            __label__NAME before each text. Rows have the id that a column index, id or idx says,
            else their number from 0. A row without the label column has no label.
        glue_task: a key of `GLUE`; the file is GLUE's .tsv then, whatever its suffix.
        text_columns: one or two names; None for the task's, or the first of `TEXT_COLUMNS`.
        label_column: None for the task's, or the first of `LABEL_COLUMNS` that there is.
        regression: labels are numbers.

    Raises:
        DataError: the suffix is another one.
        UsageError: columns of a .txt are named.
    """
    suffix = ".tsv" if glue_task else plain_suffix(path)
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path}: the suffix must be one of {', '.join(SUFFIXES)}, got {suffix!r}; "
            "pandas writes one by to_json(FILE, orient='records', lines=True)"
        )
    if suffix == ".txt" and (text_columns or label_column):
        raise UsageError(f"--text-columns, --label-column: {path} has no header to name columns")
    glue = GLUE.get(glue_task or "")
    if not text_columns and glue is not None:
        text_columns = glue.text_columns
    choices = [text_columns] if text_columns else TEXT_COLUMNS
    if not label_column and glue is not None:
        label_column = glue.label_column
    labels = (label_column,) if label_column else LABEL_COLUMNS
    number = 0
    for place, row in _rows(path, suffix, glue_task):
        try:
            if isinstance(row, BadItem):
                raise row
            yield _text(row, choices, labels, regression, number, place)
        except BadItem as error:
            yield Bad(place, str(error))
        number += 1


def _rows(path: Path, suffix: str, glue_task: str | None) -> Iterator[tuple[str, Any]]:
    """(place, what is in each column) of each row, or (place, what is wrong with it)."""
    if suffix in (".jsonl", ".ndjson", ".json"):
        is_list = suffix == ".json" and first_line(path).lstrip().startswith("[")
        return _listed(path) if is_list else _objects(path)
    if suffix == ".txt" and first_line(path).startswith(_FASTTEXT):
        return _fasttext(path)
    if suffix == ".csv":
        return _named(_csv(path), None)
    names = None
    if glue_task == "cola" or suffix == ".txt":
        cells = _cells(first_line(path))
        if suffix == ".txt":
            names = _TXT.get(len(cells), _TXT[2])
        elif cells != _COLA_TEST:
            names = _COLA
    return _named(_tsv(path), names)


def _cells(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _tsv(path: Path) -> Iterator[tuple[str, list[str]]]:
    for _, place, line in numbered_lines(path):
        yield place, _cells(line)


def _fasttext(path: Path) -> Iterator[tuple[str, Any]]:
    for _, place, line in numbered_lines(path):
        label, _, text = line.strip().partition(" ")
        row: Any = {"label": label.removeprefix(_FASTTEXT), "text": text}
        if not label.startswith(_FASTTEXT) or text.startswith(_FASTTEXT):
            row = BadItem(f"must begin with one {_FASTTEXT}NAME, as the first line does")
        yield place, row


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(_LONGEST_CELL)
    lines, skipped = decoded_lines(path), 0
    header = first_line(path)
    if told := re.fullmatch(r"sep=(.)\s*", header):  # Excel's own way to say it
        next(lines)
        skipped = 1
    separator = told[1] if told else next((s for s in ",;\t" if s in header), ",")
    reader = csv.reader(
        lines, strict=True, delimiter=separator, skipinitialspace=f"{separator} " in header
    )
    while True:
        place = f"{path}:{reader.line_num + 1 + skipped}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield place, BadItem(f"not CSV ({error})")
            continue
        if row is None:
            return
        if row:  # an empty line has no cells
            yield place, row


def _named(rows: Iterator[tuple[str, Any]], names: Sequence[str] | None) -> Iterator:
    """The rows as dicts; where there are no names the first row is a header."""
    for place, row in rows:
        if names is None:
            if isinstance(row, BadItem):
                raise DataError(f"{place}: {row}")
            row = [name.strip() for name in row]
            named = [name for name in row if name]  # Excel writes empty columns, pandas an index
            if len(set(named)) < len(named):
                raise DataError(f"{place}: the header has a column twice: {', '.join(row)}")
            names = row
        elif isinstance(row, BadItem):
            yield place, row
        elif len(row) != len(names):
            yield place, BadItem(f"has {len(row)} columns, not {len(names)}: {', '.join(names)}")
        else:
            yield place, dict(zip(names, row, strict=True))


def _listed(path: Path) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(parse_json(decoded_text(path), path)):
        yield f"{path}, row {number}", _object(row)


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    for _, place, line in numbered_lines(path):
        try:
            row = json_item(line)
        except BadItem as error:
            yield place, error
        else:
            yield place, _object(row)


def _object(row: Any) -> dict | BadItem:
    if isinstance(row, dict):
        return row
    return BadItem(f"must be an object, got {row!r:.60}")


def _text(
    row: dict,
    choices: Sequence[Sequence[str]],
    labels: Sequence[str],
    regression: bool,
    number: int,
    place: str,
) -> Text:
    columns = next((names for names in choices if row.keys() >= set(names)), None)
    if columns is None:
        wanted = " or ".join("+".join(names) for names in choices)
        names = " ".join(", ".join(row).split())  # on one line
        remedy = "; --text-columns names others" if choices is TEXT_COLUMNS else ""
        raise BadItem(f"needs the column {wanted}, has {names:.200}{remedy}")
    texts = tuple(row[name] for name in columns)
    for name, text in zip(columns, texts, strict=True):
        if not isinstance(text, str):
            raise BadItem(f"{name} must be a string, got {text!r:.60}")
        if _SURROGATE.search(text):
            raise BadItem(f"{name} has half a surrogate pair")
    if not any(map(str.strip, texts)):
        raise BadItem(f"{' and '.join(columns)} must not be blank")
    label_column = next((name for name in labels if name in row), "")
    label = row.get(label_column)
    if label == "-" and label_column == "gold_label":  # SNLI's and MultiNLI's own
        raise BadItem("has no gold label: those who labelled it did not agree")
    if isinstance(label, float) and math.isnan(label):  # as null, which json.dumps of pandas avoids
        label = None
    own_name = next((row[key] for key in _ID_COLUMNS if key in row), number)
    name = " ".join(str(own_name).split())  # on one line, without tabs
    return Text(name, place, texts, None if label is None else _label(label, regression))


def _label(value: Any, regression: bool) -> str | float:
    if isinstance(value, (bool, int, float)):
        value = json.dumps(value)
    if not isinstance(value, str) or not value.strip():
        raise BadItem(f"the label must be a string or a number, got {value!r:.60}")
    if not regression and value.strip() in _MISSING:
        raise BadItem(
            f"the label is missing ({value.strip()}): leave the row out, or rename the class"
        )
    if not regression:
        return value.strip()
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadItem(f"the label must be a number, got {value!r:.60}")
    return number
