"""Every script in examples/ runs and does what it says."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    BertTokenizerFast,
)
from transformers.models.bert import modeling_bert as stock

from spanbert_fast.models import (
    SpanBertForSequenceClassification,
    SpanBertForTokenClassification,
)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name):
    """Import a script as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_coreference(tmp_path, capsys):
    page = tmp_path / "page.html"
    found = load("coreference").main(["--html", str(page)])
    assert all(len(mentions) > 1 for mentions in found)
    assert f"written: {page}" in capsys.readouterr().out
    assert page.read_text().count("<sub>") == sum(map(len, found))


def test_drop_in_loop(capsys):
    assert load("drop_in_loop").main([]) > 0.9
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 0: loss ") and lines[-1].startswith("accuracy ")


def test_trainer(tmp_path, corpus_file, monkeypatch):
    """Train a masked LM from a BERT with random weights; the result loads as stock BERT."""
    words = sorted(set(corpus_file.read_text().replace(".", " .").split()))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), do_lower_case=False)
    tokenizer.save_pretrained(tmp_path / "start")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "start")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    places = [str(tmp_path / "start"), str(tmp_path / "out"), str(corpus_file)]
    options = ["--batch-size", "32", "--learning-rate", "0.01"]
    before = load("trainer").main([*places, *options, "--steps", "1"])
    after = load("trainer").main([*places, *options, "--steps", "25"])
    assert after < before - 0.5
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert type(again) is stock.BertForMaskedLM


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_any_encoder(family, tmp_path, corpus_file, capsys):
    """Both losses fall, and transformers computes the same scores."""
    options = "--vocab-size 400 --max-steps 40 --max-seq-length 48 --tokens-per-batch 256".split()
    arguments = [family, str(tmp_path), str(corpus_file), *options, "--held-out", "0.1"]
    assert load("any_encoder").main(arguments) < 1e-4
    assert "ForMaskedLM: " in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for loss in ("mlm_loss", "sbo_loss"):
        assert summary["held_out_after"][loss] < 0.8 * summary["held_out_before"][loss], loss


@torch.no_grad()
def test_pipeline(tmp_path, capsys):
    """The example's models, and the same ones from their directories, match their own logits."""
    example = load("pipeline")
    classes, entities = example.main([])
    assert len(classes) == len(entities) == len(example.TEXTS)
    assert capsys.readouterr().out.count(example.TEXTS[0]) == 2
    classifier, tagger = example.small_models(tmp_path)
    text = "London had fog"
    (found,), (spans,) = example.main([str(classifier), str(tagger), "--text", text])
    inputs = BertTokenizer.from_pretrained(classifier)(text, return_tensors="pt")
    model = SpanBertForSequenceClassification.from_pretrained(classifier)
    scores = model(**inputs).logits[0].softmax(0)
    assert found["label"] == model.config.id2label[int(scores.argmax())]
    assert found["score"] == pytest.approx(scores.max().item(), rel=1e-5)
    model = SpanBertForTokenClassification.from_pretrained(tagger)
    tags = [model.config.id2label[i] for i in model(**inputs).logits[0, 1:-1].argmax(1).tolist()]
    assert {s["entity_group"] for s in spans} == {tag[2:] for tag in tags if tag != "O"}
    assert all(text[s["start"] : s["end"]].lower() == s["word"] for s in spans)


def test_the_notebook_runs_from_top_to_bottom(capsys):
    """All code cells run in order, in one namespace; they assert what the text says."""
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert len(cells) >= 5 and all(not c.get("outputs") for c in notebook["cells"])
    names: dict = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"tour.ipynb, code cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "[MASK]" in printed and "accelerated" in printed
