"""Predicting with a fine-tuned model: batches, long documents, the collator."""

import pytest
import torch
from transformers import BertForTokenClassification

from finetune_cases import write_folder
from spanbert_fast.data.tokenizer import load_tokenizer
from spanbert_fast.tasks.ner import NamedEntities, Sentence
from spanbert_fast.tasks.predict import predict
from spanbert_fast.tasks.windows import WindowCollator, WindowDataset
from spanbert_fast.training.finetune_models import initial_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("finetune"))


def test_a_batch_gives_what_single_sentences_give(folder):
    """Whatever the batches, packed or padded, and with windows of one sentence far apart."""
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
