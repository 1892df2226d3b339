"""Data files as other programs and the Hub's data sets write them are read, or refused by name."""

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
    assert task.labels == ["-1", "1"]  # so that the f1 is that of label 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("excel.csv", "text;label;;\ngood, bad;1;;\nso;0;;\n"),
        ("excel-tabs.csv", "text\tlabel\ngood, bad\t1\nso\t0\n"),
        ("pandas.csv", ',text,label\n0,"good, bad",1\n1,so,0\n'),
        ("excel-told.csv", "sep=;\ntext;label\ngood, bad;1\nso;0\n"),
        ("records.json", '[{"text": "good, bad", "label": 1}, {"text": "so", "label": "0"}]'),
        ("lines.json", '{"text": "good, bad", "label": 1}\n{"text": "so", "label": 0}\n'),
        ("lines.ndjson", '{"text": "good, bad", "labels": 1}\n{"text": "so", "labels": 0}\n'),
        ("fast.txt", "__label__1 good, bad\n__label__0 so\n"),
        ("hub.jsonl", '{"text": "good, bad", "label": 1}\n{"text": "so", "label": 0, "idx": 7}\n'),
    ],
)
def test_what_other_programs_write(name, text, tmp_path):
    items = Classification().read(written(tmp_path, name, text)).items
    assert [(item.texts, item.label) for item in items] == [(("good, bad",), "1"), (("so",), "0")]


def test_the_hub_s_columns_of_glue(tmp_path):
    for pair in (
        ("premise", "hypothesis"),
        ("question1", "question2"),
        ("question", "sentence"),
        ("question", "passage"),
    ):
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


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", b"sep=;\ntext;label\na;1\nb\n", "x.csv:4: has 1 columns, not 2"),
        ("x.csv", b"Review,Sentiment\na,1\n", "has Review, Sentiment; --text-columns names others"),
        ("x.csv", "text,label\ncaf\u00e9,1\n".encode("cp1252"), "iconv -f ISO-8859-1 -t UTF-8"),
        ("x.csv", "text\tlabel\na\t1\n".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("x.parquet", b"PAR1", "got '.parquet'; pandas writes one by to_json"),
        ("x.json", b'[{"text": "a"}, 3]', "x.json, row 1: must be an object, got 3"),
        ("x.txt", b"__label__a b\nc d\n", "x.txt:2: must begin with one __label__NAME"),
        ("x.txt", b"__label__a __label__b c\n", "x.txt:1: must begin with one __label__NAME"),
    ],
)
def test_what_is_refused_names_place_and_remedy(name, content, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        Classification().read(path)
    assert words in str(caught.value)


def test_snli_s_own_files(tmp_path):
    row = '{{"sentence1": "a", "sentence2": "b", "gold_label": "{}"}}\n'
    path = written(tmp_path, "x.jsonl", row.format("neutral") + row.format("-"))
    with pytest.raises(DataError, match="x.jsonl:2: has no gold label"):
        Classification().read(path)
    items, skipped = Classification().read(path, skip_bad=True)
    assert ([item.label for item in items], skipped) == (["neutral"], 1)
    task = Classification()
    no_label = written(tmp_path, "y.jsonl", '{"text": "a", "stars": 3}\n')
    with pytest.raises(DataError, match=r"has no label \(--label-column names its column\)"):
        task.learn(task.read(no_label).items)


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


def test_tags_of_one_type_and_chinese_tags(tmp_path):
    text = "### 7\n\nthe\tO\nlung\tB\ntumour\tI\n"
    (item,) = NamedEntities().read(written(tmp_path, "ncbi.tsv", text)).items
    assert item.tags == ["O", "B-ENTITY", "I-ENTITY"]
    text = "\u9ad8 B-NAME\n\u52c7 M-NAME\n\u7537 E-NAME\n\u4e2d S-LOC\n"
    task = NamedEntities()
    (item,) = task.read(written(tmp_path, "resume.txt", text)).items
    assert (task.scheme, item.tags) == ("bmes", ["B-NAME", "I-NAME", "I-NAME", "B-LOC"])


def test_another_column_or_a_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"got '\(PER\*' in column -1 \(--tag-column\)"):
        NamedEntities().read(written(tmp_path, "x.conll", "Ann (PER*\n"))
    with pytest.raises(DataError, match=r"x.csv:1: is CSV; ner reads columns"):
        NamedEntities().read(written(tmp_path, "x.csv", "Sentence #,Word,Tag\n1,Ann,B-per\n"))


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


def test_lines_without_ids_and_starts_as_pandas_writes_them(tmp_path):
    row = {"context": "It was red.", "question": "What?"}
    row["answers"] = {"text": ["red"], "answer_start": [7.0]}
    text = json.dumps(row) + "\n"
    items = QuestionAnswering().read(written(tmp_path, "x.jsonl", text * 2)).items
    assert [(item.id, item.span) for item in items] == [("1", (7, 10)), ("2", (7, 10))]
    path = written(tmp_path, "y.jsonl", text.replace("7.0", "7.5"))
    with pytest.raises(DataError, match='"answer_start" must be a whole number, got 7.5'):
        QuestionAnswering().read(path)


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


def test_another_layout_than_tacred_s_is_named(tmp_path):
    row = json.dumps({"tokens": ["a"], "h": ["a", "Q1", [[0]]], "relation": "P9"})
    with pytest.raises(DataError, match='x.jsonl:1: has no "token", as TACRED has it, but tokens'):
        Relation().read(written(tmp_path, "x.jsonl", row))


def test_an_entity_type_with_blanks(tmp_path):
    row = {
        "id": 1, "token": ["Ann", "left", "Oslo"], "relation": "left",
        "subj_start": 0, "subj_end": 0, "subj_type": "Public Person",
        "obj_start": 2, "obj_end": 2, "obj_type": "City",
    }  # fmt: skip
    (item,) = Relation().read(written(tmp_path, "x.jsonl", json.dumps(row))).items
    assert (item.subject.kind, item.object.kind) == ("Public_Person", "City")
