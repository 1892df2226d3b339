"""Shared by the tests of question answering: a tokenizer of letters, questions, logits."""

import numpy as np
from transformers import BertTokenizer

from spanbert_fast.tasks.qa import QuestionAnswering
from spanbert_fast.tasks.qa_reading import Question

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'é"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = [*SPECIAL, *CHARACTERS, *("##" + c for c in CHARACTERS)]
CONTEXT = "The Normans lived in Normandy, a region of France; in the 10th century."


def letter_tokenizer() -> BertTokenizer:
    """A tokenizer for which every letter is a piece."""
    return BertTokenizer(vocab={t: i for i, t in enumerate(TOKENS)}, do_lower_case=True)


def small(**options) -> QuestionAnswering:
    return QuestionAnswering(
        **{"max_seq_length": 24, "doc_stride": 7, "max_query_length": 6, **options}
    )


def question(context, start=None, end=None, text="who?", answers=None) -> Question:
    span = None if start is None else (start, end)
    answers = [context[start:end]] if answers is None and span else answers
    return Question("q", "file, question q", text, context, answers, span)


def random_logits(windows, seed=0):
    draw = np.random.default_rng(seed)
    return [
        {
            name: draw.standard_normal(len(window["input_ids"])).astype(np.float32)
            for name in ("start_logits", "end_logits")
        }
        for window in windows
    ]
