"""Relations: the three formats, and the errors that bad data gives."""

import json
import lzma

import pytest

from relation_cases import SEMEVAL, tacred, written
from spanbert_fast.errors import DataError
from spanbert_fast.tasks.base import Bad
from spanbert_fast.tasks.relation import Relation
from spanbert_fast.tasks.relation_reading import Pair


def words_of(pair: Pair) -> tuple[str, str]:
    return tuple(pair.text[m.start : m.end] for m in (pair.subject, pair.object))


def only_bad(task: Relation, path) -> Bad:
    (bad,) = (item for item in task.parse(path) if isinstance(item, Bad))
    return bad


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
        ({"subj_type": "A[B"}, "an entity type must have letters and no brackets, got 'A[B'"),
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
    # sentences without relations, for predict, without empty lines or a last line feed
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
    assert len(found) - 1 == left  # the pairs of the other sentence


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
    assert task.check_labels(dev, "c", skip_bad=True) == (dev[:1], 1)
    with pytest.raises(DataError, match="every relation is per:city"):
        task.learn(items[:1])
    items[1].relation = None
    with pytest.raises(DataError, match="example 1: has no relation"):
        task.learn(items)
    with pytest.raises(DataError, match="example 1: has no relation"):
        task.metrics(items, ["no_relation"] * 2)
