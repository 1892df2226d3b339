"""Relations: entity tokens, the windows around them, and the scorers, on examples by hand."""

import argparse
import json

import numpy as np
import pytest
from transformers import BertTokenizer

from relation_cases import SEMEVAL, tacred, written
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks import task_class
from spanbert_fast.tasks.relation import Relation
from spanbert_fast.tasks.relation_metrics import micro_scores, semeval_scores
from spanbert_fast.tasks.relation_reading import Mention, Pair

LETTERS = "abcdefghijklmnopqrstuvwxyz()"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENTITY_TOKENS = [f"[{side}{role}{kind}]" for side in ("", "/") for role in ("SUBJ", "OBJ")
                 for kind in ("", "-X", "-Y")]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer for which every word is one letter and one piece."""
    made = BertTokenizer(vocab={t: i for i, t in enumerate([*SPECIAL, *LETTERS])})
    made.add_tokens(ENTITY_TOKENS, special_tokens=True)
    return made


# Windows


def pair(text, subject, object, relation=None) -> Pair:
    return Pair("1", "f:1", text, Mention(*subject), Mention(*object), relation)


def pieces(task, example, tokenizer) -> str:
    (window,) = task.windows(example, tokenizer)
    assert len(window["input_ids"]) == len(window["token_type_ids"]) <= task.max_seq_length
    assert set(window["token_type_ids"]) == {0}
    return " ".join(tokenizer.convert_ids_to_tokens(window["input_ids"]))


@pytest.mark.parametrize(
    ("entities", "subject", "object", "expected"),
    [
        ("mask", (2, 5, "X"), (8, 9, "Y"), "a [SUBJ-X] d [OBJ-Y] f"),
        ("mask", (8, 9, "X"), (2, 5, "Y"), "a [OBJ-Y] d [SUBJ-X] f"),
        ("mask", (0, 1, None), (10, 11, None), "[SUBJ] b c d e [OBJ]"),
        ("mask", (2, 5, "X"), (4, 7, "Y"), "a [SUBJ-X] [OBJ-Y] e f"),  # overlapping
        ("mask", (0, 11, "X"), (4, 5, "Y"), "[SUBJ-X] [OBJ-Y]"),  # one inside the other
        ("markers", (2, 5, "X"), (8, 9, "Y"), "a [SUBJ-X] b c [/SUBJ-X] d [OBJ-Y] e [/OBJ-Y] f"),
        ("markers", (4, 5, None), (6, 7, None), "a b [SUBJ] c [/SUBJ] [OBJ] d [/OBJ] e f"),
        ("markers", (4, 5, "X"), (4, 9, "Y"), "a b [OBJ-Y] [SUBJ-X] c [/SUBJ-X] d e [/OBJ-Y] f"),
        ("markers", (8, 9, "X"), (4, 9, "Y"), "a b [OBJ-Y] c d [SUBJ-X] e [/SUBJ-X] [/OBJ-Y] f"),
        ("markers", (4, 5, "X"), (4, 5, "Y"), "a b [SUBJ-X] [OBJ-Y] c [/OBJ-Y] [/SUBJ-X] d e f"),
        ("markers", (2, 3, "X"), (3, 5, "Y"), "a [SUBJ-X] b [/SUBJ-X] [OBJ-Y] c [/OBJ-Y] d e f"),
    ],
)
def test_entity_tokens(tokenizer, entities, subject, object, expected):
    task = Relation(entities=entities)
    got = pieces(task, pair("a b c d e f", subject, object), tokenizer)
    assert got == f"[CLS] {expected} [SEP]"


def test_the_gold_label(tokenizer):
    task = Relation(entities="mask", labels=["no", "yes"])
    example = pair("a b c", (0, 1, "X"), (2, 3, "Y"), "yes")
    (window,) = task.windows(example, tokenizer)
    assert window["labels"] == 1
    for none in (None, "not learnt"):
        example.relation = none
        (window,) = task.windows(example, tokenizer)
        assert set(window) == {"input_ids", "token_type_ids"}


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (13, "f g h [S] j k l [O] n o p"),
        (12, "f g h [S] j k l [O] n o"),  # of two pieces at equal distance, the earlier
        (8, "h [S] j l [O] n"),  # the middle is cut if it does not fit
        (20, "b c d e f g h [S] j k l [O] n o p q r s"),
        # room that one side does not need goes to the other
        (24, "a b c d e f g h [S] j k l [O] n o p q r s t u v"),
        (99, "a b c d e f g h [S] j k l [O] n o p q r s t u v w x y z"),
    ],
)
def test_a_long_sentence_is_cut_around_its_entities(tokenizer, length, expected):
    text = " ".join("abcdefghijklmnopqrstuvwxyz")
    example = pair(text, (16, 17, "X"), (24, 25, "Y"))
    got = pieces(Relation(entities="mask", max_seq_length=length), example, tokenizer)
    expected = expected.replace("[S]", "[SUBJ-X]").replace("[O]", "[OBJ-Y]")
    assert got == f"[CLS] {expected} [SEP]"


@pytest.mark.parametrize("seed", range(20))
def test_no_cut_loses_an_entity(tokenizer, seed):
    """For random sentences, a window keeps all entity pieces, in order, and is full."""
    draw = np.random.default_rng(seed)
    words = draw.choice(list(LETTERS[:26]), size=draw.integers(2, 200))
    text = " ".join(words)
    places = draw.integers(0, len(words), size=2)
    first, second = ((2 * int(p), min(2 * int(p) + 5, len(text)), k)
                     for p, k in zip(places, "XY", strict=True))  # fmt: skip
    long = Relation(entities="markers", max_seq_length=500)
    whole = pieces(long, pair(text, first, second), tokenizer).split()
    task = Relation(entities="markers", max_seq_length=int(draw.integers(12, 60)))
    cut = pieces(task, pair(text, first, second), tokenizer).split()
    assert len(cut) == min(len(whole), task.max_seq_length)
    for name in ("SUBJ-X", "OBJ-Y"):
        spans = []
        for tokens in (whole, cut):
            span = tokens[tokens.index(f"[{name}]") : tokens.index(f"[/{name}]")]
            spans.append([token for token in span if token in LETTERS])
        assert spans[0] == spans[1] and spans[0]
    rest = iter(whole)
    assert all(token in rest for token in cut)  # a subsequence


def test_entities_longer_than_a_window(tokenizer):
    example = pair(" ".join("abcdefgh"), (0, 7, "X"), (8, 15, "Y"))
    task = Relation(entities="markers", max_seq_length=14)
    assert len(pieces(task, example, tokenizer).split()) == 14
    task.max_seq_length = 13
    with pytest.raises(DataError, match="f:1: its entities have 12 word pieces and markers, more"):
        list(task.windows(example, tokenizer))
    short = pair("a b", (0, 1, "X"), (2, 3, "Y"))
    with pytest.raises(DataError, match="f:1: its entities have 12 word pieces and markers, more"):
        task.fitting([short, example], tokenizer, "f")
    assert task.fitting([short, example], tokenizer, "f", skip_bad=True) == ([short], 1)
    masks = Relation(entities="mask", max_seq_length=8)
    assert masks.fitting([example], tokenizer, "f") == ([example], 0)
    with pytest.raises(ValueError, match="tokenizer must know .*, it has no \\[OBJ-Z\\]"):
        list(Relation(entities="mask").windows(pair("a b", (0, 1, "X"), (2, 3, "Z")), tokenizer))


# Results


def test_micro_scores():
    gold = ["a", "a", "b", "no_relation", "no_relation", "b"]
    predicted = ["a", "b", "b", "a", "no_relation", "no_relation"]
    got = micro_scores(gold, predicted)  # 2 right of 4 predicted and 4 gold; 3 of 6 pairs
    assert got == pytest.approx({"f1": 50, "precision": 50, "recall": 50, "accuracy": 50})
    got = micro_scores(gold, ["a", "x", *["no_relation"] * 4])
    assert got["precision"] == 50 and got["recall"] == 25
    assert got["f1"] == pytest.approx(100 * 2 * 0.5 * 0.25 / 0.75)
    none = micro_scores(gold, ["no_relation"] * 6)
    assert none == pytest.approx({"f1": 0, "precision": 100, "recall": 0, "accuracy": 100 / 3})
    assert micro_scores(["no_relation"], ["a"])["f1"] == 0


def test_semeval_scores():
    """Figures counted by hand, by the rules in the official scorer's description."""
    gold = ["A(e1,e2)", "A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "Other", "Other"]
    predicted = ["A(e1,e2)", "A(e2,e1)", "Other", "A(e2,e1)", "B(e2,e1)", "Other"]
    got = semeval_scores(gold, predicted)
    # A: 1 right of 3 predicted (one in the wrong direction) and of 3 gold; B: 0 of 1 and of 1
    macro = dict.fromkeys(("f1", "precision", "recall"), 100 / 6)
    assert got == pytest.approx({**macro, "micro_f1": 25, "accuracy": 100 / 3})
    # a relation that the gold data lacks is not in the means, but counts as wrong
    got = semeval_scores(["A(e1,e2)", "A(e1,e2)"], ["A(e1,e2)", "C(e1,e2)"])
    assert got["precision"] == 100 and got["recall"] == 50 and got["f1"] == pytest.approx(200 / 3)
    # the mean of F1s, not the F1 of means
    got = semeval_scores(["A(e1,e2)", "B(e1,e2)", "B(e1,e2)"], ["A(e1,e2)", "A(e1,e2)", "B(e1,e2)"])
    assert got["f1"] == pytest.approx(100 * 2 / 3) and got["precision"] == 75
    assert semeval_scores(["Other"], ["Other"])["f1"] == 0


def test_the_scorer_goes_by_the_format(tmp_path):
    task = Relation(format="semeval")
    items = task.read(written(tmp_path / "a", SEMEVAL)).items
    wrong_way = ["Entity-Destination(e2,e1)", "Other"]
    assert task.metrics(items, wrong_way)["f1"] == 0
    assert "micro_f1" in task.metrics(items, wrong_way)
    task = Relation()
    items = task.read(written(tmp_path / "b", json.dumps([tacred()]))).items
    assert "micro_f1" not in task.metrics(items, ["per:city"])
    assert task.metrics(items, ["per:city"])[task.metric] == 100


def test_decodes_and_writes(tmp_path, tokenizer):
    task = Relation(entities="mask", labels=["no_relation", "a", "b"])
    example = pair("a b", (0, 1, "X"), (2, 3, "Y"))
    windows = list(task.windows(example, tokenizer))
    logits = np.array([0.5, -1, 2], np.float32)
    assert task.decode(example, windows, [{"logits": logits}]) == "b"
    (path,) = task.write(tmp_path / "out.txt", [example, example], ["b", "no_relation"])
    assert path.read_text() == "1\tb\n1\tno_relation\n"


def test_options():
    assert task_class("relation") is Relation
    parser = argparse.ArgumentParser()
    Relation.add_arguments(parser)
    got = vars(parser.parse_args(["--format", "scierc", "--entities", "markers"]))
    assert Relation(**got).state() | got == Relation(**got).state()
    for options, message in (
        ({"format": "ace"}, "--format must be one of tacred, semeval, scierc, got ace"),
        ({"entities": "none"}, "--entities must be one of mask, markers, got none"),
        ({"max_seq_length": 7}, "--max-seq-length must be at least 8, got 7"),
    ):
        with pytest.raises(UsageError, match=message):
            Relation(**options)
