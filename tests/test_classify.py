"""Classification: files, windows, figures, submissions, each against its definition."""

import argparse
import gzip
import json
import math

import numpy as np
import pytest
from transformers import BertTokenizer

from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks import task_class
from spanbert_fast.tasks.base import Bad
from spanbert_fast.tasks.classify import (
    Classification,
    Prediction,
    class_figures,
    number_figures,
)
from spanbert_fast.tasks.classify_reading import GLUE, Text


def written(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def rows(task: Classification, path) -> list:
    """(id, texts, label) of each example, or (line, reason) of what is bad."""
    return [
        (int(found.place.rsplit(":", 1)[1]), found.reason)
        if isinstance(found, Bad)
        else (found.id, found.texts, found.label)
        for found in task.parse(path)
    ]


# Reading

# The first lines of GLUE's files, with texts of our own: header, row, what is read of it.
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
    # the test file has no labels; the row's number is its index where no column says one
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
        (11, "needs the column text1+text2 or sentence1+sentence2 or text or sentence, has body"),
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
    with pytest.raises(DataError, match=r"one of .csv, .tsv, .jsonl, .txt, got '.xml'"):
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
    task.check_labels(texts("a", None))
    with pytest.raises(DataError, match="f:1: the label c is not in the training data"):
        task.check_labels(texts("a", "c"))
    with pytest.raises(DataError, match="f:0: every label is a"):
        task.learn(texts("a", "a"))
    for call in (task.learn, lambda items: task.metrics(items, [Prediction("a", 0)] * 2)):
        with pytest.raises(DataError, match="f:1: has no label"):
            call(texts("a", None))


# Windows


@pytest.fixture(scope="module")
def tokenizer():
    """Every letter is a piece."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *letters, *("##" + letter for letter in letters)]
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})


@pytest.mark.parametrize("label", [None, "no"])
@pytest.mark.parametrize("lengths", [(3,), (9,), (0, 4), (4, 0), (2, 9), (9, 2), (9, 9), (4, 5)])
@pytest.mark.parametrize("max_seq_length", [5, 6, 9, 12, 40])
def test_windows(tokenizer, lengths, max_seq_length, label):
    texts = tuple(
        letters[:n] for letters, n in zip(("abcdefghi", "rstuvwxyz"), lengths, strict=False)
    )
    task = Classification(max_seq_length=max_seq_length, labels=["yes", "no"])
    (window,) = task.windows(Text("0", "f:1", texts, label), tokenizer)
    kept = list(lengths)
    while sum(kept) + len(kept) + 1 > max_seq_length:
        longest = max(kept)  # one by one, of two as long from the second
        kept[len(kept) - 1 - kept[::-1].index(longest)] -= 1
    expected, kinds = ["[CLS]"], [0]
    for kind, (text, n) in enumerate(zip(texts, kept, strict=True)):
        expected += [*(("##" if i else "") + letter for i, letter in enumerate(text[:n])), "[SEP]"]
        kinds += [kind] * (n + 1)
    assert tokenizer.convert_ids_to_tokens(window["input_ids"]) == expected
    assert window["token_type_ids"] == kinds
    assert window["_cut"] == sum(lengths) - sum(kept)
    assert window.get("labels") == (None if label is None else 1)
    if max_seq_length == 40 and all(lengths):  # as the tokenizer itself makes it
        whole = tokenizer(*texts)
        assert (window["input_ids"], kinds) == (whole["input_ids"], whole["token_type_ids"])


def test_the_label_of_a_number_is_a_float(tokenizer):
    (window,) = Classification(glue_task="stsb").windows(
        Text("0", "f:1", ("a", "b"), 3.0), tokenizer
    )
    assert window["labels"] == 3.0 and isinstance(window["labels"], float)


# Results


def test_class_figures_by_hand():
    gold, predicted = list("11100000"), list("11010000")
    # of 1: 2 right, 1 wrong, 1 missed; of 0: 4 right
    mcc = (2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5)
    expected = {"accuracy": 75, "f1": 100 * 2 / 3, "mcc": 100 * mcc}
    assert class_figures(gold, predicted, ["0", "1"]) == pytest.approx(expected)
    # the second label is the one that f1 is of
    assert class_figures(gold, predicted, ["1", "0"])["f1"] == pytest.approx(80)
    # three classes: the mean of 2/3, 1/2 and 1
    got = class_figures(list("aabbc"), list("aaabc"), list("abc"))
    assert got["f1"] == pytest.approx(100 * (4 / 5 + 2 / 3 + 1) / 3)
    assert class_figures(["0", "0"], ["0", "0"], ["0", "1"]) == {"accuracy": 100, "f1": 0, "mcc": 0}
    # a gold label that the model does not know, where predict measures
    assert class_figures(["x", "1"], ["0", "1"], ["0", "1"])["f1"] == 100


def test_number_figures_by_hand():
    gold, predicted = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 8.0]
    centred = np.array(predicted) - 3.5
    covariance = float(np.dot([-1.5, -0.5, 0.5, 1.5], centred))
    expected = {
        "pearson": 100 * covariance / math.sqrt(5 * float(centred @ centred)),
        "spearman": 100 * (1 - 6 * 2 / (4 * 15)),
    }
    assert number_figures(gold, predicted) == pytest.approx(expected)
    assert number_figures(gold, [2.0] * 4) == {"pearson": 0, "spearman": 0}
    assert number_figures([1.0], [1.0]) == {"pearson": 0, "spearman": 0}


@pytest.mark.parametrize(
    ("options", "figures"),
    [
        ({}, ("accuracy",)),
        ({"regression": True}, ("pearson", "spearman")),
        ({"score": "f1"}, ("f1",)),
        ({"glue_task": "cola"}, ("mcc",)),
        ({"glue_task": "mrpc"}, ("accuracy", "f1")),
        ({"glue_task": "mrpc", "score": "f1"}, ("f1",)),
        ({"glue_task": "stsb"}, ("pearson", "spearman")),
        ({"glue_task": "stsb", "score": "pearson"}, ("pearson",)),
    ],
)
def test_the_score(options, figures):
    task = Classification(**options, labels=["0", "1"])
    assert task.score_figures == figures
    gold = [1.0, 0.0, 0.0, 0.0] if task.regression else list("1000")
    predicted = [2.0, 3.0, 1.0, 0.5] if task.regression else list("1100")
    examples = [Text("0", "f:1", ("x",), label) for label in gold]
    predictions = [Prediction(v, cut) for v, cut in zip(predicted, (0, 3, 1, 0), strict=True)]
    got = task.metrics(examples, predictions)
    assert got["score"] == pytest.approx(sum(got[name] for name in figures) / len(figures))
    assert got["truncated"] == 2
    names = ("pearson", "spearman") if task.regression else ("accuracy", "f1", "mcc")
    assert set(got) == {"score", "truncated", *names}


def test_decodes_and_writes(tmp_path):
    example = Text("3", "f:1", ("x",), None)
    task = Classification(labels=["no", "yes"])
    outputs = [{"logits": np.array([-1, 2], np.float32)}]
    prediction = task.decode(example, [{"_cut": 4}], outputs)
    assert prediction == ("yes", 4)
    (path,) = task.write(tmp_path / "out.tsv", [example], [prediction])
    assert path.read_text() == "index\tprediction\n3\tyes\n"
    task = Classification(glue_task="stsb")
    prediction = task.decode(example, [{"_cut": 0}], [{"logits": np.array([2.71828], np.float32)}])
    assert prediction.value == pytest.approx(2.71828)
    task.write(path, [example], [prediction])
    assert path.read_text() == "index\tprediction\n3\t2.718\n"


def test_options():
    assert task_class("classify") is Classification
    parser = argparse.ArgumentParser()
    Classification.add_arguments(parser)
    words = "--text-columns a b --label-column c --regression --score spearman".split()
    got = vars(parser.parse_args(words))
    task = Classification(**got, max_seq_length=64)
    assert task.state() == {**got, "max_seq_length": 64, "labels": None}
    assert Classification(**task.state()).state() == task.state()
    assert Classification(**Classification(glue_task="stsb").state()).regression
    for options, message in (
        ({"glue_task": "wnli"}, "--glue-task must be one of cola, .*, got wnli"),
        ({"text_columns": ["a", "b", "c"]}, "--text-columns must be one or two names, got 3"),
        ({"max_seq_length": 4}, "--max-seq-length must be at least 5, got 4"),
        ({"score": "pearson"}, "--score must be one of accuracy, f1, mcc here, got pearson"),
        ({"glue_task": "stsb", "score": "mcc"}, "--score must be one of pearson, spearman here"),
        ({"glue_task": "rte", "regression": True}, "--regression: the labels of rte are classes"),
    ):
        with pytest.raises(UsageError, match=message):
            Classification(**options)
