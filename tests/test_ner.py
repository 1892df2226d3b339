"""Named entities: columns, schemes, windows, decoding, scores."""

import numpy as np
import pytest

from spanbert_fast.data.tokenizer import train_wordpiece
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks import entities
from spanbert_fast.tasks.ner import NamedEntities, Sentence


def tags(text: str) -> list[str]:
    return text.split()


# Expected values, counted by hand with conlleval's rules.
@pytest.mark.parametrize(
    ("gold", "predicted", "right", "of_gold", "of_predicted"),
    [
        ("B-A I-A O B-B", "B-A I-A O B-B", 2, 2, 2),
        ("B-A I-A O B-B", "B-A O O B-B", 1, 2, 2),  # a shortened entity is wrong
        ("B-A I-A I-A", "B-A B-A I-A", 0, 1, 2),
        ("O O", "O O", 0, 0, 0),
        ("B-A O", "O O", 0, 1, 0),
        ("O I-A I-A", "O B-A I-A", 1, 1, 1),  # an I after O begins an entity
        ("B-A I-B", "B-A B-B", 2, 2, 2),  # so does an I of another type
        ("B-A I-A", "B-B I-B", 0, 1, 1),  # the type counts
        ("B-A B-A", "B-A I-A", 0, 2, 1),
        ("", "", 0, 0, 0),
    ],
)
def test_scores_count_as_conlleval(gold, predicted, right, of_gold, of_predicted):
    got = entities.scores([tags(gold)], [tags(predicted)])
    precision = 100 * right / of_predicted if of_predicted else 0.0
    recall = 100 * right / of_gold if of_gold else 0.0
    assert got["precision"] == pytest.approx(precision)
    assert got["recall"] == pytest.approx(recall)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    assert got["f1"] == pytest.approx(f1)


def test_scores_add_up_over_sentences():
    gold = [tags("B-A O"), tags("B-A B-B"), tags("O")]
    predicted = [tags("B-A O"), tags("B-A O"), tags("B-A")]
    got = entities.scores(gold, predicted)
    assert got["precision"] == pytest.approx(200 / 3) and got["recall"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("scheme", "given", "bio"),
    [
        ("bio", "B-A I-A O B-A B-A", "B-A I-A O B-A B-A"),
        ("bio", "O I-A", "O B-A"),
        ("iob1", "I-A I-A B-A I-B", "B-A I-A B-A B-B"),
        ("iobes", "B-A I-A E-A S-A S-B O", "B-A I-A I-A B-A B-B O"),
        ("iobes", "B-A E-A E-A", "B-A I-A B-A"),
    ],
)
def test_schemes(scheme, given, bio):
    assert entities.to_bio(tags(given), scheme) == tags(bio)
    assert entities.scheme_of([tags(given)]) in (scheme, "iob1")


def test_a_tag_of_another_scheme():
    with pytest.raises(ValueError, match="a tag must be O or one of B/I-TYPE, got 'E-A'"):
        entities.to_bio(["E-A"], "bio")
    for bad in ("B", "I-", "X-A", "b-A", ""):
        with pytest.raises(ValueError, match="a tag must be"):
            entities.to_bio([bad], "bio")


def brute_force(logits, labels):
    """The best path among all allowed ones."""
    import itertools

    def allowed(path):
        previous = "O"
        for label in path:
            if label.startswith("I-") and (previous == "O" or previous[2:] != label[2:]):
                return False
            previous = label
        return True

    paths = itertools.product(range(len(labels)), repeat=len(logits))
    paths = [p for p in paths if allowed([labels[i] for i in p])]
    best = max(paths, key=lambda p: sum(logits[i, label] for i, label in enumerate(p)))
    return [labels[i] for i in best]


@pytest.mark.parametrize("words", [0, 1, 2, 5])
def test_best_path_is_the_best_allowed_one(words):
    labels = ["O", "B-A", "I-A", "B-B", "I-B"]
    draw = np.random.default_rng(words)
    for _ in range(20):
        logits = draw.normal(size=(words, 5)).astype(np.float32)
        assert entities.best_path(logits, labels) == brute_force(logits, labels)


# Reading

COLUMNS = "-DOCSTART- -X- O\n\nJohn NNP B-PER\nSmith NNP I-PER\nsang VBD O\n\nParis NNP B-LOC\n"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_columns(tmp_path):
    task = NamedEntities()
    items, skipped = task.read(write(tmp_path / "a.conll", COLUMNS))
    assert skipped == 0
    assert [(s.words, s.tags) for s in items] == [
        (["John", "Smith", "sang"], ["B-PER", "I-PER", "O"]),
        (["Paris"], ["B-LOC"]),
    ]
    assert items[1].place.endswith("a.conll:7")
    task.learn(items)
    assert task.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    # tabs, a separator that contains a tab, no line feed at the end, compressed
    import gzip

    path = tmp_path / "b.tsv.gz"
    path.write_bytes(gzip.compress(b"O'Neil x\tI-PER\n\t\nran\tO"))
    items, _ = NamedEntities().read(path)
    assert [(s.words, s.tags) for s in items] == [(["O'Neil x"], ["B-PER"]), (["ran"], ["O"])]


def test_words_alone_are_read_without_tags(tmp_path):
    items, _ = NamedEntities().read(write(tmp_path / "a.txt", "John\nran\n"))
    assert items[0].words == ["John", "ran"] and items[0].tags is None
    with pytest.raises(DataError, match=r"a.txt:1: has words and no tags to learn"):
        NamedEntities().learn(items)


BAD = [
    ("", "there is no example in it"),
    ("a O\nb\n", r":2: has 1 columns where the sentence began with 2"),
    ("a B-X\nb B\n", r":1: a tag must be O or one of B/I-TYPE, got 'B'"),
    ("a\tO\n\tO\n", r":2: has no word"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_data_names_its_place(text, message, tmp_path):
    path = write(tmp_path / "bad.conll", text)
    with pytest.raises(DataError, match=message):
        NamedEntities().read(path)
    if text:
        good = write(tmp_path / "some.conll", text + "\nfine O\n")
        assert [len(part) for part in (NamedEntities().read(good, skip_bad=True).items,)] == [1]
        assert NamedEntities().read(good, skip_bad=True).skipped == 1


def test_a_sentence_without_tags_in_a_tagged_file_is_bad(tmp_path):
    path = write(tmp_path / "bad.conll", "a O\n\nb\nc\n\nd B-X\n")
    with pytest.raises(DataError, match=r"bad.conll:3: has words and no tags"):
        NamedEntities().read(path)
    items, skipped = NamedEntities().read(path, skip_bad=True)
    assert [s.words for s in items] == [["a"], ["d"]] and skipped == 1


def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_the_data(tmp_path):
    (tmp_path / "dos.conll").write_bytes(b"\xef\xbb\xbf" + COLUMNS.replace("\n", "\r\n").encode())
    dos, _ = NamedEntities().read(tmp_path / "dos.conll")
    unix, _ = NamedEntities().read(write(tmp_path / "unix.conll", COLUMNS))
    assert [(s.words, s.tags) for s in dos] == [(s.words, s.tags) for s in unix]


def test_there_must_be_an_entity_to_learn(tmp_path):
    items = NamedEntities().read(write(tmp_path / "a.conll", "a O\nb O\n\nc O\n")).items
    with pytest.raises(DataError, match=r"a.conll:1: every tag is O"):
        NamedEntities().learn(items)


def test_an_unknown_type_on_dev(tmp_path):
    task = NamedEntities()
    task.learn(task.read(write(tmp_path / "a", "x B-A\n")).items)
    dev = task.read(write(tmp_path / "b", "x O\n\ny B-C\n")).items
    with pytest.raises(DataError, match=r"b:3: the entity type C is not in the training data"):
        task.check_labels(dev)
    assert task.check_labels(dev, "b", skip_bad=True) == (dev[:1], 1)
    with pytest.raises(
        UsageError, match="--scheme must be one of bio, iob1, iobes, bilou, bmes, got bmewo"
    ):
        NamedEntities(scheme="bmewo")
    for length in (0, 2):
        with pytest.raises(UsageError, match=f"--max-seq-length must be at least 3, got {length}"):
            NamedEntities(max_seq_length=length)


# Windows


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(["John Smith went to Paris and London unbelievably " * 3] * 4, 60)


@pytest.mark.parametrize("max_seq_length", [6, 9, 99])
def test_every_word_is_labelled_once_where_it_has_most_context(tokenizer, max_seq_length):
    words = "John went unbelievably to Paris and London and Paris and John Smith went".split()
    gold = ["B-PER" if w == "John" else "I-PER" if w == "Smith" else "O" for w in words]
    example = Sentence("0", "a:1", words, gold)
    task = NamedEntities(max_seq_length=max_seq_length, labels=["O", "B-PER", "I-PER"])
    windows = list(task.windows(example, tokenizer))
    assert all(len(w["input_ids"]) <= max_seq_length for w in windows)
    assert all(len(w["labels"]) == len(w["input_ids"]) for w in windows)
    labelled = [word for w in windows for word in w["_words"] if word is not None]
    assert set(labelled) == set(range(len(words)))
    assert (len(windows) == 1) == (max_seq_length == 99)
    # outputs are right, but confidently wrong wherever another window has more context
    place = {}
    for n, window in enumerate(windows):
        last = len(window["_words"]) - 1
        for i, word in enumerate(window["_words"]):
            if word is not None:
                left = i if window["_context"][0] else 10**6
                right = last - i if window["_context"][1] else 10**6
                if min(left, right) > place.get(word, (-1, 0))[0]:
                    place[word] = (min(left, right), n)
    outputs = []
    for n, window in enumerate(windows):
        logits = np.zeros((len(window["input_ids"]), 3), np.float32)
        for i, word in enumerate(window["_words"]):
            if word is not None:
                right_one = place[word][1] == n
                logits[i + 1, task.labels.index(gold[word]) if right_one else 1] = 9
        outputs.append({"logits": logits})
    assert task.decode(example, windows, outputs) == gold


def test_the_shortest_window_holds_one_piece(tokenizer):
    task = NamedEntities(max_seq_length=3, labels=["O", "B-PER", "I-PER"])
    example = Sentence("0", "a:1", ["John", "unbelievably", "Smith"], None)
    windows = list(task.windows(example, tokenizer))
    pieces = tokenizer("John unbelievably Smith", add_special_tokens=False)["input_ids"]
    assert [w["input_ids"][1:-1] for w in windows] == [[piece] for piece in pieces]


def test_a_type_that_was_not_learnt_is_measured(tokenizer):
    task = NamedEntities(max_seq_length=20, labels=["O", "B-PER", "I-PER"])
    example = Sentence("0", "a:1", ["John", "Paris"], ["B-PER", "B-LOC"])
    (window,) = task.windows(example, tokenizer)
    assert [label for label in window["labels"] if label != -100] == [1]
    figures = task.metrics([example], [["B-PER", "O"]])
    assert (figures["precision"], figures["recall"]) == (100.0, 50.0)


def test_an_entity_longer_than_a_window(tokenizer, tmp_path):
    words = ["John", *["unbelievably"] * 3, "went"]
    gold = ["O", "B-PER", "I-PER", "I-PER", "O"]
    rows = "".join(f"{word} {tag}\n" for word, tag in zip(words, gold, strict=True))
    path = write(tmp_path / "long.conll", f"John B-PER\n\n{rows}")
    (_, long), _ = NamedEntities().read(path)
    pieces = 3 * len(tokenizer("unbelievably", add_special_tokens=False)["input_ids"])
    task = NamedEntities(max_seq_length=pieces + 2)
    assert task.misfit(long, tokenizer) is None
    task.max_seq_length -= 1
    reason = (
        f"its PER that begins with 'unbelievably' has {pieces} word pieces, more than the "
        f"{pieces - 1} of --max-seq-length {pieces + 1}"
    )
    assert task.misfit(long, tokenizer) == reason
    items = task.read(path).items
    with pytest.raises(DataError) as error:
        task.fitting(items, tokenizer, path)
    assert str(error.value) == f"{path}:3: {reason}"
    fitting, skipped = task.fitting(items, tokenizer, path, skip_bad=True)
    assert fitting == items[:1] and skipped == 1
    with pytest.raises(DataError, match=r"there is no example in it \(1 were bad\)"):
        task.fitting(items[1:], tokenizer, path, skip_bad=True)
    # without gold tags a sentence of any length can be tagged
    assert task.misfit(Sentence("0", "a:1", words, None), tokenizer) is None


def test_writes_columns_and_gives_its_state(tmp_path):
    task = NamedEntities(labels=["O", "B-A", "I-A"], scheme="iob1", max_seq_length=77)
    again = NamedEntities(**task.state())
    assert again.state() == task.state()
    example = Sentence("0", "a:1", ["x", "y"], ["O", "B-A"])
    (path,) = task.write(tmp_path / "out", [example], [["B-A", "I-A"]])
    assert path.read_text() == "x\tO\tB-A\ny\tB-A\tI-A\n\n"
