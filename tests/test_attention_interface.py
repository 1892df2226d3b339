"""attn_implementation="spanbert_fast" in encoders of transformers other than BERT."""

import copy

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertModel,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
)

from bert_cases import large_init
from spanbert_fast.integrations import attention
from spanbert_fast.testing import assert_bitwise_equal, assert_models_agree, gradients_of

NAME = "spanbert_fast"
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 100,
    "max_position_embeddings": 40,
}
ENCODERS = {
    "roberta": (RobertaConfig, RobertaModel),
    "electra": (ElectraConfig, ElectraModel),
    "bert": (BertConfig, BertModel),
}
LENGTHS = torch.tensor([19, 1, 7, 18])


def encoder(kind, **fields):
    """Every parameter normal with std 0.3; norm weights around 1."""
    config_class, model_class = ENCODERS[kind]
    return large_init(model_class(config_class(**SIZES, **fields, attn_implementation=NAME)))


def batch():
    mask = (torch.arange(19) < LENGTHS[:, None]).long()
    return torch.randint(3, 97, (4, 19)) * mask, mask


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("padded", [True, False])
def test_encoder_equals_sdpa(kind, padded):
    ids, mask = batch()
    inputs = {"attention_mask": mask} if padded else {}
    real = mask.bool() if padded else torch.ones(4, 19, dtype=torch.bool)
    ours = encoder(kind)
    theirs = copy.deepcopy(ours)
    theirs.set_attn_implementation("sdpa")
    truth = copy.deepcopy(theirs).double()
    weight = torch.randn(4, 19, 64).double()

    def run(model):
        output = model(ids, **inputs).last_hidden_state
        model.zero_grad()
        (output * weight.to(output.dtype))[real].sum().backward()
        return {"last_hidden_state": output[real].detach(), **gradients_of(model)}

    assert_models_agree(run(ours), run(theirs), truth, run)


def test_packing_is_found_once_for_all_layers(monkeypatch):
    ids, mask = batch()
    calls = []
    original = attention.Packing.of_padded
    monkeypatch.setattr(
        attention.Packing, "of_padded", lambda *args: calls.append(args) or original(*args)
    )
    encoder("roberta")(ids, attention_mask=mask)
    assert len(calls) == 1


def test_dropout_is_that_of_the_op():
    """With dropout in attention alone, outputs depend on torch's seed, and their mean is
    unchanged."""
    ids, mask = batch()
    model = encoder("roberta", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.25)
    still = model(ids, attention_mask=mask)[0]
    assert_bitwise_equal(model(ids, attention_mask=mask)[0], still)
    model.train()
    torch.manual_seed(3)
    first = model(ids, attention_mask=mask)[0]
    assert not torch.equal(model(ids, attention_mask=mask)[0], first)
    torch.manual_seed(3)
    assert_bitwise_equal(model(ids, attention_mask=mask)[0], first)

    layer = model.encoder.layer[0].attention.self
    x = torch.randn(1, 19, 64)
    with torch.no_grad():
        contexts = torch.stack([layer(x)[0] for _ in range(400)])
        mean, error = contexts.mean(0), contexts.std(0) / 20
        expected = layer.eval()(x)[0]
    # of 1216 elements, none is further than 6 standard errors by chance
    assert ((mean - expected).abs() < 6 * error).all()
    assert (error > 0).all()


def test_masks_of_padding_come_through():
    """Masks given to the layers directly: in two or four dimensions, boolean or additive."""
    ids, mask = batch()
    model = encoder("roberta")
    expected = model(ids, attention_mask=mask)[0][mask.bool()]
    keys = mask.bool()[:, None, None, :]
    added = torch.where(keys, 0.0, torch.finfo(torch.float32).min)
    for given in (keys, keys.expand(-1, -1, 19, -1), added, added.expand(-1, -1, 19, -1).clone()):
        assert_bitwise_equal(model(ids, attention_mask=given)[0][mask.bool()], expected)


def test_gradient_checkpointing_changes_nothing():
    ids, mask = batch()
    model = encoder("roberta").train()
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(1)
        model(ids, attention_mask=mask)[0][mask.bool()].sin().sum().backward()
        grads.append([p.grad.clone() for p in model.encoder.parameters()])
    for a, b in zip(*grads, strict=True):
        assert_bitwise_equal(a, b)


def test_refusals():
    ids, mask = batch()
    model = encoder("roberta")
    causal = torch.ones(19, 19, dtype=torch.bool).tril().expand(4, 1, -1, -1)
    with pytest.raises(ValueError, match="attention_mask must be a mask of padding"):
        model(ids, attention_mask=causal)
    with pytest.raises(ValueError, match="output_attentions must be False"):
        model(ids, output_attentions=True)
    decoder = GPT2Model(GPT2Config(n_embd=64, n_layer=1, n_head=2, attn_implementation=NAME))
    with pytest.raises(ValueError, match="attention must be bidirectional"):
        decoder(ids, attention_mask=mask)
    query = torch.randn(2, 4, 6, 8)
    module = torch.nn.Module()
    for message, change in {
        "key must have the query's shape": {"key": query[:, :, :3]},
        "softcap must be None": {"softcap": 30.0},
        "is_causal must be False": {"is_causal": True},
    }.items():
        inputs = {"query": query, "key": query, "value": query, "attention_mask": None, **change}
        with pytest.raises(ValueError, match=message):
            attention.attention_forward(module, **inputs)
    with pytest.raises(ValueError, match="queries and keys must be the same tokens"):
        attention.attention_mask_of(2, 3, 6, attention.bidirectional_mask_function)


@pytest.mark.parametrize("kind", ["DebertaV2", "MPNet", "RoFormer"])
def test_models_that_would_ignore_the_name_are_refused(kind):
    """Their attention has its own code and never looks the name up."""
    config = getattr(transformers, f"{kind}Config")(**SIZES)
    for head in ("Model", "ForTokenClassification"):
        made = getattr(transformers, f"{kind}{head}")
        with pytest.raises(ValueError, match=f"got {kind}{head}, whose attention is its own"):
            made._from_config(config, attn_implementation=NAME)
        made._from_config(config, attn_implementation="eager")


def test_a_user_s_own_model_may_use_the_name():
    class Own(RobertaModel):
        pass

    class Other(transformers.PreTrainedModel):
        """A model from outside transformers: its author decides what the name means."""

        config_class = RobertaConfig

    for made in (Own, Other):
        model = made(RobertaConfig(**SIZES, attn_implementation=NAME))
        assert model.config._attn_implementation == NAME


def test_a_mask_that_a_model_adds_itself_is_refused():
    """User code that asks transformers for a mask and adds it to its own scores."""
    _, mask = batch()
    made = attention.attention_mask_of(4, 19, 19, attention.bidirectional_mask_function, mask)
    with pytest.raises(ValueError, match="adds its mask to its scores itself"):
        torch.zeros(4, 2, 19, 19) + made
