"""from_pretrained refuses an encoder that is incomplete, not finite, or unlike its config."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from spanbert_fast import digests
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.errors import DataError
from spanbert_fast.models import (
    SpanBertForPreTraining,
    SpanBertForSequenceClassification,
    SpanBertModel,
)
from spanbert_fast.testing import assert_bitwise_equal

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "max_span_targets": 4,
    "span_position_embedding_size": 8,
}
CLASSES = (SpanBertForPreTraining, SpanBertForSequenceClassification, SpanBertModel)


@pytest.fixture
def saved(tmp_path):
    """(directory, its tensors); `write` replaces them."""
    model = SpanBertForPreTraining(SpanBertConfig(**SIZES))
    model.save_pretrained(tmp_path)
    return tmp_path, load_file(tmp_path / "model.safetensors")


def write(directory, tensors):
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_config(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("spanbert_fast"), "propagate", True)
    caplog.set_level("INFO", "spanbert_fast")
    return caplog


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "roberta."])
def test_a_known_prefix_is_left_out_and_said(saved, model_class, prefix, log):
    directory, tensors = saved
    if prefix == "roberta.":  # in place of BERT's encoder, and not before the heads
        renamed = {name.replace("bert.", "roberta.", 1): t for name, t in tensors.items()}
    else:
        renamed = {prefix + name: tensor for name, tensor in tensors.items()}
    write(directory, renamed)
    model = model_class.from_pretrained(directory)
    encoder = getattr(model, "bert", model)
    for name, tensor in tensors.items():
        if name.startswith("bert."):
            assert_bitwise_equal(encoder.state_dict()[name.removeprefix("bert.")], tensor, name)
    assert log.text.count(f'"{prefix}" before the names of its tensors is left out') == 1
    if model_class is SpanBertForPreTraining:
        assert_bitwise_equal(model.cls.span_boundary.bias.detach(), tensors[SPAN_BIAS])


SPAN_BIAS = "cls.span_boundary.bias"
QUERY = "bert.encoder.layer.{}.attention.self.query.weight"


@pytest.mark.parametrize("model_class", CLASSES)
def test_an_encoder_that_is_not_whole_is_refused(saved, model_class):
    directory, tensors = saved

    def refused(changed, message):
        write(directory, changed)
        with pytest.raises(DataError, match=message) as caught:
            model_class.from_pretrained(directory)
        assert str(directory) in str(caught.value) and "\n" not in str(caught.value)

    base = "" if model_class is SpanBertModel else "bert."
    one = {name: t for name, t in tensors.items() if name != QUERY.format(1)}
    name = base + "encoder.layer.1.attention.self.query.weight"
    refused(one, rf"lacks 1 tensor of the encoder \({name}\): it is incomplete, or another model")
    refused(
        {f"tower.{name}": t for name, t in tensors.items()},
        rf"lacks 53 tensors of the encoder \({base}embeddings.LayerNorm.bias, .*, \.\.\.\): "
        'the names in the file begin with "tower."',
    )
    refused({SPAN_BIAS: tensors[SPAN_BIAS]}, "lacks 53 tensors of the encoder")
    stray = {**tensors, "bert.encoder.layer.0.adapter.weight": torch.ones(2)}
    refused(stray, r"also holds 1 tensor of the encoder \(.*layer.0.adapter.weight\): it is incom")
    for value in (float("nan"), float("inf"), float("-inf")):
        bad = tensors[QUERY.format(2)].clone()
        bad[3, 5] = value
        refused({**tensors, QUERY.format(2): bad}, "layer.2.attention.self.query.weight holds valu")
    write(directory, tensors)
    for layers, what in ((2, "also holds 16 tensors"), (4, "lacks 16 tensors")):
        edit_config(directory, num_hidden_layers=layers)
        cause = f"the configuration's num_hidden_layers is {layers}"
        refused(tensors, f"{what} of the encoder .*: {cause}")


def test_heads_may_be_missing_and_are_said_once(saved, log):
    directory, tensors = saved
    SpanBertForSequenceClassification.from_pretrained(directory)
    lines = [record.getMessage() for record in log.records if "initialised" in record.getMessage()]
    assert lines == [
        f"the checkpoint {directory}: lacks bert.pooler.*, classifier.*: initialised; "
        "cls.predictions.*, cls.span_boundary.* left out"
    ]
    # extra tensors that old versions of transformers wrote are no fault
    write(directory, {**tensors, "bert.embeddings.position_ids": torch.arange(16)[None]})
    SpanBertForPreTraining.from_pretrained(directory)


def test_digests_show_what_no_shape_does(saved):
    """Digests reveal a flipped bit and another head count; saving again renews them."""
    directory, _ = saved
    digests.write_digests(directory, SpanBertConfig(**SIZES))
    model = SpanBertModel.from_pretrained(directory)
    for fields, message in (
        ({"num_attention_heads": 4}, "num_attention_heads is 4, its weights were written with 2"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05, its weights were written with 1e-12"),
    ):
        before = (directory / "config.json").read_text()
        edit_config(directory, **fields)
        with pytest.raises(DataError, match=message):
            SpanBertModel.from_pretrained(directory)
        (directory / "config.json").write_text(before)
    edit_config(directory, hidden_dropout_prob=0.2)  # this file may be edited
    assert SpanBertModel.from_pretrained(directory).config.hidden_dropout_prob == 0.2
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DataError, match="model.safetensors does not have the digest that was"):
        SpanBertModel.from_pretrained(directory)
    weights.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"model.safetensors has [\d,]+ bytes where [\d,]+ were"):
        SpanBertModel.from_pretrained(directory)
    model.save_pretrained(directory)
    assert not (directory / digests.FILE).exists()
    SpanBertModel.from_pretrained(directory)


def test_damage_is_named(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, content in (("a.pt", b"abc"), ("sub/b.bin", b"")):
        (tmp_path / name).write_bytes(content)
    assert "digests.json, which is written last, is missing" in digests.damage(tmp_path)
    digests.write_digests(tmp_path)
    assert digests.damage(tmp_path) is None
    (tmp_path / "sub" / "b.bin").unlink()
    assert digests.damage(tmp_path) == "sub/b.bin is missing"
    assert digests.damage(tmp_path, ["a.pt"]) is None
    assert digests.damage(tmp_path, ["c.pt"]) == "c.pt has no digest in digests.json"
    path = tmp_path / digests.FILE
    whole = path.read_text()
    for text in ("", "[]", "{}", whole[:-5], whole.replace('"bytes": 3', '"bytes": null')):
        path.write_text(text)
        assert digests.damage(tmp_path) == "digests.json is corrupt"
