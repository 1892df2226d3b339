"""Data as people have it: what other programs and the Hub's data sets write, read or refused."""

import json
import unicodedata

import pytest

from spanbert_fast.data.tokenizer import train_wordpiece
from spanbert_fast.errors import DataError
from spanbert_fast.tasks.classify import Classification
from spanbert_fast.tasks.ner import NamedEntities
from spanbert_fast.tasks.qa import QuestionAnswering
from spanbert_fast.tasks.relation import Relation


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# Classification


def test_a_header_with_blanks_and_labels_of_minus_one(tmp_path):
    path = written(tmp_path, "a.csv", 'text, label\n"good, really", 1\nbad, -1\nfine, 1\n')
    task = Classification()
    items = task.read(path).items
    assert [(item.texts, item.label) for item in items] == [
        (("good, really",), "1"),
        (("bad",), "-1"),
        (("fine",), "1"),
    ]
    task.learn(items)
    assert task.labels == ["-1", "1"]  # so that the f1 is that of 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("excel.csv", "text;label;;\ngood, bad;1;;\nso;0;;\n"),
        ("excel-tabs.csv", "text\tlabel\ngood, bad\t1\nso\t0\n"),
        ("pandas.csv", ',text,label\n0,"good, bad",1\n1,so,0\n'),
        ("hub.jsonl", '{"text": "good, bad", "label": 1}\n{"text": "so", "label": 0, "idx": 7}\n'),
    ],
)
def test_what_other_programs_write(name, text, tmp_path):
    items = Classification().read(written(tmp_path, name, text)).items
    assert [(item.texts, item.label) for item in items] == [(("good, bad",), "1"), (("so",), "0")]


def test_the_hub_s_columns_of_glue(tmp_path):
    for pair in (("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence")):
        row = {pair[0]: "a b", pair[1]: "c", "label": 1}
        (item,) = Classification().read(written(tmp_path, "x.jsonl", json.dumps(row))).items
        assert item.texts == ("a b", "c")


def test_a_missing_label_is_no_class(tmp_path):
    for value in ("null", "NaN"):
        text = f'{{"text": "a", "label": {value}}}\n'
        (item,) = Classification().read(written(tmp_path, "x.jsonl", text)).items
        assert item.label is None
    for value in ("nan", "NULL", "None", "<NA>"):
        path = written(tmp_path, "x.csv", f"text,label\na,1\nb,{value}\n")
        with pytest.raises(DataError, match=rf"x.csv:3: the label is missing \({value}\)"):
            Classification().read(path)
        assert Classification().read(path, skip_bad=True).skipped == 1


# Named entities


def test_no_break_spaces_comments_and_bilou(tmp_path):
    text = (
        "# id 7 of the set\nabout O\n10\u00a0000 U-NUM\nin O\nNew B-LOC\nYork L-LOC\n\n# O\n1 O\n"
    )
    task = NamedEntities()
    items = task.read(written(tmp_path, "x.conll", text)).items
    assert task.scheme == "bilou"
    assert [item.words for item in items] == [
        ["about", "10\u00a0000", "in", "New", "York"],
        ["#", "1"],
    ]
    assert items[0].tags == ["O", "B-NUM", "O", "B-LOC", "I-LOC"]
    with pytest.raises(DataError, match=r"a tag must be O or one of B/I/L/U-TYPE, got 'S-X'"):
        NamedEntities(scheme="bilou").read(written(tmp_path, "y.conll", "a S-X\n"))


def test_json_is_told_what_ner_reads(tmp_path):
    for text in ('{"tokens": ["a"], "ner_tags": [0]}\n', '[{"a": 1}]', '[\n{"tokens": []}\n]\n'):
        with pytest.raises(DataError, match=r"x.json:1: is JSON; ner reads columns: a word"):
            NamedEntities().read(written(tmp_path, "x.json", text))
    bracket = written(tmp_path, "x.conll", "[ O\nParis B-LOC\n] O\n")
    assert NamedEntities().read(bracket).items[0].words == ["[", "Paris", "]"]


# Questions


def test_flat_lines_with_whole_numbers_as_ids(tmp_path):
    answers = {"text": ["red"], "answer_start": [7]}
    rows = [
        {"id": 1, "context": "It was red.", "question": "What?", "answers": answers},
        {
            "id": 2,
            "context": "It was red.",
            "question": "Who?",
            "answers.text": [],
            "answers.answer_start": [],
        },
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name, text in (
        ("x.jsonl", lines),
        ("x.json", lines),
        ("list.json", json.dumps(rows)),
        ("data.json", json.dumps({"data": rows}, indent=1)),
    ):
        items = QuestionAnswering().read(written(tmp_path, name, text)).items
        assert [(item.id, item.answers) for item in items] == [("1", ["red"]), ("2", [])], name
        assert items[0].span == (7, 10)


def test_an_answer_keeps_its_last_accent(tmp_path):
    tokenizer = train_wordpiece(["the cafe was in a side street"] * 3, 120)
    tokenizer.backend_tokenizer.normalizer = type(tokenizer.backend_tokenizer.normalizer)(
        lowercase=True, strip_accents=True
    )
    context = unicodedata.normalize("NFD", "the caf\u00e9 was")
    task = QuestionAnswering(max_seq_length=32, max_query_length=8, doc_stride=4)
    _, offsets = task._context_pieces(context, tokenizer)
    ends = [context[start:end] for start, end in offsets.tolist()]
    assert any(text.endswith("e\u0301") for text in ends), ends
    assert "".join(ends) == context.replace(" ", "")


# Relations


def test_an_entity_type_with_blanks(tmp_path):
    row = {
        "id": 1, "token": ["Ann", "left", "Oslo"], "relation": "left",
        "subj_start": 0, "subj_end": 0, "subj_type": "Public Person",
        "obj_start": 2, "obj_end": 2, "obj_type": "City",
    }  # fmt: skip
    (item,) = Relation().read(written(tmp_path, "x.jsonl", json.dumps(row))).items
    assert (item.subject.kind, item.object.kind) == ("Public_Person", "City")
