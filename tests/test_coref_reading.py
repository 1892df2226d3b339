"""Coreference files are read as they were written, and bad data is reported with its place."""

import json

import pytest

from spanbert_fast.errors import DataError
from spanbert_fast.tasks.coref import Coreference
from spanbert_fast.tasks.coref_documents import Document
from spanbert_fast.tasks.coref_text import sentences_of, words_of
from spanbert_fast.tasks.coref_writing import write_documents

CONLL = """#begin document (a/b); part 001
a/b 1 0 The - - - - - - - (0
a/b 1 1 cat - - - - - - - 0)
a/b 1 2 saw - - - - - - - -
a/b 1 3 its - - - - - - - (1|(0)
a/b 1 4 tail - - - - - - - 1)

a/b 1 0 It - - - - - - - (0)
#end document
"""
CONLLU = """# newdoc id = d1
# global.Entity = eid-etype-head-other
# sent_id = 1
1-2\tThecat\t_\t_\t_\t_\t_\t_\t_\t_
1\tThe\tthe\tDET\t_\t_\t2\tdet\t_\tEntity=(e1-animal-2-
2\tcat\tcat\tNOUN\t_\t_\t3\tnsubj\t_\tEntity=e1)|SpaceAfter=No
2.1\t_\t_\tPRON\t_\t_\t_\t_\t3:dep\tEntity=(e9-person-1-)
3\tsaw\tsee\tVERB\t_\t_\t0\troot\t_\t_
4\tits\tits\tPRON\t_\t_\t5\tdet\t_\tEntity=(e2-thing-2-(e1-animal-1-)
5\ttail\ttail\tNOUN\t_\t_\t3\tobj\t_\tEntity=e2)

"""
FOUND = [[(0, 1), (3, 3), (5, 5)], [(3, 4)]]


def read(tmp_path, name, text, **options):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return Coreference().read(path, **options)


def test_conll_2012(tmp_path):
    (document,) = read(tmp_path, "x.v4_gold_conll", CONLL).items
    assert document.id == "a/b" and document.part == "1"
    assert document.sentences == [["The", "cat", "saw", "its", "tail"], ["It"]]
    assert document.clusters == FOUND
    bare = "\n".join(
        line.rsplit(" ", 1)[0] + " -" if line[:1] == "a" else line for line in CONLL.splitlines()
    )
    assert read(tmp_path, "y.conll", bare + "\n").items[0].clusters is None


def test_corefud(tmp_path):
    (document,) = read(tmp_path, "x.conllu", CONLLU).items
    assert document.id == "d1"
    assert document.words == ["The", "cat", "saw", "its", "tail"]
    assert document.clusters == [[(0, 1), (3, 3)], [(3, 4)]]
    parted = CONLLU.replace("(e2-thing-2-", "(e2[1/2]-thing-2-").replace("=e2)", "=e2[1/2])")
    assert read(tmp_path, "y.conllu", parted).items[0].clusters == document.clusters


def test_json_lines(tmp_path):
    content = {"doc_key": "k", "sentences": [["a", "b"], ["c"]], "clusters": [[[0, 1], [2, 2]]]}
    (document,) = read(tmp_path, "x.jsonl", json.dumps(content) + "\n").items
    assert document.clusters == [[(0, 1), (2, 2)]] and document.id == "k"
    del content["clusters"]
    assert read(tmp_path, "y.jsonl", json.dumps(content)).items[0].clusters is None


def test_plain_text(tmp_path):
    text = 'Mr. J. Smith didn\'t go.  "Why?" he asked.\nHe paid $1,000.50\n\nin the U.S. army'
    (document,) = read(tmp_path, "x.txt", text).items
    assert document.clusters is None and document.id == "x"
    assert [" ".join(sentence) for sentence in document.sentences] == [
        "Mr . J . Smith did n't go .",
        '" Why ? " he asked .',
        "He paid $ 1,000.50",
        "in the U.S. army",
    ]


def test_words_and_sentences_by_rule():
    assert words_of("the dog's well-known o'clock -- wait...") == [
        "the", "dog", "'s", "well-known", "o'clock", "--", "wait", "...",
    ]  # fmt: skip
    assert len(sentences_of("It ended. Then I left. So did I. He too! 3 more? (Yes.) No")) == 7
    assert len(sentences_of("See no. 3 and fig. 4. of the book by A. Author, e.g. here")) == 1
    assert sentences_of("") == []


@pytest.mark.parametrize("name", ["out.conll", "out.jsonl"])
def test_what_is_written_is_read_again(tmp_path, name):
    # mentions of several clusters that cross, nest, share a word, and lie at the edges
    clusters = [[(0, 3), (5, 5), (5, 6)], [(2, 4), (0, 0)], [(3, 3), (2, 3)]]
    document = Document("d", "", "0", [["a", "<b>", "c", "d"], ["e", "f", "g"]], clusters)
    paths = write_documents(tmp_path / name, [document], [clusters])
    (again,) = Coreference().read(paths[0]).items
    assert again.sentences == document.sentences
    assert sorted(map(sorted, again.clusters)) == sorted(map(sorted, clusters))
    if name == "out.conll":
        assert [path.suffix for path in paths] == [".conll", ".jsonl", ".html"]
        page = paths[2].read_text()
        assert page.count("<span") == page.count("</span>") and "&lt;b&gt;" in page
        assert page.count("<sub>") == 7, "one label for each mention, however often it is cut"


BAD = {
    "unclosed": (CONLL.replace("tail - - - - - - - 1)", "tail - - - - - - - -"), 5, "opens a"),
    "unopened": (CONLL.replace("saw - - - - - - - -", "saw - - - - - - - 7)"), 4, "closes a"),
    "no bracket": (CONLL.replace("saw - - - - - - - -", "saw - - - - - - - 7"), 4, "must be like"),
    "columns": (CONLL.replace("saw - - - - - - - -", "saw"), 4, "4 columns"),
    "no end": (CONLL.replace("#end document\n", ""), 1, "has no #end document"),
    "empty": ("#begin document (e); part 000\n#end document\n", 1, "has no words"),
    "twice": (CONLL + CONLL, 10, "a document before it is called a/b part 1 too"),
    "a mention twice": (CONLL.replace("It - - - - - - - (0)", "It - - - - - - - (0)|(2)"), 1,
                        "has the mention [5, 5] twice"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_is_named_or_left_out(tmp_path, kind):
    text, line, reason = BAD[kind]
    with pytest.raises(DataError) as error:
        read(tmp_path, "x.conll", text)
    assert f"x.conll:{line}: " in str(error.value) and reason in str(error.value)
    good = CONLL.replace("a/b", "good")
    kept = read(tmp_path, "x.conll", good + text, skip_bad=True)
    assert kept.items[0].id == "good" and kept.skipped == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"sentences": [["a"]], "clusters": [[[0, 1]]]}, "not within its 1 words"),
        ({"sentences": [["a", "b", "c"]], "clusters": [[[0, 1], [1, 2]]]}, "crossing mentions"),
        ({"sentences": [["a"]], "clusters": [[]]}, "a cluster without a mention"),
        ({"sentences": [["a"]], "clusters": [[[0]]]}, r"must be \[first, last\], got \[0\]"),
        ({"sentences": ["a"]}, "must be lists of words"),
        ({"clusters": []}, "the list `sentences`"),
        ({"sentences": [[]]}, "has no words"),
    ],
)
def test_bad_json_lines(tmp_path, content, reason):
    with pytest.raises(DataError, match=f"x.jsonl:2: .*{reason}"):
        read(tmp_path, "x.jsonl", "\n" + json.dumps(content))
    with pytest.raises(DataError, match="x.jsonl:1: not JSON"):
        read(tmp_path, "x.jsonl", "{")
