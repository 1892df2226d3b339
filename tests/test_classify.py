"""Classification: windows, metrics and submissions, each checked against its definition."""

import argparse
import math

import numpy as np
import pytest
from transformers import BertTokenizer

from spanbert_fast.errors import UsageError
from spanbert_fast.tasks import task_class
from spanbert_fast.tasks.classify import (
    Classification,
    Prediction,
    class_figures,
    number_figures,
)
from spanbert_fast.tasks.classify_reading import Text

# Windows


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer for which every letter is a piece."""
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
        # pieces go one by one from the longer text; from the second, if both are equally long
        longest = max(kept)
        kept[len(kept) - 1 - kept[::-1].index(longest)] -= 1
    expected, kinds = ["[CLS]"], [0]
    for kind, (text, n) in enumerate(zip(texts, kept, strict=True)):
        expected += [*(("##" if i else "") + letter for i, letter in enumerate(text[:n])), "[SEP]"]
        kinds += [kind] * (n + 1)
    assert tokenizer.convert_ids_to_tokens(window["input_ids"]) == expected
    assert window["token_type_ids"] == kinds
    assert window["_cut"] == sum(lengths) - sum(kept)
    assert window.get("labels") == (None if label is None else 1)
    if max_seq_length == 40 and all(lengths):  # as the tokenizer itself encodes a pair
        whole = tokenizer(*texts)
        assert (window["input_ids"], kinds) == (whole["input_ids"], whole["token_type_ids"])


def test_a_label_that_was_not_learnt_is_measured(tokenizer):
    task = Classification(labels=["yes", "no"])
    example = Text("0", "f:1", ("a",), "perhaps")
    (window,) = task.windows(example, tokenizer)
    assert "labels" not in window
    assert task.metrics([example], [Prediction("no", 0)])["accuracy"] == 0


def test_the_label_of_a_number_is_a_float(tokenizer):
    (window,) = Classification(glue_task="stsb").windows(
        Text("0", "f:1", ("a", "b"), 3.0), tokenizer
    )
    assert window["labels"] == 3.0 and isinstance(window["labels"], float)


# Results


def test_class_figures_by_hand():
    gold, predicted = list("11100000"), list("11010000")
    # class 1: 2 right, 1 wrong, 1 missed; class 0: 4 right
    mcc = (2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5)
    expected = {"accuracy": 75, "f1": 100 * 2 / 3, "mcc": 100 * mcc}
    assert class_figures(gold, predicted, ["0", "1"]) == pytest.approx(expected)
    # f1 is that of the second label
    assert class_figures(gold, predicted, ["1", "0"])["f1"] == pytest.approx(80)
    # with three classes, the mean of 2/3, 1/2 and 1
    got = class_figures(list("aabbc"), list("aaabc"), list("abc"))
    assert got["f1"] == pytest.approx(100 * (4 / 5 + 2 / 3 + 1) / 3)
    # R_K of the confusion ((2, 0, 0), (1, 1, 0), (0, 0, 1)): (c s - sum p g) over the two spreads
    spreads = (25 - (9 + 1 + 1)) * (25 - (4 + 4 + 1))
    assert got["mcc"] == pytest.approx(100 * (4 * 5 - (3 * 2 + 1 * 2 + 1 * 1)) / math.sqrt(spreads))
    assert class_figures(["0", "0"], ["0", "0"], ["0", "1"]) == {"accuracy": 100, "f1": 0, "mcc": 0}
    # predict meets a gold label that the model does not know
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
    # equal numbers share their rank: 1, 2.5, 2.5, 4 against 1, 2, 3, 4
    tied = number_figures([1.0, 2.0, 2.0, 9.0], gold)["spearman"]
    assert tied == pytest.approx(100 * 4.5 / math.sqrt(4.5 * 5))
    assert number_figures([1e300, -1e300, 5e299], [1e-300, -1e-300, 5e-301])["pearson"] == 100
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
