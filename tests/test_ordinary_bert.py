"""Our checkpoints are ordinary BERTs in a process that cannot import this package."""

import json
import logging
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from spanbert_fast import digests, models
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.errors import DataError
from spanbert_fast.models import span_boundary_file
from test_checkpoints import SIZES, assert_same_state, pretraining, randomize

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"the a fox hen runs sleeps here there .".split(),
]
TEXT = "the [MASK] runs here ."
STRANGER = """
import json, sys, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
masked, tokens, texts, text = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(masked)
model = AutoModelForMaskedLM.from_pretrained(masked).eval()
with torch.no_grad():
    logits = model(**tokenizer(text, return_tensors="pt")).logits
found = {
    "class": type(model).__name__,
    "logits": logits[0].tolist(),
    "fill": [row["token_str"] for row in pipeline("fill-mask", model=masked)(text)],
    "ner": pipeline("token-classification", model=tokens)(text.replace("[MASK]", "fox")),
    "labels": pipeline("text-classification", model=texts)(text.replace("[MASK]", "fox")),
}
assert not any(name.split(".")[0] == "spanbert_fast" for name in sys.modules)
print(json.dumps(found, default=float))
"""


def saved(model, tokenizer, folder, **options):
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return folder


def test_transformers_alone_loads_it_without_a_word(tmp_path):
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    model = pretraining()
    labels = {"id2label": {0: "O", 1: "B-X"}, "label2id": {"O": 0, "B-X": 1}}
    folders = [
        saved(model, tokenizer, tmp_path / "masked", span_boundary_apart=True),
        *(
            saved(
                randomize(kind(SpanBertConfig(**SIZES, **labels))),
                tokenizer,
                tmp_path / kind.__name__,
            )
            for kind in (
                models.SpanBertForTokenClassification,
                models.SpanBertForSequenceClassification,
            )
        ),
    ]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *map(str, folders), TEXT],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "LOAD REPORT" not in done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found["class"] == "BertForMaskedLM"
    with torch.no_grad():
        ours = model(**tokenizer(TEXT, return_tensors="pt")).logits[0]
    theirs = torch.tensor(found["logits"])
    assert ours.std() > 0.3
    assert (ours - theirs).abs().max() < 1e-4 * ours.abs().max()
    assert len(found["fill"]) == 5 and found["labels"][0]["label"] in ("O", "B-X")
    assert {row["entity"] for row in found["ner"]} <= {"B-X", "O"}


def test_the_span_boundary_head_comes_back_from_its_own_file(tmp_path, capfd, caplog):
    model = pretraining()
    model.save_pretrained(tmp_path, span_boundary_apart=True)
    assert set(load_file(tmp_path / span_boundary_file.FILE)) == {
        name for name in model.state_dict() if "span_boundary" in name
    }
    assert not any("span_boundary" in name for name in load_file(tmp_path / "model.safetensors"))
    again, info = models.SpanBertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert_same_state(again, model.state_dict())
    assert not any(info.values())
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight
    # the new head gives one log line of ours, not the library's table
    with caplog.at_level(logging.INFO, "spanbert_fast"):
        models.SpanBertForQuestionAnswering.from_pretrained(tmp_path)
    assert "lacks qa_outputs.*: initialised; cls.predictions.* left out" in caplog.text
    assert "LOAD REPORT" not in caplog.text + capfd.readouterr().err
    # saved again as one file, the other file is gone
    again.save_pretrained(tmp_path)
    assert not (tmp_path / span_boundary_file.FILE).exists()
    whole = models.SpanBertForPreTraining.from_pretrained(tmp_path)
    assert_same_state(whole, model.state_dict())


def test_a_damaged_head_is_named(tmp_path):
    pretraining().save_pretrained(tmp_path, span_boundary_apart=True)
    digests.write_digests(tmp_path)
    path = tmp_path / span_boundary_file.FILE
    state = load_file(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{path.name} has .* bytes where"):
        models.SpanBertForPreTraining.from_pretrained(tmp_path)
    (tmp_path / digests.FILE).unlink()
    with pytest.raises(DataError, match=f"cannot be read: {path.name}"):
        models.SpanBertForPreTraining.from_pretrained(tmp_path)
    state.pop("cls.span_boundary.bias")
    save_file(state, path)
    with pytest.raises(DataError, match="must hold tensors of the shapes"):
        models.SpanBertForPreTraining.from_pretrained(tmp_path)
