"""Classification: the data formats, and the errors that bad data gives."""

import gzip
import json

import pytest

from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks.base import Bad
from spanbert_fast.tasks.classify import (
    Classification,
    Prediction,
)
from spanbert_fast.tasks.classify_reading import GLUE, Text


def written(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def rows(task: Classification, path) -> list:
    """(id, texts, label) of each example, or (line, reason) of a bad one."""
    return [
        (int(found.place.rsplit(":", 1)[1]), found.reason)
        if isinstance(found, Bad)
        else (found.id, found.texts, found.label)
        for found in task.parse(path)
    ]


# The first lines of GLUE's files, with our own texts: header, row, and the expected example.
GLUE_ROWS = {
    "cola": ("", "gj04\t0\t*\tThe sea the.", ("0", ("The sea the.",), "0")),
    "sst2": ("sentence\tlabel", 'an "odd film \t1', ("0", ('an "odd film ',), "1")),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t17\t18\t"So it is , " he said .\tIt is so "',
        ("0", ('"So it is , " he said .', 'It is so "'), "1"),
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "4\tmain\tf\t2012\t1\tnone\tnone\tA man sings.\tA man sang.\t3.800",
        ("4", ("A man sings.", "A man sang."), 3.8),
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "77\t1\t2\tWhy rain?\t\t0",
        ("77", ("Why rain?", ""), "0"),
    ),
    "mnli": (
        "index\tpromptID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
        "9\t3\tfiction\tIt rains.\tIt is dry.\tneutral\tcontradiction",
        ("9", ("It rains.", "It is dry."), "contradiction"),
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel",
        "0\tWhere?\tIn Rome.\tentailment",
        ("0", ("Where?", "In Rome."), "entailment"),
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel",
        "1\tHe sleeps.\tHe wakes.\tnot_entailment",
        ("1", ("He sleeps.", "He wakes."), "not_entailment"),
    ),
}


@pytest.mark.parametrize("name", GLUE)
def test_reads_glue(tmp_path, name):
    header, row, expected = GLUE_ROWS[name]
    task = Classification(glue_task=name)
    text = "\n".join([header, row, ""])
    assert rows(task, written(tmp_path / "train", text)) == [expected]
    # a test file has no labels; a row without an index column gets its number as the index
    if name == "cola":
        text = f"index\tsentence\n12\t{expected[1][0]}\n"
        expected = ("12", *expected[1:])
    else:
        names = header.removeprefix("\ufeff").split("\t")
        kept = [i for i, column in enumerate(names) if column != GLUE[name].label_column]
        text = "\n".join("\t".join(line.split("\t")[i] for i in kept) for line in (header, row))
    path = written(tmp_path / "test.tsv", text)
    assert rows(task, path) == [(*expected[:2], None)]
    assert not task.has_answers(task.read(path).items)


def test_reads_csv(tmp_path):
    text = (
        "id,sentence1,label,sentence2\r\n"
        'a,"He said ""no"", twice",yes,"two\nlines"\r\n\r\n'
        "b,one,no\r\n"
        'c,"an ""open" quote,yes,x\r\n'
        "d,one,,two\r\n"
        "e, ,no,\r\n"
        "f,one,no,two\r\n"
    )
    assert rows(Classification(), written(tmp_path / "a.csv", text)) == [
        ("a", ('He said "no", twice', "two\nlines"), "yes"),
        (5, "has 3 columns, not 4: id, sentence1, label, sentence2"),
        (6, "not CSV (',' expected after '\"')"),
        (7, "the label must be a string or a number, got ''"),
        (8, "sentence1 and sentence2 must not be blank"),
        ("f", ("one", "two"), "no"),
    ]
    named = Classification(text_columns=["sentence2"], label_column="id")
    assert rows(named, tmp_path / "a.csv")[0] == ("a", ("two\nlines",), "a")
    other = Classification(text_columns=["x", "y"])
    assert rows(other, tmp_path / "a.csv")[0] == (
        2,
        "needs the column x+y, has id, sentence1, label, sentence2",
    )
    for header, message in (
        ("a,b,a\n", "a.csv:1: .* a column twice: a, b, a"),
        ('"a"b\n', ":1: not CSV"),
    ):
        with pytest.raises(DataError, match=message):
            Classification().read(written(tmp_path / "a.csv", header))


def test_reads_a_long_document_from_csv(tmp_path):
    """By default, csv refuses cells of more than 131,072 characters."""
    long = "word " * 100_000
    path = written(tmp_path / "a.csv", f'text,label\n"{long}",yes\nshort,no\n')
    assert [item.texts for item in Classification().read(path).items] == [(long,), ("short",)]


def test_reads_a_file_of_another_system(tmp_path):
    """A byte order mark and carriage returns are not part of the data."""
    for name, text in (
        ("a.csv", "text,label\r\na b,x\r\n"),
        ("a.tsv", "text\tlabel\r\na b\tx\r\n"),
    ):
        assert rows(Classification(), written(tmp_path / name, "\ufeff" + text)) == [
            ("0", ("a b",), "x")
        ]


def test_reads_tsv(tmp_path):
    text = 'text\tlabel\n"quoted" text\t 1 \nragged\n\nsecond\t0\n'
    with gzip.open(tmp_path / "a.tsv.gz", "wt") as file:
        file.write(text)
    assert rows(Classification(), tmp_path / "a.tsv.gz") == [
        ("0", ('"quoted" text',), "1"),
        (3, "has 1 columns, not 2: text, label"),
        ("2", ("second",), "0"),
    ]
    with pytest.raises(DataError, match="a.tsv.gz:3: has 1 columns"):
        Classification().read(tmp_path / "a.tsv.gz")
    items, skipped = Classification().read(tmp_path / "a.tsv.gz", skip_bad=True)
    assert (len(items), skipped) == (2, 1)


def test_reads_json_lines(tmp_path):
    lines = [
        {"text": "a", "label": "x", "id": "one\ttwo"},
        {"text1": "a", "text2": "b", "label": 3},
        {"sentence": "a", "label": True},
        {"sentence1": "a", "sentence2": "b", "label": None, "idx": 7},
        {"text": "a"},
        {"body": "a"},
        {"text": 3},
        {"text": "a", "label": ["x"]},
        {"text": "\ud83d"},
        [],
    ]
    text = "\n\n".join(map(json.dumps, lines)) + "\nnot"
    assert rows(Classification(), written(tmp_path / "a.jsonl", text)) == [
        ("one two", ("a",), "x"),
        ("1", ("a", "b"), "3"),
        ("2", ("a",), "true"),
        ("7", ("a", "b"), None),
        ("4", ("a",), None),
        (
            11,
            "needs the column text1+text2 or sentence1+sentence2 or premise+hypothesis or "
            "question1+question2 or question+sentence or question+passage or text or sentence, "
            "has body; --text-columns names others",
        ),
        (13, "text must be a string, got 3"),
        (15, "the label must be a string or a number, got ['x']"),
        (17, "text has half a surrogate pair"),
        (19, "must be an object, got []"),
        (20, "not JSON (Expecting value: line 1 column 1 (char 0))"),
    ]


def test_reads_plain_text(tmp_path):
    path = written(tmp_path / "a.txt", "pos\tgood\nneg\tbad\nugly\n")
    assert rows(Classification(), path) == [
        ("0", ("good",), "pos"),
        ("1", ("bad",), "neg"),
        (3, "has 1 columns, not 2: label, text"),
    ]
    pairs = written(tmp_path / "b.txt", "1\ta\tb\r\n0\tc\td")
    assert rows(Classification(), pairs) == [("0", ("a", "b"), "1"), ("1", ("c", "d"), "0")]
    assert rows(Classification(), written(tmp_path / "c.txt", "a b\n")) == [("0", ("a b",), None)]
    with pytest.raises(UsageError, match="--text-columns, --label-column: .*a.txt has no header"):
        Classification(text_columns=["x"]).read(path)
    with pytest.raises(DataError, match=r"one of .csv, .*, .txt, got '.xml'; pandas"):
        Classification().read(tmp_path / "a.xml")
    with pytest.raises(DataError, match="there is no example in it"):
        Classification().read(written(tmp_path / "d.txt", "\n"))


def test_numbers(tmp_path):
    path = written(tmp_path / "a.csv", "text,label\na,2.5\nb,-1\nc,many\nd,nan\n")
    task = Classification(regression=True)
    assert rows(task, path) == [
        ("0", ("a",), 2.5),
        ("1", ("b",), -1.0),
        (4, "the label must be a number, got 'many'"),
        (5, "the label must be a number, got 'nan'"),
    ]
    items = task.read(path, skip_bad=True).items
    task.learn(items)
    task.check_labels(items)
    assert task.labels is None


def test_learns_labels():
    def texts(*labels):
        return [Text(str(i), f"f:{i}", ("x",), label) for i, label in enumerate(labels)]

    task = Classification()
    task.learn(texts("b", "10", "9", "a", "9"))
    assert task.labels == ["9", "10", "a", "b"]
    long = Classification()
    long.learn(texts("9" * 5000, "1"))  # int() refuses this many digits
    assert long.labels == ["1", "9" * 5000]
    task.check_labels(texts("a", None))
    with pytest.raises(DataError, match="f:1: the label c is not in the training data"):
        task.check_labels(texts("a", "c"))
    assert task.check_labels(texts("a", "c"), "f", skip_bad=True).skipped == 1
    with pytest.raises(DataError, match="f:0: every label is a"):
        task.learn(texts("a", "a"))
    for call in (task.learn, lambda items: task.metrics(items, [Prediction("a", 0)] * 2)):
        with pytest.raises(DataError, match="f:1: has no label"):
            call(texts("a", None))
