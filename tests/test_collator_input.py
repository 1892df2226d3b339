"""The tokenizers, options and examples that the collator refuses, each with a message."""

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from collator_cases import CLS, EXAMPLES, SEP, SPECIAL, VOCABULARY, make_tokenizer
from spanbert_fast.data.collator import DataCollatorForSpanMasking
from spanbert_fast.data.tokenizer import load_tokenizer, vocabulary_size
from spanbert_fast.ops.span_options import SpanOptions


def test_another_tokenizer_needs_word_starts():
    backend = Tokenizer(models.WordLevel({t: k for k, t in enumerate(VOCABULARY)}, "[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]")
    collator = DataCollatorForSpanMasking(tokenizer)
    with pytest.raises(ValueError, match="examples must have word_starts where the tokenizer"):
        collator(EXAMPLES)
    starts = [{**e, "word_starts": [True] * len(e["input_ids"])} for e in EXAMPLES]
    assert len(collator(starts)["mlm_positions"]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "dense"}, "output must be one of packed, padded, masked_lm, raw, got 'dense'"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of must be at least 1, got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DataCollatorForSpanMasking(make_tokenizer(), **options)


def test_a_tokenizer_without_the_tokens_it_takes_is_refused():
    with pytest.raises(ValueError, match="tokenizer must have a mask token"):
        DataCollatorForSpanMasking(make_tokenizer(mask_token=None))
    tokenizer = make_tokenizer(pad_token=None)
    DataCollatorForSpanMasking(tokenizer)
    with pytest.raises(ValueError, match="tokenizer must have a pad token"):
        DataCollatorForSpanMasking(tokenizer, output="padded")
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask_rate'"):
        DataCollatorForSpanMasking(tokenizer, mask_rate=0.1)


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [  # the fault is in the second of two examples
        ({"input_ids": []}, ValueError, r"examples\[1\]\['input_ids'\] must hold at least one"),
        ({"input_ids": [[1, 2]]}, ValueError, r"must have shape \(seqlen,\), got \(1, 2\)"),
        ({"input_ids": [1.5, 2.0]}, TypeError, "must be integers, got float64"),
        ({"input_ids": [2, 95, 3]}, ValueError, r"\[1\].* must be in \[0, 95\), got 95"),
        ({"input_ids": [2, -1, 3]}, ValueError, r"\[1\].* must be in \[0, 95\), got -1"),
        ({"input_ids": [2, 3]}, ValueError, "special_mask must leave .* in sequence 1"),
        ({"input_ids": [2, 9, 3], "word_starts": [True]}, ValueError, r"must have shape \(3,\)"),
        ({"input_ids": [2, 9, 3], "epoch": -1}, ValueError, r"epoch must be in \[0, 2\*\*23\)"),
        ({"input_ids": [2, 9, 3], "example_id": 2**64}, ValueError, "example_id must be a 64-bit"),
        ({"input_ids": [2, 9, 0], "attention_mask": [1, 1, 0]}, ValueError, "must not be padded"),
    ],
)
def test_bad_examples(example, error, message):
    collator = DataCollatorForSpanMasking(make_tokenizer())
    with pytest.raises(error, match=message):
        collator([EXAMPLES[0], example])


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="examples must hold at least one example, got none"):
        DataCollatorForSpanMasking(make_tokenizer())([])


def test_ids_that_no_token_has(tmp_path):
    """A vocab.txt with a repeated line has more ids than tokens."""
    lines = [*SPECIAL, "one", "one", "two", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n")
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 8 and vocabulary_size(tokenizer) == 9
    collate = DataCollatorForSpanMasking(tokenizer, SpanOptions(mask_ratio=0.5))
    assert collate.random_token_pool.tolist() == [6, 7, 8]
    batch = collate([{"input_ids": [CLS, 7, 8, 6, 8, 7, SEP]}])
    assert batch["mlm_targets"].tolist() and batch["input_ids"].max() < 9
    with pytest.raises(ValueError, match=r"must be in \[0, 9\), got 9"):
        collate([{"input_ids": [CLS, 9, SEP]}])
