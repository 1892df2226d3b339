"""A model has its modes back after several threads have filled, evaluated or predicted with it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import BertTokenizer

from bert_cases import large_init
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.fill_span import FillSpan
from spanbert_fast.models import SpanBertForMaskedLM
from spanbert_fast.models.evaluation_mode import evaluation_mode

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the quick brown fox jumps".split()]


@pytest.fixture
def model():
    """A model in training mode, except one part that its owner has set to evaluation."""
    config = SpanBertConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    model = large_init(SpanBertForMaskedLM(config)).train()
    model.bert.embeddings.eval()
    return model


def modes(model):
    return [module.training for module in model.modules()]


def test_the_last_thread_restores_the_modes(model):
    before = modes(model)
    assert True in before and False in before
    first, second = evaluation_mode(model), evaluation_mode(model)
    with first:
        second.__enter__()
        assert not any(modes(model))
    assert not any(modes(model)), "another thread is inside"
    second.__exit__(None, None, None)
    assert modes(model) == before
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert modes(model) == before


def test_threads_that_fill_agree_and_leave_the_model_in_training(model):
    before = modes(model)
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(TOKENS)})
    fill, text = FillSpan(model, tokenizer), "the [MASK] [MASK] fox"
    expected = fill(text)
    with ThreadPoolExecutor(4) as threads:
        assert all(found == expected for found in threads.map(fill, [text] * 40))
    assert modes(model) == before
