"""Small packed batches, also filled up to fixed shapes, and a model to train on them."""

import numpy as np

import spanbert_fast as sb
from bert_cases import large_init
from spanbert_fast.data.collator import DataCollatorForSpanMasking
from spanbert_fast.data.static_shapes import StaticShapes
from spanbert_fast.data.tokenizer import train_wordpiece
from spanbert_fast.ops.span_options import SpanOptions

SHAPES = StaticShapes.of(160, 40)


def small_tokenizer():
    return train_wordpiece(["the quick brown fox jumps over the lazy dog " * 3] * 4, 90)


def examples(tokenizer, lengths, seed=0):
    draw = np.random.default_rng(seed)
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    size = len(tokenizer)
    return [
        {
            "input_ids": [first, *draw.integers(5, size, n - 2).tolist(), last],
            "example_id": 9 + k,
        }
        for k, n in enumerate(lengths)
    ]


def collator(tokenizer, options=SpanOptions(), **more):  # noqa: B008
    return DataCollatorForSpanMasking(tokenizer, options, seed=3, dropout_seeds=True, **more)


def pair_of_batches(tokenizer, lengths=(40, 3, 17, 33), seed=0):
    """The same examples as a plain batch and as a filled one."""
    items = examples(tokenizer, lengths, seed)
    return [collator(tokenizer, static_shapes=shapes)(items) for shapes in (None, SHAPES)]


def model_of(tokenizer, dropout=0.0, **fields):
    config = sb.SpanBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=40,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **fields,
    )
    return large_init(sb.SpanBertForPreTraining(config)).train()


def step(model, batch):
    """(outputs, gradients by name) of one forward and backward."""
    model.zero_grad()
    outputs = model(**batch)
    outputs.loss.backward()
    return outputs, {name: p.grad.clone() for name, p in model.named_parameters()}
