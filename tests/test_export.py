"""Exported checkpoints, loaded in a process that cannot import this package."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

import family_cases
import spanbert_fast as sb
from spanbert_fast import models
from spanbert_fast.cli import main
from spanbert_fast.config import SpanBertConfig
from test_checkpoints import SIZES, assert_same_state, pretraining, randomize


@pytest.fixture
def old(tmp_path):
    """A checkpoint of an earlier version: our own model type, and both heads in one file."""
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


@pytest.mark.parametrize(
    ("name", "head", "to"),
    [
        ("roberta", "RobertaForMaskedLM", "as-loaded"),
        ("distilbert", "DistilBertForSequenceClassification", "safetensors-fp16"),
        ("xlm_roberta", "XLMRobertaForTokenClassification", "onnx"),
    ],
)
def test_another_family_stays_what_it_is(tmp_path, capsys, name, head, to):
    """An accelerated model is saved as transformers' own class."""
    made = sb.accelerate(family_cases.model(name, head)).eval()
    made.save_pretrained(tmp_path / "ours")
    for file in ("merges.txt", "vocab.json", "tokenizer.json"):
        (tmp_path / "ours" / file).write_text("{}")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "ours"), str(out), "--to", to]) == 0
    assert f"{head}, outputs elsewhere differ by " in capsys.readouterr().out
    assert {"merges.txt", "vocab.json", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    if to == "onnx":
        return
    again = getattr(transformers, head).from_pretrained(out)
    ids = family_cases.ids()[:1, : family_cases.SEQLEN]
    with torch.no_grad():
        ours, theirs = made(ids).logits, again.float()(ids).logits
    assert ours.std() > 0.3
    assert (ours - theirs).abs().max() < (2e-2 if "16" in to else 1e-4) * ours.abs().max()


def test_what_is_no_bert_is_told_how_to_be_written(tmp_path, capsys):
    family_cases.model("roberta", "RobertaForMaskedLM").save_pretrained(tmp_path / "ours")
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "out"), "--to", "bert"]) == 2
    assert "is no BERT but of the type roberta: --to as-loaded" in capsys.readouterr().err
    config = transformers.AlbertConfig(
        vocab_size=20, hidden_size=16, embedding_size=8, num_attention_heads=2, intermediate_size=16
    )
    transformers.AlbertForMaskedLM(config).save_pretrained(tmp_path / "albert")
    assert main(["export", str(tmp_path / "albert"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "must be a model of BERT, RoBERTa, " in said and "got AlbertForMaskedLM" in said
    assert not (tmp_path / "out").exists()
