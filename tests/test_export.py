"""Checkpoints for other software, checked in a process that does not know this package."""

import json

import pytest
import torch
from safetensors.torch import load_file

from spanbert_fast import models
from spanbert_fast.cli import main
from spanbert_fast.config import SpanBertConfig
from test_checkpoints import SIZES, assert_same_state, pretraining, randomize


@pytest.fixture
def old(tmp_path):
    """What earlier versions have written: a model type of our own, both heads in one file."""
    folder = tmp_path / "old"
    pretraining().save_pretrained(folder)
    path = folder / "config.json"
    own = {"model_type": "spanbert", "architectures": ["SpanBertForPreTraining"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def test_an_old_checkpoint_becomes_an_ordinary_bert(old, tmp_path, capsys):
    assert main(["export", str(old), str(tmp_path / "new")]) == 0
    assert "BertForMaskedLM, outputs elsewhere differ by " in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == "bert"
    assert (tmp_path / "new" / "tokenizer_config.json").is_file()
    before = models.SpanBertForPreTraining.from_pretrained(old)
    after = models.SpanBertForPreTraining.from_pretrained(tmp_path / "new")
    assert_same_state(after, before.state_dict())
    assert main(["export", str(old), str(tmp_path / "new")]) == 2
    assert "is there already and not empty" in capsys.readouterr().err


def test_half_precision_of_a_task_s_model(tmp_path):
    kind = models.SpanBertForSequenceClassification
    randomize(kind(SpanBertConfig(**SIZES, num_labels=3))).save_pretrained(tmp_path / "model")
    out = tmp_path / "half"
    assert main(["export", str(tmp_path / "model"), str(out), "--to", "safetensors-bf16"]) == 0
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_onnx(old, tmp_path):
    import onnxruntime

    assert main(["export", str(old), str(tmp_path / "onnx"), "--to", "onnx"]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    assert [entry.name for entry in session.get_inputs()] == ["input_ids", "attention_mask"]
