"""The heads' parameters: Hugging Face's names, initial values, and the repr of the modules."""

import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from spanbert_fast.nn import MaskedLMHead, SpanBoundaryHead, SpanPretrainingLoss

HIDDEN, VOCAB, PLACES, PLACE_SIZE = 24, 83, 20, 10


def test_masked_lm_head_is_hugging_faces():
    config = BertConfig(hidden_size=HIDDEN, vocab_size=VOCAB, num_attention_heads=2)
    theirs = BertLMPredictionHead(config).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    theirs.decoder.bias = theirs.bias  # as a whole model ties them
    ours = MaskedLMHead(HIDDEN, VOCAB).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(5, HIDDEN, dtype=torch.float64)
    torch.testing.assert_close(ours.logits(x), theirs(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours(x), theirs.transform(x), rtol=1e-12, atol=1e-12)
    assert ours.bias is ours.decoder.bias


def test_parameters_and_their_names():
    head = SpanBoundaryHead(HIDDEN, VOCAB, PLACES, PLACE_SIZE)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {
        "bias": (VOCAB,),
        "position_embeddings.weight": (PLACES, PLACE_SIZE),
        "linear1.weight": (HIDDEN, 2 * HIDDEN + PLACE_SIZE),
        "linear1.bias": (HIDDEN,),
        "layer_norm1.weight": (HIDDEN,),
        "layer_norm1.bias": (HIDDEN,),
        "linear2.weight": (HIDDEN, HIDDEN),
        "linear2.bias": (HIDDEN,),
        "layer_norm2.weight": (HIDDEN,),
        "layer_norm2.bias": (HIDDEN,),
    }
    assert SpanBoundaryHead(768, 100).linear1.weight.shape == (768, 2 * 768 + 200)
    loss = SpanPretrainingLoss(MaskedLMHead(HIDDEN, VOCAB), head)
    assert {name.split(".")[0] for name, _ in loss.named_parameters()} == {
        "predictions",
        "span_boundary",
    }


def test_reset_parameters_and_repr():
    head = SpanBoundaryHead(HIDDEN, VOCAB, PLACES, PLACE_SIZE)
    loss = SpanPretrainingLoss(MaskedLMHead(HIDDEN, VOCAB), head)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.normal_(std=0.3)
    loss.reset_parameters()
    for name, parameter in loss.named_parameters():
        if "norm" in name.lower():
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert 0.015 < parameter.std() < 0.025, name
    text = repr(loss)
    for part in (
        "sbo_weight=1.0, denominator_offset=0",
        "hidden_size=24, vocab_size=83",
        "max_span_targets=20",
    ):
        assert part in text
