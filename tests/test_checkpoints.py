"""Checkpoints both ways (C1): Hugging Face's and the original release's."""

import json
import sys

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
)

from checkpoint_cases import SIZES, SPAN_SIZES, assert_same_state, pretraining, randomize
from spanbert_fast import models
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.errors import DataError
from spanbert_fast.models import SpanBertForMaskedLM, SpanBertForPreTraining, SpanBertModel
from spanbert_fast.testing import assert_bitwise_equal


def inputs():
    return {
        "input_ids": torch.randint(1, 61, (2, 9)),
        "attention_mask": torch.tensor([[1] * 9, [1] * 5 + [0] * 4]),
    }


# Hugging Face BERT, both ways


def test_ours_in_stock_bert(tmp_path):
    ours = pretraining()
    ours.save_pretrained(tmp_path)
    batch = inputs()
    real = batch["attention_mask"].bool()
    bert, info = BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {k.split(".")[0] for k in info["missing_keys"]} <= {"pooler"}
    masked_lm, info = BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert all(k.startswith("cls.span_boundary.") for k in info["unexpected_keys"])
    hidden = ours.bert(**batch).last_hidden_state
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(bert(**batch).last_hidden_state[real], hidden[real], **close)
    torch.testing.assert_close(masked_lm(**batch).logits[real], ours(**batch).logits[real], **close)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_stock_bert_in_ours(tmp_path, safe):
    bert = randomize(BertForPreTraining(BertConfig(**SIZES)))
    bert.save_pretrained(tmp_path)
    if not safe:
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    batch = inputs()
    real = batch["attention_mask"].bool()
    model, info = SpanBertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    # a warm start: the log names the missing weights
    assert info["missing_keys"] == {
        f"cls.span_boundary.{name}" for name in model.cls.span_boundary.state_dict()
    }
    assert all("pooler" in k or "seq_relationship" in k for k in info["unexpected_keys"])
    assert_same_state(model.bert, SpanBertModel.from_pretrained(tmp_path).state_dict(), POOLER)
    torch.testing.assert_close(
        model(**batch).logits[real], bert(**batch).prediction_logits[real], rtol=1e-4, atol=1e-4
    )
    head = model.cls.span_boundary
    assert not head.bias.any() and not head.linear1.bias.any()
    assert 0.015 < head.linear1.weight.std() < 0.025
    assert_bitwise_equal(head.layer_norm1.weight, torch.ones(64))
    with_pooler = SpanBertModel.from_pretrained(tmp_path)
    torch.testing.assert_close(
        with_pooler(**batch).pooler_output, bert.bert(**batch).pooler_output, rtol=1e-4, atol=1e-4
    )


POOLER = ("pooler.dense.weight", "pooler.dense.bias")


def test_save_and_load_round_trip(tmp_path):
    model = pretraining(sbo_weight=0.5, pair_loss_weight=0.25)
    model.save_pretrained(tmp_path)
    again, info = SpanBertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_state(again, model.state_dict())
    for name in ("sbo_weight", "pair_loss_weight", "max_span_targets"):
        assert getattr(again.config, name) == getattr(model.config, name)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    # tied weights are stored once
    assert names == set(model.state_dict()) - set(SpanBertForPreTraining._tied_weights_keys)
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight
    assert again.cls.predictions.decoder.bias is again.cls.predictions.bias


def test_load_in_half_precision(tmp_path):
    pretraining().save_pretrained(tmp_path)
    model = SpanBertForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(**inputs()).logits.dtype == torch.bfloat16


AUTO = (
    "",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)


def test_auto_classes(tmp_path):
    pretraining().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    assert content["model_type"] == "bert" and content["architectures"] == ["BertForMaskedLM"]
    assert content["max_span_targets"] == SPAN_SIZES["max_span_targets"]
    for name in AUTO:
        model = getattr(transformers, f"AutoModel{name}").from_pretrained(tmp_path)
        assert type(model) is getattr(transformers, f"Bert{name or 'Model'}")
    # checkpoints of earlier versions name our own classes, and still load
    old = {"model_type": "spanbert", "architectures": ["SpanBertForPreTraining"]}
    path.write_text(json.dumps({**content, **old}))
    assert isinstance(AutoConfig.from_pretrained(tmp_path), SpanBertConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), SpanBertModel)
    assert isinstance(AutoModelForMaskedLM.from_pretrained(tmp_path), SpanBertForMaskedLM)
    for name in ("ForPreTraining", *AUTO[2:]):
        model = getattr(transformers, f"AutoModel{name}").from_pretrained(tmp_path)
        assert type(model) is getattr(models, f"SpanBert{name}")
    labelled = models.SpanBertForTokenClassification.from_pretrained(tmp_path, num_labels=7)
    assert labelled.classifier.out_features == 7


def test_resize_token_embeddings(tmp_path):
    model = pretraining()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model.resize_token_embeddings(70)
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        assert_bitwise_equal(model.state_dict()[name][:61], before[name], name)
    bias = model.cls.span_boundary.bias.detach()
    assert_bitwise_equal(bias[:61], before["cls.span_boundary.bias"])
    assert bias.shape == (70,) and model.config.vocab_size == 70
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    loss = model(
        torch.full((1, 4), 69),
        mlm_positions=torch.tensor([1]),
        mlm_targets=torch.tensor([69]),
        span_boundaries=torch.tensor([[0, 2]]),
        cu_span_lengths=torch.tensor([0, 1], dtype=torch.int32),
        sbo_targets=torch.tensor([69]),
    ).loss
    assert loss.isfinite()
    model.save_pretrained(tmp_path)
    assert_same_state(SpanBertForPreTraining.from_pretrained(tmp_path), model.state_dict())


# Configurations


def test_config_reads_bert_and_refuses_what_it_is_not(tmp_path):
    BertConfig(**SIZES).save_pretrained(tmp_path)
    config = SpanBertConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.vocab_size, config.max_span_targets) == ("spanbert", 61, 20)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "roberta"}))
    with pytest.raises(ValueError, match='model_type must be "bert" or "spanbert", got "roberta"'):
        SpanBertConfig.from_pretrained(tmp_path)
    for fields, message in (
        ({"hidden_act": "relu"}, 'hidden_act must be "gelu"'),
        ({"is_decoder": True}, "is_decoder and add_cross_attention must be False"),
        ({"position_embedding_type": "relative_key"}, 'must be "absolute", got "relative_key"'),
        ({"pair_loss_form": "other"}, 'pair_loss_form must be "likelihood" or "printed"'),
    ):
        with pytest.raises(ValueError, match=message):
            SpanBertConfig(**SIZES, **fields)


# The original release: pytorch_model.bin, no model_type, norms called gamma and beta


def released(directory, model, legacy=False):
    """Write `model` in the format of the original release."""
    state = {}
    for name, tensor in model.state_dict().items():
        if "span_boundary" not in name and name != "cls.predictions.decoder.bias":
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            state[name.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
    assert any(name.endswith("gamma") for name in state)
    torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    fields = {**SIZES, "hidden_act": "gelu", "directionality": "bidi", "type_vocab_size": 2}
    (directory / "config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("legacy", [False, True])
def test_released_directory(tmp_path, legacy):
    model = pretraining()
    released(tmp_path, model, legacy)
    again, info = SpanBertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    span_head = [name for name in model.state_dict() if "span_boundary" in name]
    assert info["missing_keys"] == set(span_head) and not info["unexpected_keys"]
    assert_same_state(again, model.state_dict(), span_head)
    batch = inputs()
    bare = SpanBertForMaskedLM.from_pretrained(tmp_path)
    assert_bitwise_equal(bare(**batch).logits, model(**batch).logits)
    labelled = models.SpanBertForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert labelled.num_labels == 5
    # saved again, it has today's names
    again.save_pretrained(tmp_path / "again")
    names = set(load_file(tmp_path / "again" / "model.safetensors"))
    assert not any(name.endswith(("gamma", "beta")) for name in names)
    reloaded = SpanBertForPreTraining.from_pretrained(tmp_path / "again")
    assert_same_state(reloaded, again.state_dict())


# Errors of loading


def test_another_shape_names_the_tensor(tmp_path):
    pretraining().save_pretrained(tmp_path)
    config = SpanBertConfig(**{**SIZES, "vocab_size": 50}, **SPAN_SIZES)
    with pytest.raises(
        DataError,
        match=r"bert.embeddings.word_embeddings.weight must have shape \(50, 64\) for "
        r"SpanBertForMaskedLM, got \(61, 64\) in the checkpoint",
    ):
        SpanBertForMaskedLM.from_pretrained(tmp_path, config=config)
    model, info = SpanBertForMaskedLM.from_pretrained(
        tmp_path, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert "bert.embeddings.word_embeddings.weight" in {k[0] for k in info["mismatched_keys"]}
    assert model.bert.embeddings.word_embeddings.weight.isfinite().all()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "legacy"])
@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_corrupt_file_is_named(tmp_path, name, kept):
    model = pretraining()
    if name == "model.safetensors":
        model.save_pretrained(tmp_path)
    else:
        released(tmp_path, model, legacy=name == "legacy")
    path = tmp_path / ("pytorch_model.bin" if name == "legacy" else name)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="cannot be read") as error:
        SpanBertForMaskedLM.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


class Malicious:
    def __reduce__(self):
        return (exec, ("import sys; sys.pwned = True",))


def test_no_code_of_a_checkpoint_runs(tmp_path):
    released(tmp_path, pretraining())
    torch.save({"bert.x": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError):
        SpanBertForMaskedLM.from_pretrained(tmp_path)
    assert not hasattr(sys, "pwned")
