"""Predicting with a fine-tuned model: batches, long documents, the collator."""

import json

import pytest
import torch
from transformers import BertForTokenClassification

from finetune_cases import write_folder
from spanbert_fast.data.tokenizer import load_tokenizer
from spanbert_fast.tasks import predict as predict_module
from spanbert_fast.tasks.ner import NamedEntities, Sentence
from spanbert_fast.tasks.predict import predict
from spanbert_fast.tasks.windows import WindowCollator, WindowDataset
from spanbert_fast.tasks.writing import JsonObject, whole_file
from spanbert_fast.training.finetuning.models import initial_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("finetune"))


def test_a_batch_gives_what_single_sentences_give(folder):
    """For any batches, packed or padded, also if a sentence's windows are in different batches."""
    tokenizer = load_tokenizer(folder / "model")
    task = NamedEntities(max_seq_length=16, labels=["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    torch.manual_seed(5)
    ours = initial_model(str(folder / "model"), task, tokenizer, engine="spanbert_fast")
    torch.manual_seed(5)
    theirs = initial_model(str(folder / "model"), task, tokenizer, engine="transformers")
    assert type(theirs) is BertForTokenClassification
    items = task.read(folder / "test.conll").items
    long = Sentence("long", "x:1", [w for s in items for w in s.words], None)
    examples = [*items[:7], long, *items[7:]]
    alone = [predict(ours, task, [e], tokenizer)[0] for e in examples]
    assert [len(tags) for tags in alone] == [len(e.words) for e in examples]
    assert len({tag for tags in alone for tag in tags}) > 2, "the random head says various things"
    for model in (ours, theirs):
        for tokens in (1, 40, 8192):
            got = predict(model, task, examples, tokenizer, tokens_per_batch=tokens)
            assert got == alone
    assert predict(ours, task, [], tokenizer) == []


def test_a_long_document_is_predicted_in_pieces(folder, monkeypatch):
    tokenizer = load_tokenizer(folder / "model")
    task = NamedEntities(max_seq_length=16, labels=["O", "B-PER", "I-PER"])
    model = initial_model(str(folder / "model"), task, tokenizer, engine="spanbert_fast")
    seen = []
    forward = type(model).forward

    def counting(self, input_ids, **kwargs):
        seen.append(len(input_ids))
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", counting)
    words = ("they met Mary near Oslo " * 3000).split()
    (tags,) = predict(model, task, [Sentence("0", "x", words, None)], tokenizer)
    assert len(tags) == len(words) and max(seen) <= 8192 and len(seen) > 2


def test_predictions_come_as_they_are_made_and_are_written_so(folder, tmp_path, monkeypatch):
    """Predictions come in order, although long ones are run first; the file is renamed when
    complete."""
    tokenizer = load_tokenizer(folder / "model")
    task = NamedEntities(max_seq_length=16, labels=["O", "B-PER", "I-PER"])
    model = initial_model(str(folder / "model"), task, tokenizer, engine="spanbert_fast")
    monkeypatch.setattr(predict_module, "_WAITING", 8)
    started = []
    windows = task.windows
    monkeypatch.setattr(task, "windows", lambda e, t: started.append(e.id) or windows(e, t))
    short = [Sentence(str(i), "x", ["they", "met"], None) for i in range(40)]
    examples = [Sentence("long", "x", ["Oslo"] * 90, None), *short]
    made = predict_module.predictions(model, task, examples, tokenizer)
    assert len(next(made)) == 90 and len(started) < 10, "the first before the others are read"
    rest = list(made)
    assert len(rest) == 40 and all(len(tags) == 2 for tags in rest)
    out = tmp_path / "p.conll"

    def checked():
        for tags in [["O"] * 90, *rest]:
            assert not out.exists() and (tmp_path / "p.conll.partial").exists()
            yield tags

    assert task.write(out, examples, checked()) == [out]
    assert out.read_text().count("\n\n") == 41 and not (tmp_path / "p.conll.partial").exists()


def test_an_object_is_written_as_json_does(tmp_path):
    for content in ({}, {"a": ""}, {"é\n": [{"x": "1\n2", "y": 0.5}], "b": [], "c": None}):
        with whole_file(tmp_path / "o.json") as file:
            written = JsonObject(file)
            for name, value in content.items():
                written.add(name, value)
            written.close()
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        assert (tmp_path / "o.json").read_text(encoding="utf-8") == text


def test_collator_packs_and_pads_the_same(folder):
    tokenizer = load_tokenizer(folder / "model")
    task = NamedEntities(max_seq_length=16)
    items = task.read(folder / "dev.conll").items
    task.learn(items)
    dataset = WindowDataset(task, items, tokenizer)
    windows = [dataset[i] for i in range(5)]
    packed, padded = (WindowCollator(kind, 0)(windows) for kind in (True, False))
    real = padded["attention_mask"].bool()
    assert real.sum(1).tolist() == [len(w["input_ids"]) for w in windows]
    for name in ("input_ids", "labels", "token_type_ids"):
        assert torch.equal(padded[name][real], packed[name])
    assert (padded["labels"][~real] == -100).all()
    assert packed["cu_seqlens"].diff().tolist() == real.sum(1).tolist()
