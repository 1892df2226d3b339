"""Shared by the tests of the collator: a tokenizer, examples, the comparison of batches."""

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from spanbert_fast.testing import assert_bitwise_equal

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
VOCABULARY = [*SPECIAL, *(f"w{k}" for k in range(60)), *(f"##s{k}" for k in range(30))]


def make_tokenizer(**without):
    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        **without,
    }
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{name: token for name, token in names.items() if token}
    )


def make_examples(lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [
        {
            "input_ids": [CLS, *generator.integers(5, len(VOCABULARY), n - 2).tolist(), SEP],
            "example_id": k,
        }
        for k, n in enumerate(lengths)
    ]


EXAMPLES = make_examples([40, 3, 129, 64, 17])


def assert_same_batches(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert_bitwise_equal(ours[name], value, name)
        else:
            assert ours[name] == value, name
