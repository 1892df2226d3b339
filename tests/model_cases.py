"""Shared by the tests of the SpanBERT models: ours beside stock BERT, batches."""

import torch
from torch.nn import functional as F
from transformers import BertConfig

from bert_cases import SIZES, large_init
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models import SpanBertForPreTraining
from spanbert_fast.models.inputs import EncoderInputs

SPAN_SIZES = {"max_span_targets": 4, "span_position_embedding_size": 12}


def pretraining_model():
    """A SpanBertForPreTraining of 2 layers with large weights, for `collator_cases`' batches."""
    config = SpanBertConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=100, max_position_embeddings=130, max_span_targets=20,
        span_position_embedding_size=12,
    )  # fmt: skip
    return large_init(SpanBertForPreTraining(config))


def pair(ours_class, theirs_class, **fields):
    """(ours, theirs, theirs in fp64) with the same large weights; theirs with eager attention."""
    ours = large_init(ours_class(SpanBertConfig(**SIZES, **fields)))
    config = BertConfig(**SIZES, **fields, attn_implementation="eager")
    theirs, truth = theirs_class(config).eval(), theirs_class(config).eval()
    for model in (theirs, truth):
        wanted = model.state_dict().keys()
        held = {k: v for k, v in ours.state_dict().items() if "span_boundary" not in k}
        assert held.keys() == wanted  # C1: the names are Hugging Face's
        model.load_state_dict(held)
    return ours, theirs, truth.double()


def batch(kind):
    """Keyword arguments of a BERT, and the mask of real tokens."""
    shape = {"length 1": (3, 1), "max length": (2, 40), "one sequence": (1, 17)}.get(kind, (4, 19))
    ids = torch.randint(1, 97, shape)
    mask = torch.ones(shape, dtype=torch.int64)
    inputs = {"input_ids": ids}
    if kind in ("padded", "everything"):
        for row, length in enumerate((19, 1, 7, 18)):
            mask[row, length:] = 0
        ids[mask == 0] = 0
        inputs["attention_mask"] = mask
    if kind in ("token types", "everything"):
        inputs["token_type_ids"] = torch.randint(0, 2, shape)
    if kind in ("positions", "everything"):
        inputs["position_ids"] = torch.randint(0, 40, (1 if kind == "positions" else 4, 19))
    if kind == "embeddings":
        inputs = {"inputs_embeds": torch.randn(*shape, 64)}
    return inputs, mask.bool()


def encode(model, plan=None, rows=None, **inputs):
    """The packed hidden states of a SpanBertModel."""
    limit = model.config.max_position_embeddings
    inputs = EncoderInputs.of(**inputs, max_positions=limit)
    return model.encode(inputs, rows=rows, plan=plan).hidden_states


def packed(inputs, real):
    lengths = real.sum(1)
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    keep = {k: v for k, v in inputs.items() if k != "attention_mask"}
    return {**{k: v[real] for k, v in keep.items()}, "cu_seqlens": cu_seqlens}
