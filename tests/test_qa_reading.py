"""Question answering: the data formats, and the errors that bad data gives."""

import gzip
import json

import pytest

from qa_cases import CONTEXT
from spanbert_fast.errors import DataError
from spanbert_fast.tasks.qa import QuestionAnswering


def squad(*items, context=CONTEXT):
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph(*items, context)]}]}


def paragraph(*items_and_context):
    *items, context = items_and_context
    return {"context": context, "qas": [{"id": "1", "question": "Where?", **i} for i in items]}


def written(tmp_path, content, name="data.json"):
    path = tmp_path / name
    text = content if isinstance(content, str) else json.dumps(content)
    with gzip.open(path, "wt") if name.endswith(".gz") else open(path, "w") as file:
        file.write(text)
    return path


def lines(*items):
    return "\n".join(item if isinstance(item, str) else json.dumps(item) for item in items) + "\n"


NORMANDY = {"text": "Normandy", "answer_start": 21}
FRANCE = {"text": "France", "answer_start": 43}


def test_nested_squad(tmp_path):
    path = written(
        tmp_path,
        squad(
            {"answers": [NORMANDY, FRANCE, NORMANDY]},
            {"id": "2", "answers": [], "is_impossible": True, "plausible_answers": [FRANCE]},
            {"id": "3", "is_impossible": True},
            {"id": "4"},
            {"id": "5", "answers": [{"text": " a region ", "answer_start": 30}]},
        ),
    )
    one, *none, unknown, blanks = QuestionAnswering().read(path).items
    assert (one.id, one.place, one.question) == ("1", f"{path}, question 1", "Where?")
    assert one.context == CONTEXT
    assert one.answers == ["Normandy", "France", "Normandy"] and one.span == (21, 29)
    assert [(e.answers, e.span) for e in none] == [([], None)] * 2
    assert (unknown.answers, unknown.span) == (None, None)
    assert CONTEXT[slice(*blanks.span)] == "a region" and blanks.answers == [" a region "]


def test_flat_squad(tmp_path):
    both = {"text": ["France", "Normandy"], "answer_start": [43, 21]}
    neither = {"text": [], "answer_start": []}
    path = written(
        tmp_path,
        {
            "data": [
                {"id": "1", "question": "Where?", "context": CONTEXT, "answers": both},
                {"id": "2", "question": "Who?", "context": CONTEXT, "answers": neither},
                {"id": "3", "question": "Who?", "context": CONTEXT},
            ]
        },
    )
    found = QuestionAnswering().read(path).items
    assert [(e.answers, e.span) for e in found] == [
        (["France", "Normandy"], (43, 49)),
        ([], None),
        (None, None),
    ]


def mrqa(context=CONTEXT, **fields):
    return {"context": context, "qas": [{"qid": "1", "question": "Where?", **fields}]}


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.jsonl", "data.json"])
def test_mrqa(tmp_path, name):
    detected = [
        {"text": "NORMANDY", "char_spans": [[21, 28]], "token_spans": [[4, 4]]},
        {"text": "10 th", "char_spans": [[58, 61]], "token_spans": [[12, 12]]},
    ]
    items = [
        {"header": {"dataset": "x", "mrqa_split": "dev"}},
        mrqa(answers=["Normandy", "in Normandy"], detected_answers=detected),
        "",
        mrqa(qid="2", detected_answers=detected),
        mrqa(qid="3", answers=[], detected_answers=[]),
        mrqa(qid="4"),
    ]
    path = written(tmp_path, lines(*items), name)
    one, two, three, four = QuestionAnswering().read(path).items
    assert (one.id, one.place, one.span) == ("1", f"{path}:2", (21, 29))
    assert one.answers == ["Normandy", "in Normandy"]
    assert two.answers == ["Normandy", "10th"] and two.place == f"{path}:4"
    assert (three.answers, three.span, four.answers) == ([], None, None)


BAD_SQUAD = [
    ({"answers": [{**NORMANDY, "answer_start": 22}]}, "'Normandy' is not at its offset 22"),
    ({"answers": [NORMANDY, {**FRANCE, "answer_start": -28}]}, "is not at its offset -28"),
    ({"answers": [{**NORMANDY, "answer_start": 10**9}]}, "not at its offset 1000000000, '' is"),
    ({"answers": [{"text": "Normandy"}]}, '"answer_start" must be a whole number, got nothing'),
    ({"answers": [{**NORMANDY, "answer_start": True}]}, '"answer_start" must be a whole number'),
    ({"answers": [{"answer_start": 2}]}, 'has no "text"'),
    ({"answers": [{"text": "", "answer_start": 2}]}, "the answer at the offset 2 is blank"),
    ({"answers": [{"text": " ", "answer_start": 3}]}, "the answer at the offset 3 is blank"),
    ({"answers": ["Normandy"]}, "must be an object, got a string"),
    ({"answers": "Normandy"}, '"answers" must be a list or an object, got a string'),
    ({"answers": {"text": ["France"], "answer_start": []}}, "has 1 answers and 0 starts"),
    ({"answers": [NORMANDY], "is_impossible": True}, 'has answers and "is_impossible"'),
    ({"question": None}, '"question" must be a string, got nothing'),
    ({"question": "\ud800"}, '"question" has half a surrogate pair'),
    ({"id": 7.5}, '"id" must be a string, got 7.5'),
    ({"id": "0"}, 'the id "0" has come before'),
]


@pytest.mark.parametrize(("item", "reason"), BAD_SQUAD, ids=[reason for _, reason in BAD_SQUAD])
def test_a_bad_question_is_named_or_left_out(tmp_path, item, reason):
    good = {"id": "0", "answers": [FRANCE]}
    path = written(tmp_path, squad(good, {"answers": [], **item}, {"id": "2"}))
    task = QuestionAnswering()
    with pytest.raises(DataError) as error:
        task.read(path)
    message = str(error.value)
    assert reason in message and "\n" not in message
    where = ", question " if isinstance(item.get("id", "1"), str) else ", data[0].paragraphs[0]."
    assert message.startswith(f"{path}{where}")
    examples = task.read(path, skip_bad=True)
    assert [e.id for e in examples.items] == ["0", "2"] and examples.skipped == 1


@pytest.mark.parametrize(
    ("data", "place", "reason"),
    [
        (["x"], "data[0]", "must be an object, got a string"),
        ([{"paragraphs": 3}], "data[0]", '"paragraphs" must be a list, got 3'),
        ([{"paragraphs": [[]]}], "data[0].paragraphs[0]", "must be an object, got a list"),
        ([{"paragraphs": [{"context": "x"}]}], "data[0].paragraphs[0]", '"qas" must be a list'),
        ([{"paragraphs": [paragraph({}, " \n")]}], "question 1", '"context" is blank'),
        ([{"title": "t"}], "data[0]", 'has no "id"'),
        ([{"id": "1", "question": "?"}], "question 1", 'has no "context"'),
    ],
)
def test_a_bad_part_of_squad(tmp_path, data, place, reason):
    good = {"id": "9", "question": "?", "context": CONTEXT}
    path = written(tmp_path, {"data": [*data, good]})
    with pytest.raises(DataError) as error:
        QuestionAnswering().read(path)
    assert str(error.value).startswith(f"{path}, {place}: {reason}")
    examples = QuestionAnswering().read(path, skip_bad=True)
    assert len(examples.items) == examples.skipped == 1


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ('{"context": ', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "must be an object, got a list"),
        ({"qas": []}, 'has no "context"'),
        ({"context": "x"}, '"qas" must be a list, got nothing'),
        (mrqa(detected_answers=[{"char_spans": [[21, 71]]}]), "the span [21, 71] is not within"),
        (mrqa(detected_answers=[{"char_spans": [[21, 20]]}]), "the span [21, 20] is not within"),
        (mrqa(detected_answers=[{"char_spans": [[21]]}]), '"char_spans" must hold pairs'),
        (mrqa(detected_answers=[{"text": "x"}]), '"char_spans" must be a list, got nothing'),
        (
            mrqa(detected_answers=[{"text": "Normandy", "char_spans": [[22, 29]]}]),
            "the answer 'Normandy' is not at its offset 22, 'ormandy,' is",
        ),
        (mrqa(answers=["x"], detected_answers=[]), "has 1 answers, of which 0 detected"),
        (mrqa(answers=[1], detected_answers=[]), '"answers" must be a string, got 1'),
        (mrqa(qid=None), '"qid" must be a string, got nothing'),
    ],
)
def test_a_bad_line_of_mrqa(tmp_path, item, reason):
    path = written(tmp_path, lines({"header": {}}, mrqa(qid="0"), item, mrqa(qid="2")), "d.jsonl")
    with pytest.raises(DataError) as error:
        QuestionAnswering().read(path)
    assert str(error.value).startswith(f"{path}:3: {reason}")
    examples = QuestionAnswering().read(path, skip_bad=True)
    assert [e.id for e in examples.items] == ["0", "2"] and examples.skipped == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("What is this?\nA text.\n", "not JSON"),
        ('{"data": [', "not JSON"),
        ("7", 'needs an object with a list "data"'),
        ("[]", "there is no example in it"),
        ('{"data": {}}', 'needs an object with a list "data"'),
        ('{"data": []}', "there is no example in it"),
        ('{"header": {}}', "there is no example in it"),
    ],
)
def test_a_file_that_is_something_else(tmp_path, text, reason):
    path = written(tmp_path, text)
    with pytest.raises(DataError) as error:
        QuestionAnswering().read(path)
    assert str(error.value).startswith(f"{path}: {reason}") and "\n" not in str(error.value)
