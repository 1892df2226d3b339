"""Question answering: windows over a context, each against its definition."""

import math
import tracemalloc

import pytest

from qa_cases import letter_tokenizer, question, random_logits, small
from spanbert_fast.tasks.qa import QuestionAnswering


@pytest.fixture(scope="module")
def tokenizer():
    return letter_tokenizer()


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
    """Each window fits the definition, for answers of every length at every place."""
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
    # the tokenizer makes no piece of a context, or of an answer
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
    # the memory of the tokenizer and of its result
    list(task.windows(question(context), tokenizer))
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
    assert peak < 16 * pieces / 4  # lists of all windows at once would take 16 bytes per piece
