"""Question answering: reading, windows, decoding, files, each against its definition."""

import argparse
import gzip
import json
import math
import tracemalloc

import numpy as np
import pytest
from transformers import BertTokenizer

from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks import task_class
from spanbert_fast.tasks.qa import QuestionAnswering
from spanbert_fast.tasks.qa_reading import Question

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'é"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = [*SPECIAL, *CHARACTERS, *("##" + c for c in CHARACTERS)]
CONTEXT = "The Normans lived in Normandy, a region of France; in the 10th century."


@pytest.fixture(scope="module")
def tokenizer():
    """Every letter is a piece."""
    return BertTokenizer(vocab={t: i for i, t in enumerate(TOKENS)}, do_lower_case=True)


def small(**options) -> QuestionAnswering:
    return QuestionAnswering(
        **{"max_seq_length": 24, "doc_stride": 7, "max_query_length": 6, **options}
    )


def question(context, start=None, end=None, text="who?", answers=None) -> Question:
    span = None if start is None else (start, end)
    answers = [context[start:end]] if answers is None and span else answers
    return Question("q", "file, question q", text, context, answers, span)


# Reading


def squad(*items, context=CONTEXT):
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph(*items, context)]}]}


def paragraph(*items_and_context):
    *items, context = items_and_context
    return {"context": context, "qas": [{"id": "1", "question": "Where?", **i} for i in items]}


def written(tmp_path, content, name="data.json"):
    path = tmp_path / name
    text = content if isinstance(content, str) else json.dumps(content)
    with gzip.open(path, "wt") if name.endswith(".gz") else open(path, "w") as file:
        file.write(text)
    return path


def lines(*items):
    return "\n".join(item if isinstance(item, str) else json.dumps(item) for item in items) + "\n"


NORMANDY = {"text": "Normandy", "answer_start": 21}
FRANCE = {"text": "France", "answer_start": 43}


def test_nested_squad(tmp_path):
    path = written(
        tmp_path,
        squad(
            {"answers": [NORMANDY, FRANCE, NORMANDY]},
            {"id": "2", "answers": [], "is_impossible": True, "plausible_answers": [FRANCE]},
            {"id": "3", "is_impossible": True},
            {"id": "4"},
            {"id": "5", "answers": [{"text": " a region ", "answer_start": 30}]},
        ),
    )
    one, *none, unknown, blanks = QuestionAnswering().read(path).items
    assert (one.id, one.place, one.question) == ("1", f"{path}, question 1", "Where?")
    assert one.context == CONTEXT
    assert one.answers == ["Normandy", "France", "Normandy"] and one.span == (21, 29)
    assert [(e.answers, e.span) for e in none] == [([], None)] * 2
    assert (unknown.answers, unknown.span) == (None, None)
    assert CONTEXT[slice(*blanks.span)] == "a region" and blanks.answers == [" a region "]


def test_flat_squad(tmp_path):
    both = {"text": ["France", "Normandy"], "answer_start": [43, 21]}
    neither = {"text": [], "answer_start": []}
    path = written(
        tmp_path,
        {
            "data": [
                {"id": "1", "question": "Where?", "context": CONTEXT, "answers": both},
                {"id": "2", "question": "Who?", "context": CONTEXT, "answers": neither},
                {"id": "3", "question": "Who?", "context": CONTEXT},
            ]
        },
    )
    found = QuestionAnswering().read(path).items
    assert [(e.answers, e.span) for e in found] == [
        (["France", "Normandy"], (43, 49)),
        ([], None),
        (None, None),
    ]


def mrqa(context=CONTEXT, **fields):
    return {"context": context, "qas": [{"qid": "1", "question": "Where?", **fields}]}


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.jsonl", "data.json"])
def test_mrqa(tmp_path, name):
    detected = [
        {"text": "NORMANDY", "char_spans": [[21, 28]], "token_spans": [[4, 4]]},
        {"text": "10 th", "char_spans": [[58, 61]], "token_spans": [[12, 12]]},
    ]
    items = [
        {"header": {"dataset": "x", "mrqa_split": "dev"}},
        mrqa(answers=["Normandy", "in Normandy"], detected_answers=detected),
        "",
        mrqa(qid="2", detected_answers=detected),
        mrqa(qid="3", answers=[], detected_answers=[]),
        mrqa(qid="4"),
    ]
    path = written(tmp_path, lines(*items), name)
    one, two, three, four = QuestionAnswering().read(path).items
    assert (one.id, one.place, one.span) == ("1", f"{path}:2", (21, 29))
    assert one.answers == ["Normandy", "in Normandy"]
    assert two.answers == ["Normandy", "10th"] and two.place == f"{path}:4"
    assert (three.answers, three.span, four.answers) == ([], None, None)


BAD_SQUAD = [
    ({"answers": [{**NORMANDY, "answer_start": 22}]}, "'Normandy' is not at its offset 22"),
    ({"answers": [NORMANDY, {**FRANCE, "answer_start": -28}]}, "is not at its offset -28"),
    ({"answers": [{**NORMANDY, "answer_start": 10**9}]}, "not at its offset 1000000000, '' is"),
    ({"answers": [{"text": "Normandy"}]}, '"answer_start" must be a whole number, got nothing'),
    ({"answers": [{**NORMANDY, "answer_start": True}]}, '"answer_start" must be a whole number'),
    ({"answers": [{"answer_start": 2}]}, 'has no "text"'),
    ({"answers": [{"text": "", "answer_start": 2}]}, "the answer at the offset 2 is blank"),
    ({"answers": [{"text": " ", "answer_start": 3}]}, "the answer at the offset 3 is blank"),
    ({"answers": ["Normandy"]}, "must be an object, got a string"),
    ({"answers": "Normandy"}, '"answers" must be a list or an object, got a string'),
    ({"answers": {"text": ["France"], "answer_start": []}}, "has 1 answers and 0 starts"),
    ({"answers": [NORMANDY], "is_impossible": True}, 'has answers and "is_impossible"'),
    ({"question": None}, '"question" must be a string, got nothing'),
    ({"question": "\ud800"}, '"question" has half a surrogate pair'),
    ({"id": 7}, '"id" must be a string, got 7'),
    ({"id": "0"}, 'the id "0" has come before'),
]


@pytest.mark.parametrize(("item", "reason"), BAD_SQUAD, ids=[reason for _, reason in BAD_SQUAD])
def test_a_bad_question_is_named_or_left_out(tmp_path, item, reason):
    good = {"id": "0", "answers": [FRANCE]}
    path = written(tmp_path, squad(good, {"answers": [], **item}, {"id": "2"}))
    task = QuestionAnswering()
    with pytest.raises(DataError) as error:
        task.read(path)
    message = str(error.value)
    assert reason in message and "\n" not in message
    where = ", question " if isinstance(item.get("id", "1"), str) else ", data[0].paragraphs[0]."
    assert message.startswith(f"{path}{where}")
    examples = task.read(path, skip_bad=True)
    assert [e.id for e in examples.items] == ["0", "2"] and examples.skipped == 1


@pytest.mark.parametrize(
    ("data", "place", "reason"),
    [
        (["x"], "data[0]", "must be an object, got a string"),
        ([{"paragraphs": 3}], "data[0]", '"paragraphs" must be a list, got 3'),
        ([{"paragraphs": [[]]}], "data[0].paragraphs[0]", "must be an object, got a list"),
        ([{"paragraphs": [{"context": "x"}]}], "data[0].paragraphs[0]", '"qas" must be a list'),
        ([{"paragraphs": [paragraph({}, " \n")]}], "question 1", '"context" is blank'),
        ([{"title": "t"}], "data[0]", 'has no "id"'),
        ([{"id": "1", "question": "?"}], "question 1", 'has no "context"'),
    ],
)
def test_a_bad_part_of_squad(tmp_path, data, place, reason):
    good = {"id": "9", "question": "?", "context": CONTEXT}
    path = written(tmp_path, {"data": [*data, good]})
    with pytest.raises(DataError) as error:
        QuestionAnswering().read(path)
    assert str(error.value).startswith(f"{path}, {place}: {reason}")
    examples = QuestionAnswering().read(path, skip_bad=True)
    assert len(examples.items) == examples.skipped == 1


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ('{"context": ', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "must be an object, got a list"),
        ({"qas": []}, 'has no "context"'),
        ({"context": "x"}, '"qas" must be a list, got nothing'),
        (mrqa(detected_answers=[{"char_spans": [[21, 71]]}]), "the span [21, 71] is not within"),
        (mrqa(detected_answers=[{"char_spans": [[21, 20]]}]), "the span [21, 20] is not within"),
        (mrqa(detected_answers=[{"char_spans": [[21]]}]), '"char_spans" must hold pairs'),
        (mrqa(detected_answers=[{"text": "x"}]), '"char_spans" must be a list, got nothing'),
        (
            mrqa(detected_answers=[{"text": "Normandy", "char_spans": [[22, 29]]}]),
            "the answer 'Normandy' is not at its offset 22, 'ormandy,' is",
        ),
        (mrqa(answers=["x"], detected_answers=[]), "has 1 answers, of which 0 detected"),
        (mrqa(answers=[1], detected_answers=[]), '"answers" must be a string, got 1'),
        (mrqa(qid=None), '"qid" must be a string, got nothing'),
    ],
)
def test_a_bad_line_of_mrqa(tmp_path, item, reason):
    path = written(tmp_path, lines({"header": {}}, mrqa(qid="0"), item, mrqa(qid="2")), "d.jsonl")
    with pytest.raises(DataError) as error:
        QuestionAnswering().read(path)
    assert str(error.value).startswith(f"{path}:3: {reason}")
    examples = QuestionAnswering().read(path, skip_bad=True)
    assert [e.id for e in examples.items] == ["0", "2"] and examples.skipped == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("What is this?\nA text.\n", "not JSON"),
        ('{"data": [', "not JSON"),
        ("[1, 2]", 'needs an object with a list "data"'),
        ('{"data": {}}', 'needs an object with a list "data"'),
        ('{"data": []}', "there is no example in it"),
        ('{"header": {}}', "there is no example in it"),
    ],
)
def test_a_file_that_is_something_else(tmp_path, text, reason):
    path = written(tmp_path, text)
    with pytest.raises(DataError) as error:
        QuestionAnswering().read(path)
    assert str(error.value).startswith(f"{path}: {reason}") and "\n" not in str(error.value)


# Windows


def test_windows_of_a_short_context(tokenizer):
    example = question("in normandy.", 3, 11)
    (window,) = small(max_seq_length=40).windows(example, tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(window["input_ids"])
    pieces = ["i", "##n", "n", *("##" + c for c in "ormandy"), "."]
    assert tokens == ["[CLS]", "w", "##h", "##o", "?", "[SEP]", *pieces, "[SEP]"]
    assert window["token_type_ids"] == [0] * 6 + [1] * 12
    assert (window["start_positions"], window["end_positions"]) == (8, 15)
    encoded = tokenizer("who?", "in normandy.")
    assert window["input_ids"] == encoded["input_ids"]
    assert window["token_type_ids"] == encoded["token_type_ids"]


@pytest.mark.parametrize("doc_stride", [1, 5, 15, 16, 17, 100])
@pytest.mark.parametrize("length", [1, 16, 17, 32, 33, 61])
def test_windows_cover_the_context(tokenizer, doc_stride, length):
    """By the definition, window by window, with the answer at every place and of every length."""
    context = ("ab cde f " * 20)[: 2 * length].replace(" ", "")[:length]
    pieces = tokenizer(context, add_special_tokens=False)["input_ids"]
    assert len(pieces) == length
    task = small(doc_stride=doc_stride)
    room = 24 - 5 - 2  # [CLS] w h o ? [SEP] ... [SEP]
    step = min(doc_stride, room)
    starts = [s for s in range(0, length, step) if s == 0 or s - step + room < length]
    answers = [(a, b) for a in range(0, length, 7) for b in range(a + 1, length + 1, 5)]
    for start, end in answers:
        found = list(task.windows(question(context, start, end), tokenizer))
        assert len(found) == len(starts)
        for first, window in zip(starts, found, strict=True):
            own = pieces[first : first + room]
            assert window["input_ids"][6:-1] == own and window["input_ids"][-1] == 3
            assert len(window["token_type_ids"]) == len(window["input_ids"]) <= 24
            inside = first <= start and end <= first + len(own)
            wanted = (start - first + 6, end - 1 - first + 6) if inside else (0, 0)
            assert (window["start_positions"], window["end_positions"]) == wanted


def test_an_answer_within_words_takes_the_pieces_that_it_touches(tokenizer):
    context = "Élan, 10th  century"
    for start, end, pieces in ((0, 4, "elan"), (1, 2, "l"), (5, 12, "10th"), (4, 5, ",")):
        (window,) = small(max_seq_length=40).windows(question(context, start, end), tokenizer)
        first, last = window["start_positions"], window["end_positions"]
        tokens = tokenizer.convert_ids_to_tokens(window["input_ids"][first : last + 1])
        assert "".join(tokens).replace("##", "") == pieces


def test_without_answers(tokenizer):
    (unanswerable,) = small(max_seq_length=40).windows(question("a b", answers=[]), tokenizer)
    assert (unanswerable["start_positions"], unanswerable["end_positions"]) == (0, 0)
    (unknown,) = small(max_seq_length=40).windows(question("a b"), tokenizer)
    assert not {"start_positions", "end_positions"} & unknown.keys()


def test_odd_texts(tokenizer):
    task = small()
    (long_question,) = task.windows(question("a b", 2, 3, text="abc def ghi"), tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(long_question["input_ids"])
    assert tokens[:8] == ["[CLS]", "a", "##b", "##c", "d", "##e", "##f", "[SEP]"]
    assert long_question["start_positions"] == 9
    (no_question,) = task.windows(question("a b", 2, 3, text=" "), tokenizer)
    assert no_question["input_ids"][:2] == [2, 3]
    # a context, or an answer, of which the tokenizer leaves nothing
    nothing = question("\u200b", 0, 1)
    (window,) = task.windows(nothing, tokenizer)
    assert len(window["input_ids"]) == 7 and window["start_positions"] == 0
    prediction = task.decode(nothing, [window], [random_logits([window])[0]])
    assert (prediction.text, prediction.nbest, prediction.null_odds) == ("", [], 0.0)
    assert [row["text"] for row in prediction.rows(False)] == [""]
    (window,) = task.windows(question("a \u200b b", 2, 3), tokenizer)
    assert window["start_positions"] == 0


def test_a_document_of_100k_pieces_is_made_window_by_window(tokenizer):
    context = "abcdefghij " * 10_000
    task = QuestionAnswering()
    example = question(context, len(context) - 11, len(context) - 1)
    list(task.windows(question(context), tokenizer))  # the tokenizer's own memory, and its result
    tracemalloc.start()
    windows = pieces = 0
    for window in task.windows(example, tokenizer):
        windows += 1
        pieces += len(window["input_ids"])
        last = window
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert windows == math.ceil((100_000 - 505) / 128) + 1 and pieces > 390_000
    assert last["end_positions"] == len(last["input_ids"]) - 2
    assert peak < 16 * pieces / 4  # lists of all windows at once would take 16 bytes for each piece


# Decoding


def random_logits(windows, seed=0):
    draw = np.random.default_rng(seed)
    return [
        {
            name: draw.standard_normal(len(window["input_ids"])).astype(np.float32)
            for name in ("start_logits", "end_logits")
        }
        for window in windows
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("length", "options"),
    [
        (1, {}),
        (5, {"n_best_size": 3}),
        (17, {"max_answer_length": 1}),
        (45, {"max_answer_length": 4}),
        (45, {"doc_stride": 40, "n_best_size": 200, "max_answer_length": 50}),
        (60, {"doc_stride": 2, "max_answer_length": 9}),
    ],
)
def test_decoding_by_trying_every_span(tokenizer, seed, length, options):
    letters = np.random.default_rng(seed).choice(list("ab c"), length)
    context = "x" + "".join(letters)
    task = small(**options)
    example = question(context)
    windows = list(task.windows(example, tokenizer))
    outputs = random_logits(windows, seed)

    # of every window: where its context begins in the text's pieces, its length
    places = [(w["_first"], len(w["_offsets"])) for w in windows]
    offsets = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    offsets = offsets["offset_mapping"]
    spans = []
    for number, ((first, size), output) in enumerate(zip(places, outputs, strict=True)):
        for start in range(first, first + size):
            for end in range(start, min(first + size, start + task.max_answer_length)):
                context_of = [min(start - f, f + n - 1 - end) for f, n in places]
                if context_of.index(max(context_of)) != number:
                    continue
                head = windows[number]["_context_start"]
                score = float(output["start_logits"][start - first + head])
                score += float(output["end_logits"][end - first + head])
                spans.append((-score, offsets[start][0], offsets[end][1]))
    texts = {}
    for score, left, right in sorted(spans):
        texts.setdefault(context[left:right], (-score, left, right))
    wanted = list(texts.items())[: task.n_best_size]

    prediction = task.decode(example, windows, outputs)
    found = [(a.text, (a.score, a.start, a.end)) for a in prediction.nbest]
    # spans of one text may fill a window's share of candidates: the list may end early, never err
    assert found == wanted[: len(found)]
    assert len(found) >= min(len(wanted), task.n_best_size // 2)
    assert (prediction.text, prediction.score) == (wanted[0][0], wanted[0][1][0])
    null = min(float(o["start_logits"][0]) + float(o["end_logits"][0]) for o in outputs)
    assert prediction.null.score == null
    assert prediction.null_odds == pytest.approx(null - prediction.score)


def test_right_logits_give_right_answers(tokenizer):
    """A model that points where the windows point scores 100."""
    task = small()
    examples = [
        question(CONTEXT, 21, 29),
        question(CONTEXT, 0, 11),
        question(CONTEXT, 62, 69),
        question(CONTEXT, answers=[]),
    ]
    for number, example in enumerate(examples):
        example.id = str(number)
    predictions = []
    for example in examples:
        windows = list(task.windows(example, tokenizer))
        assert len(windows) > 3
        outputs = random_logits(windows)
        for window, output in zip(windows, outputs, strict=True):
            for name in ("start", "end"):
                output[f"{name}_logits"][window[f"{name}_positions"]] += 20
        predictions.append(task.decode(example, windows, outputs))
    figures = task.metrics(examples, predictions)
    assert figures["exact"] == figures["f1"] == figures["HasAns_exact"] == 100.0
    assert task.final_text(predictions[0]) == "Normandy" and task.final_text(predictions[3]) == ""


def test_rows_of_the_n_best_list(tokenizer):
    task = small(n_best_size=4)
    windows = list(task.windows(question(CONTEXT), tokenizer))
    prediction = task.decode(question(CONTEXT), windows, random_logits(windows))
    plain, with_null = prediction.rows(False), prediction.rows(True)
    assert [row["text"] for row in plain] == [answer.text for answer in prediction.nbest]
    assert sum(row["text"] == "" for row in with_null) == 1 and len(with_null) == 5
    for rows in (plain, with_null):
        assert sum(row["probability"] for row in rows) == pytest.approx(1.0)
        scores = np.array([row["start_logit"] + row["end_logit"] for row in rows])
        softmax = np.exp(scores) / np.exp(scores).sum()
        assert [row["probability"] for row in rows] == pytest.approx(softmax.tolist())
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)


# Figures, threshold, files


def predicted(task, tokenizer, examples, seed=0):
    made = []
    for number, example in enumerate(examples):
        windows = list(task.windows(example, tokenizer))
        made.append(task.decode(example, windows, random_logits(windows, seed + number)))
    return made


def numbered(answers_of, prefix):
    made = []
    for number, answers in enumerate(answers_of):
        span = (21, 29) if answers else None
        made.append(Question(f"{prefix}{number}", "here", "who?", CONTEXT, answers, span))
    return made


def test_the_threshold_is_chosen_on_dev_alone_and_kept(tokenizer):
    task = small()
    dev = numbered([["Normandy"], [], [], ["in"], []], "d")
    test = numbered([["Normandy"], [], ["the"], []], "t")
    dev_made = predicted(task, tokenizer, dev)
    test_made = predicted(task, tokenizer, test, seed=50)
    assert task.state()["null_threshold"] is None
    figures = task.metrics(dev, dev_made)
    assert figures["f1"] == figures["best_f1"]
    assert task.null_threshold == figures["best_f1_thresh"]
    chosen = task.null_threshold
    measured = task.metrics(test, test_made)
    assert task.null_threshold == chosen != measured["best_f1_thresh"]
    # a later epoch on dev moves it again
    task.metrics(dev, predicted(task, tokenizer, dev, seed=99))
    assert task.null_threshold != chosen
    task.metrics(dev, dev_made)
    # and a task made from its state keeps it, whatever it measures first
    again = QuestionAnswering(**json.loads(json.dumps(task.state())))
    assert again.state() == task.state()
    assert again.metrics(test, test_made) == measured
    assert again.null_threshold == chosen


def test_without_unanswerable_questions_every_question_is_answered(tokenizer):
    task = small()
    dev = numbered([["Normandy"], ["in"]], "d")
    figures = task.metrics(dev, predicted(task, tokenizer, dev))
    assert set(figures) == {"exact", "f1", "total"} and task.metric in figures
    assert task.null_threshold is None
    test = numbered([["Normandy"], []], "t")
    made = predicted(task, tokenizer, test)
    assert task.metrics(test, made)["NoAns_f1"] == 0.0
    assert all(task.final_text(prediction) for prediction in made)


def test_unknown_answers(tokenizer):
    task = small()
    known, unknown = numbered([["Normandy"], []], "k"), numbered([None], "u")
    assert task.has_answers(known) and not task.has_answers(known + unknown)
    task.learn(known)
    for refused in (task.learn, lambda e: task.metrics(e, predicted(task, tokenizer, e))):
        with pytest.raises(DataError, match="here: the file does not say what its answers are"):
            refused(known + unknown)


@pytest.mark.parametrize("version_2", [False, True])
def test_written_files(tokenizer, tmp_path, version_2):
    task = small(n_best_size=3)
    examples = numbered([["Normandy"], [] if version_2 else ["in"], ["the"]], "é")
    made = predicted(task, tokenizer, examples)
    task.metrics(examples, made)
    files = task.write(tmp_path / task.predictions_file, examples, made)
    names = ["predictions.json", "nbest_predictions.json", "null_odds.json"]
    assert [file.name for file in files] == names[: 3 if version_2 else 2]
    texts, nbest, *odds = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    ids = [example.id for example in examples]
    assert list(texts) == list(nbest) == ids
    assert list(texts.values()) == [task.final_text(prediction) for prediction in made]
    assert [len(rows) for rows in nbest.values()] == [3 + version_2] * 3
    assert set(nbest[ids[0]][0]) == {"text", "probability", "start_logit", "end_logit"}
    if version_2:
        assert "" in texts.values()
        assert odds == [{e.id: p.null_odds for e, p in zip(examples, made, strict=True)}]
    # another name, and questions of which nothing is known
    unknown = numbered([None, None, None], "u")
    files = task.write(tmp_path / "mine.json", unknown, made)
    assert [file.name for file in files] == [
        *("mine.json", "nbest_mine.json", "null_odds_mine.json")[: 3 if version_2 else 2]
    ]


# Options


def test_options():
    assert task_class("qa") is QuestionAnswering
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    QuestionAnswering.add_arguments(parser)
    assert vars(parser.parse_args([])) == {}
    given = vars(parser.parse_args("--doc-stride 64 --max-answer-length 12".split()))
    state = QuestionAnswering(**given).state()
    assert state == {
        "doc_stride": 64,
        "max_query_length": 64,
        "n_best_size": 20,
        "max_answer_length": 12,
        "null_threshold": None,
        "max_seq_length": 512,
        "labels": None,
    }
    for option in ("doc_stride", "max_query_length", "n_best_size", "max_answer_length"):
        flag = "--" + option.replace("_", "-")
        with pytest.raises(UsageError, match=f"{flag} must be at least 1, got 0"):
            QuestionAnswering(**{option: 0})
    with pytest.raises(UsageError, match=r"must be above --max-query-length \+ 3 = 67, got 67"):
        QuestionAnswering(max_seq_length=67)
