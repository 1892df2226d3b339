"""accelerate() changes Hugging Face models in place, and their results stay the same."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from transformers import MPNetConfig, MPNetModel
from transformers.models.bert import modeling_bert as stock

import spanbert_fast as sb
from accelerate_cases import (
    MODELS,
    SIZES,
    batch,
    config,
    inputs_of,
    results,
    without,
)
from bert_cases import large_init
from spanbert_fast.accelerated.registry import fast_class
from spanbert_fast.testing import assert_bitwise_equal, assert_models_agree


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_equal(name, training):
    model = large_init(MODELS[name](config())).train(training)
    truth = copy.deepcopy(model).double()
    inputs = inputs_of(name)
    mask = inputs.get("attention_mask")
    mask = mask.bool() if mask is not None and mask.dim() == 2 else None
    theirs = results(model, inputs, mask)
    assert sb.accelerate(model, full_logits=True) is model
    ours = results(model, inputs, mask)
    assert_models_agree(ours, theirs, truth, lambda m: results(m, inputs, mask))
    assert any(type(part) is fast_class(stock.BertLayer) for part in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_nothing_but_classes_changes_and_decelerate_undoes_it(name, tmp_path):
    model = MODELS[name](config())
    optimizer = torch.optim.AdamW(model.parameters())
    before = [(n, m, type(m), dict(vars(m))) for n, m in model.named_modules()]
    parameters = dict(model.named_parameters())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    sb.accelerate(model)
    sb.accelerate(model)  # a second call changes nothing
    assert isinstance(model, MODELS[name]) and type(model).__name__ == name
    assert {n: id(p) for n, p in model.named_parameters()} == {
        n: id(p) for n, p in parameters.items()
    }
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in model.parameters()
    }
    assert list(model.state_dict()) == list(state)
    inputs = inputs_of(name)
    model.eval()
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    outputs = [m(**inputs) for m in (model, *copies)]
    for other in outputs[1:]:
        assert_bitwise_equal(next(iter(other.values())), next(iter(outputs[0].values())))
    if name not in ("Holder", "OwnBert"):
        model.save_pretrained(tmp_path)
        again = MODELS[name].from_pretrained(tmp_path)
        assert again.config.architectures == [name]
        for key, value in again.state_dict().items():
            assert_bitwise_equal(value, state[key])
    model.train()
    assert sb.decelerate(model) is model
    for (n, m, kind, fields), (now_name, now) in zip(before, model.named_modules(), strict=True):
        assert (n, id(m), kind) == (now_name, id(now), type(now))
        assert vars(now) == fields
    with pytest.raises(ValueError, match=f"model must be accelerated, got {name} as it was"):
        sb.decelerate(model)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForSequenceClassification"])
@pytest.mark.parametrize(
    "frozen", ["embeddings", "word_embeddings", "LayerNorm", "bias", "layer.0", "dense", "query"]
)
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(name, frozen):
    model = large_init(MODELS[name](config())).train()
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in parameter_name)
    truth = copy.deepcopy(model).double()
    inputs = inputs_of(name)
    mask = inputs["attention_mask"].bool()
    theirs = without(results(model, inputs, mask), "logits")
    sb.accelerate(model)  # the masked LM computes the loss of the labelled rows only
    ours = without(results(model, inputs, mask), "logits")
    run = lambda m: without(results(m, inputs, mask), "logits")  # noqa: E731
    assert_models_agree(ours, theirs, truth, run)


def test_gradients_reach_the_input_embeddings():
    model = large_init(stock.BertModel(config()))
    truth = copy.deepcopy(model).double()
    embeddings, mask = torch.randn(4, 19, 64), batch()["attention_mask"].bool()

    def gradient(model):
        x = embeddings.to(model.dtype, copy=True).requires_grad_()
        output = model(inputs_embeds=x, attention_mask=mask.long())
        (output.last_hidden_state[mask].sin().sum() + output.pooler_output.sum()).backward()
        assert not x.grad[~mask].any()
        return {"inputs_embeds": x.grad}

    theirs = gradient(model)
    assert_models_agree(gradient(sb.accelerate(model)), theirs, truth, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForTokenClassification"])
def test_models_in_half_precision(name, dtype):
    model = large_init(MODELS[name](config())).to(dtype)
    truth = copy.deepcopy(model).double()
    inputs = inputs_of(name)
    mask = inputs["attention_mask"].bool()
    theirs, exact = results(model, inputs, mask), results(truth, inputs, mask)
    ours = results(sb.accelerate(model), inputs, mask)
    assert ours.keys() == exact.keys()
    for key, value in exact.items():
        assert ours[key].dtype == theirs[key].dtype
        if key.endswith("key.bias"):  # softmax ignores the keys' bias, so it has no gradient
            continue
        # C5's factor applies to the mean error; the floor is four roundings of the largest element
        errors = [(x[key].double() - value).abs().mean().item() for x in (ours, theirs)]
        floor = 4 * torch.finfo(dtype).eps * value.abs().max().item()
        assert errors[0] <= 2 * errors[1] + floor, key


def test_there_and_back_in_mid_training():
    """One optimiser serves all steps, and each step is the one that transformers takes."""
    models = [stock.BertForMaskedLM(config()).train()]
    models.append(copy.deepcopy(models[0]))
    optimizers = [torch.optim.AdamW(model.parameters(), 1e-3) for model in models]
    sb.accelerate(models[0])
    for step in range(6):
        if step in (2, 4):
            (sb.decelerate if step == 2 else sb.accelerate)(models[0])
        inputs, losses = inputs_of("BertForMaskedLM"), []
        for model, optimizer in zip(models, optimizers, strict=True):
            losses.append(model(**inputs).loss)
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_modes_and_fields_of_the_configuration():
    """inference_mode, a batch of one, and return_dict and output_hidden_states set in the
    config."""
    for name in ("BertModel", "BertForSequenceClassification", "BertForQuestionAnswering"):
        model = large_init(MODELS[name](config()))
        fast = sb.accelerate(copy.deepcopy(model))
        inputs = {k: v[:1] for k, v in inputs_of(name).items()}
        with torch.inference_mode():
            torch.testing.assert_close(
                fast(**inputs).to_tuple(), model(**inputs).to_tuple(), rtol=1e-3, atol=1e-3
            )
        for field, value in (("output_hidden_states", True), ("return_dict", False)):
            setattr(model.config, field, value)
            setattr(fast.config, field, value)
            ours, theirs = fast(**inputs), model(**inputs)
            assert type(ours) is type(theirs) and len(ours) == len(theirs)


# Refusals


def test_what_cannot_be_is_refused_and_never_wrong():
    """Second derivatives are refused, and so is a trace that would record one batch's packing."""
    model = sb.accelerate(stock.BertForSequenceClassification(config())).eval()
    inputs, parameters = inputs_of("BertForSequenceClassification"), list(model.parameters())
    gradients = torch.autograd.grad(model(**inputs).loss, parameters, create_graph=True)
    with pytest.raises(RuntimeError, match="must be differentiated once, got a second derivative"):
        sum(gradient.square().sum() for gradient in gradients).backward()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with pytest.raises(RuntimeError, match="attention_mask must be None where torch.export"):
        torch.jit.trace(model, (ids, mask), strict=False)
    with pytest.raises(RuntimeError, match="attention_mask must be None where torch.export"):
        torch.export.export(model, (ids, mask))
    exported = torch.export.export(sb.decelerate(model), (ids, mask)).module()
    torch.testing.assert_close(exported(ids, mask).logits, model(ids, mask).logits)


def with_own_part(part):
    """A BERT in which one module was replaced by another class, or patched."""
    model = stock.BertModel(config())
    layer = model.encoder.layer[1]
    if part == "attention":

        class OwnAttention(stock.BertSelfAttention):
            pass

        layer.attention.self = OwnAttention(model.config)
    elif part == "output":
        layer.output = nn.Identity()
    elif part == "patched":
        layer.intermediate.forward = lambda x: x
    return model


REFUSED = {
    "decoder": (
        lambda: stock.BertLMHeadModel(config(is_decoder=True)),
        "BertLMHeadModel must be an encoder, got is_decoder=True",
    ),
    "cross-attention": (
        lambda: stock.BertModel(config(is_decoder=True, add_cross_attention=True)),
        "must be an encoder, got is_decoder=True and add_cross_attention=True",
    ),
    "relative positions": (
        lambda: stock.BertModel(config(position_embedding_type="relative_key")),
        'BertModel must have absolute positions, got "relative_key"',
    ),
    "activation": (
        lambda: stock.BertModel(config(hidden_act="relu")),
        r'encoder.layer.0.intermediate must have hidden_act "gelu" \(the erf form\), got ReLU',
    ),
    "tanh activation": (
        lambda: stock.BertModel(config(hidden_act="gelu_new")),
        "got NewGELUActivation",
    ),
    "own attention": (
        lambda: with_own_part("attention"),
        "encoder.layer.1.attention.self must be transformers' own BertSelfAttention, got its "
        "subclass OwnAttention",
    ),
    "own output": (
        lambda: with_own_part("output"),
        "encoder.layer.1.output must be transformers' own module, got Identity",
    ),
    "patched": (
        lambda: with_own_part("patched"),
        "encoder.layer.1.intermediate must not have a forward of its own",
    ),
    "dropout": (
        lambda: stock.BertModel(config(hidden_dropout_prob=0.001)),
        r"embeddings.dropout must be 0 or in \[1/512, 511/512\), got 0.001",
    ),
    "another family": (
        lambda: MPNetModel(MPNetConfig(**SIZES)),
        "MPNetModel must be of a family that accelerate knows, got MPNetModel: MPNet adds a bias",
    ),
    "no encoder": (
        lambda: nn.Linear(2, 2),
        "model must hold an encoder of BERT, RoBERTa, .* got Linear, which is none",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refuses_and_changes_nothing(kind):
    make, message = REFUSED[kind]
    model = make()
    kinds = [type(part) for part in model.modules()]
    with pytest.raises(ValueError, match=message):
        sb.accelerate(model)
    assert [type(part) for part in model.modules()] == kinds


def test_warnings_come_from_no_ordinary_call():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for name in MODELS:
            sb.accelerate(MODELS[name](config()))(**inputs_of(name))
