"""Question answering: decoding, metrics, files and options, each checked against its definition."""

import argparse
import json

import numpy as np
import pytest

from qa_cases import CONTEXT, letter_tokenizer, question, random_logits, small
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.tasks import task_class
from spanbert_fast.tasks.qa import QuestionAnswering
from spanbert_fast.tasks.qa_reading import Question


@pytest.fixture(scope="module")
def tokenizer():
    return letter_tokenizer()


# Decoding


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

    # for every window: where its context begins in the text's pieces, and its length
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
    # spans with equal text may use up a window's candidates: the list may be short, but never wrong
    assert found == wanted[: len(found)]
    assert len(found) >= min(len(wanted), task.n_best_size // 2)
    assert (prediction.text, prediction.score) == (wanted[0][0], wanted[0][1][0])
    null = min(float(o["start_logits"][0]) + float(o["end_logits"][0]) for o in outputs)
    assert prediction.null.score == null
    assert prediction.null_odds == pytest.approx(null - prediction.score)


def test_right_logits_give_right_answers(tokenizer):
    """A model that predicts the windows' own targets scores 100."""
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
    # a later evaluation on dev changes it again
    task.metrics(dev, predicted(task, tokenizer, dev, seed=99))
    assert task.null_threshold != chosen
    task.metrics(dev, dev_made)
    # a task made from its state keeps the threshold, whatever it measures first
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
    # the file has another name, and its questions have no answers
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
