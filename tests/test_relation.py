"""Relations: the three formats, entity tokens, windows around them, the scorers, each by hand."""

import argparse
import json
import lzma

import numpy as np
import pytest
from transformers import BertTokenizer

from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks import task_class
from spanbert_fast.tasks.base import Bad
from spanbert_fast.tasks.relation import Relation
from spanbert_fast.tasks.relation_metrics import micro_scores, semeval_scores
from spanbert_fast.tasks.relation_reading import Mention, Pair

LETTERS = "abcdefghijklmnopqrstuvwxyz()"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENTITY_TOKENS = [f"[{side}{role}{kind}]" for side in ("", "/") for role in ("SUBJ", "OBJ")
                 for kind in ("", "-X", "-Y")]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    """Every word is one letter and one piece."""
    made = BertTokenizer(vocab={t: i for i, t in enumerate([*SPECIAL, *LETTERS])})
    made.add_tokens(ENTITY_TOKENS, special_tokens=True)
    return made


def written(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def tacred(**fields) -> dict:
    item = {
        "id": "a1", "token": "Ann -LRB- 9 -RRB- left New York".split(), "relation": "per:city",
        "subj_start": 0, "subj_end": 0, "subj_type": "PERSON",
        "obj_start": 5, "obj_end": 6, "obj_type": "CITY",
    }  # fmt: skip
    return {**item, **fields}


def words_of(pair: Pair) -> tuple[str, str]:
    return tuple(pair.text[m.start : m.end] for m in (pair.subject, pair.object))


def only_bad(task: Relation, path) -> Bad:
    (bad,) = (item for item in task.parse(path) if isinstance(item, Bad))
    return bad


# Reading


@pytest.mark.parametrize("as_lines", [False, True])
def test_reads_tacred(tmp_path, as_lines):
    items = [tacred(), tacred(id="a2", relation="no_relation"), tacred(id=3)]
    del items[2]["relation"]
    text = "\n".join(map(json.dumps, items)) if as_lines else json.dumps(items, indent=1)
    task = Relation()
    pairs = task.read(written(tmp_path / "t.json", text)).items
    assert (task.format, task.entities) == ("tacred", "mask")
    assert [(p.id, p.relation) for p in pairs] == [
        ("a1", "per:city"), ("a2", "no_relation"), ("3", None)
    ]  # fmt: skip
    assert pairs[0].text == "Ann ( 9 ) left New York"
    assert words_of(pairs[0]) == ("Ann", "New York")
    assert (pairs[0].subject.kind, pairs[0].object.kind) == ("PERSON", "CITY")
    assert pairs[1].place.endswith("t.json:2" if as_lines else "t.json, example 1")
    assert not task.has_answers(pairs) and task.has_answers(pairs[:2])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"obj_end": 7}, "the entity 5 to 7 is not within its sentence, 0 to 6"),
        ({"subj_start": -1}, "the entity -1 to 0 is not within"),
        ({"obj_start": 6, "obj_end": 5}, "the entity 6 to 5 is not within"),
        ({"obj_start": None}, "obj_start, obj_end and obj_type must be two whole numbers and a"),
        ({"subj_type": None}, "numbers and a string, got [0, 0, None]"),
        ({"token": ["a\ud83d"] * 7}, '"token" has half a surrogate pair'),
        ({"subj_type": "A B"}, "an entity type must have no blanks or brackets, got 'A B'"),
        ({"token": "Ann left"}, '"token" must be a list of words'),
        ({"token": []}, "the entity 0 to 0 is not within"),
        ({"relation": 3}, '"relation" must be a string, got 3'),
    ],
)
def test_bad_tacred(tmp_path, fields, reason):
    path = written(tmp_path / "t.json", json.dumps([tacred(), tacred(**fields), tacred()]))
    bad = only_bad(Relation(), path)
    assert bad.place.endswith("t.json, example 1") and reason in bad.reason
    assert len(Relation().read(path, skip_bad=True).items) == 2
    with pytest.raises(DataError, match="t.json, example 1: "):
        Relation().read(path)


SEMEVAL = (
    '7\t"The <e1>tall child</e1> was put in the <e2>cradle</e2>."\r\n'
    "Entity-Destination(e1,e2)\r\nComment: quite so\r\n\r\n"
    '8\t""So," he said, "<e2> wax</e2>es are in <e1>tins</e1>""\r\nOther\r\nComment:\r\n\r\n'
)


def test_reads_semeval(tmp_path):
    task = Relation()
    (tmp_path / "a.TXT.xz").write_bytes(lzma.compress(SEMEVAL.encode()))
    pairs = task.read(tmp_path / "a.TXT.xz").items
    assert (task.format, task.entities) == ("semeval", "markers")
    assert [(p.id, p.relation) for p in pairs] == [
        ("7", "Entity-Destination(e1,e2)"), ("8", "Other")
    ]  # fmt: skip
    assert pairs[0].text == "The tall child was put in the cradle."
    assert pairs[1].text == '"So," he said, " waxes are in tins"'
    assert [words_of(p) for p in pairs] == [("tall child", "cradle"), ("tins", "wax")]
    assert pairs[1].place.endswith("a.TXT.xz:5")
    # sentences alone, for predict, without empty lines, without a line feed at the end
    alone = "\n".join(line for line in SEMEVAL.split("\r\n") if "\t" in line)
    pairs = task.read(written(tmp_path / "b.txt", alone)).items
    assert [(p.id, p.relation) for p in pairs] == [("7", None), ("8", None)]


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("</e2>.", ".", 1, "must have one <e1>..</e1> and one <e2>..</e2>"),
        ("<e1>tall child</e1>", "<e1> </e1>", 1, "must have one <e1> with words in it"),
        ("The ", "<e2>The</e2> ", 1, "must have one <e2> with words in it"),
        ("(e1,e2)", "(e1, e2)", 2, "must be one relation, Other or NAME(e1,e2) or NAME(e2,e1)"),
        ("Comment: quite so", "Other", 3, "must be one relation"),
        ("\r\n\r\n8", "\r\n\r\nstray\r\n8", 5, "must be a number, a tab and a sentence, got"),
    ],
)  # fmt: skip
def test_bad_semeval(tmp_path, old, new, line, reason):
    assert old in SEMEVAL
    path = written(tmp_path / "a.txt", SEMEVAL.replace(old, new, 1))
    bad = only_bad(Relation(), path)
    assert bad.place.endswith(f"a.txt:{line}") and bad.reason.startswith(reason)
    assert Relation().read(path, skip_bad=True).items[-1].id == "8"


def document(**fields) -> dict:
    return {
        "doc_key": "d", "sentences": [["we", "use", "deep", "nets"], [], ["nets", "see", "cats"]],
        "ner": [[[1, 1, "Task"], [2, 3, "Method"]], [], [[4, 4, "Method"], [6, 6, "Task", 0.9]]],
        "relations": [[[2, 3, 1, 1, "USED-FOR"]], [], []], **fields,
    }  # fmt: skip


def test_reads_scierc(tmp_path):
    unlabelled = document(doc_key="e")
    del unlabelled["relations"]
    text = json.dumps(document()) + "\n\n" + json.dumps(unlabelled)
    task = Relation()
    pairs = task.read(written(tmp_path / "a.jsonl", text)).items
    assert (task.format, task.entities) == ("scierc", "mask")
    assert [(p.id, *words_of(p), p.subject.kind, p.relation) for p in pairs[:4]] == [
        ("d:1-1,2-3", "use", "deep nets", "Task", "no_relation"),
        ("d:2-3,1-1", "deep nets", "use", "Method", "USED-FOR"),
        ("d:4-4,6-6", "nets", "cats", "Method", "no_relation"),
        ("d:6-6,4-4", "cats", "nets", "Task", "no_relation"),
    ]
    assert [p.relation for p in pairs[4:]] == [None] * 4
    assert pairs[2].place.endswith("a.jsonl:1, sentence 2")


@pytest.mark.parametrize(
    ("fields", "where", "reason", "left"),
    [
        ({"ner": [[[1, 4, "Task"]], [], []], "relations": None}, ", sentence 0",
         "the entity 1 to 4 is not within its sentence, 0 to 3", 0),
        ({"relations": [[[2, 3, 0, 0, "R"]], [], []]}, ", sentence 0",
         "has a relation of [2, 3, 0, 0], which are no two of its entities", 2),
        ({"relations": [[[2, 3, 2, 3, "R"]], [], []]}, ", sentence 0", "which are no two", 2),
        ({"relations": [[], [], [[4, 4, 6, 6, "R"], [4, 4, 6, 6, "S"]]]}, ", sentence 2",
         "has two relations of [4, 4, 6, 6]: R and S", 2),
        ({"relations": [[[2, 3, 1, "R"]], [], []]}, ", sentence 0",
         'a row of "relations" must be 4 whole numbers and a string', 2),
        ({"relations": [[]]}, "", 'has 3 sentences and 1 lists in "relations"', 0),
        ({"ner": [[], []]}, "", 'has 3 sentences and 2 lists in "ner"', 0),
        ({"sentences": [["a"], None, []]}, "", "a sentence must be a list of words", 0),
        ({"ner": None}, "", '"ner" must be a list, got \'None\'', 0),
    ],
)  # fmt: skip
def test_bad_scierc(tmp_path, fields, where, reason, left):
    path = written(tmp_path / "a.jsonl", "\n" + json.dumps(document(**fields)) + "\n")
    found = list(Relation().parse(path))
    (bad,) = (item for item in found if isinstance(item, Bad))
    assert bad.place.endswith("a.jsonl:2" + where) and reason in bad.reason
    assert len(found) - 1 == left  # the other sentence's pairs


def test_neither_format(tmp_path):
    for text in ("", "hello\n", "3 no tab"):
        with pytest.raises(DataError, match=":1: is none of the formats tacred, semeval, scierc"):
            Relation().read(written(tmp_path / "x", text))
    with pytest.raises(DataError, match="not JSON"):
        Relation().read(written(tmp_path / "x", '[{"id":'))
    path = written(tmp_path / "x", '{"id":\n3\n' + json.dumps(tacred()))
    found = list(Relation(format="tacred").parse(path))
    assert [f.place[-4:] for f in found] == ["/x:1", "/x:2", "/x:3"]
    assert (
        found[0].reason.startswith("not JSON") and found[1].reason == "must be an object, got '3'"
    )


def test_learns_relations_and_tokens(tmp_path):
    task = Relation()
    train = written(tmp_path / "a", json.dumps([tacred(), tacred(relation="no_relation")]))
    items = task.read(train).items
    task.learn(items)
    assert task.labels == ["no_relation", "per:city"]
    assert task.special_tokens(items) == task.entity_tokens == ["[OBJ-CITY]", "[SUBJ-PERSON]"]
    assert Relation(**task.state()).state() == task.state()
    again = Relation(**task.state())
    bad = only_bad(again, written(tmp_path / "b", json.dumps([tacred(subj_type="CITY")])))
    assert bad.reason == "no entity of the training data gives the token [SUBJ-CITY]"
    dev = task.read(written(tmp_path / "c", json.dumps([tacred(), tacred(relation="new")]))).items
    with pytest.raises(DataError, match="c, example 1: the relation new is not in the training"):
        task.check_labels(dev)
    with pytest.raises(DataError, match="every relation is per:city"):
        task.learn(items[:1])
    items[1].relation = None
    with pytest.raises(DataError, match="example 1: has no relation"):
        task.learn(items)
    with pytest.raises(DataError, match="example 1: has no relation"):
        task.metrics(items, ["no_relation"] * 2)


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
        ("mask", (0, 11, "X"), (4, 5, "Y"), "[SUBJ-X] [OBJ-Y]"),  # one in the other
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
    example.relation = None
    (window,) = task.windows(example, tokenizer)
    assert set(window) == {"input_ids", "token_type_ids"}


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (13, "f g h [S] j k l [O] n o p"),
        (12, "f g h [S] j k l [O] n o"),  # of two as near the earlier
        (8, "h [S] j l [O] n"),  # the middle is cut where it is longer than there is room
        (20, "b c d e f g h [S] j k l [O] n o p q r s"),
        (24, "a b c d e f g h [S] j k l [O] n o p q r s t u v"),  # what one side lacks
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
    """Random sentences; what is kept is all entity pieces, in order, up to the window's length."""
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
    """Counted by hand by the rules in the official scorer's description."""
    gold = ["A(e1,e2)", "A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "Other", "Other"]
    predicted = ["A(e1,e2)", "A(e2,e1)", "Other", "A(e2,e1)", "B(e2,e1)", "Other"]
    got = semeval_scores(gold, predicted)
    # A: 1 right of 3 predicted (one in the wrong direction) and of 3 gold; B: 0 of 1 and of 1
    macro = dict.fromkeys(("f1", "precision", "recall"), 100 / 6)
    assert got == pytest.approx({**macro, "micro_f1": 25, "accuracy": 100 / 3})
    # a relation that the gold data lacks is no part of the means, but still wrong
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
