"""accelerate() inside users' libraries, compared with transformers' own model in each.

`make test-libraries` runs them, with the packages of the extra `libraries`.
"""

import copy
import os

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

import spanbert_fast as sb
from family_cases import PAD, inputs_of, model

pytestmark = [
    pytest.mark.skipif(
        "SPANBERT_FAST_TEST_LIBRARIES" not in os.environ, reason="make test-libraries runs them"
    ),
    # these libraries need transformers' code in place of ours, and a warning says so
    pytest.mark.filterwarnings("ignore:transformers' own code runs"),
]
CLASSIFIERS = {
    "roberta": "RobertaForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
}
TEXTS = ["a red house", "a", "the river runs past a red house and a blue one", "one river"]


def pair(name, head, **fields):
    """(accelerated, transformers' own)."""
    theirs = model(name, head, **fields).eval()
    return sb.accelerate(copy.deepcopy(theirs)), theirs


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.fixture
def checkpoint(tmp_path):
    """A function that saves a small model of a family with a tokenizer; returns its folder."""

    def save(name, head, **fields):
        words = ["<s>", "<pad>", "</s>", "<unk>", *sorted({w for t in TEXTS for w in t.split()})]
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        made = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            pad_token="<pad>",
            sep_token="</s>",
            cls_token="<s>",
            unk_token="<unk>",
            model_max_length=30,
            model_input_names=["input_ids", "attention_mask"],
        )
        assert made.pad_token_id == PAD
        made.save_pretrained(tmp_path)
        model(name, head, **fields).save_pretrained(tmp_path)
        return str(tmp_path)

    return save


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_opacus_takes_gradients_per_sample(name):
    from opacus import GradSampleModule

    found, inputs = [], None
    for made in pair(name, CLASSIFIERS[name]):
        inputs = inputs or inputs_of(made)
        wrapped = GradSampleModule(made.train(), strict=False)
        wrapped(**inputs).loss.backward()
        found.append({n: p.grad_sample for n, p in wrapped.named_parameters() if p.requires_grad})
    ours, theirs = found
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        if expected is not None:
            close(ours[key], expected)
    # one lookup of positions serves all sequences
    samples = [v.shape[0] for k, v in ours.items() if v is not None and "position" not in k]
    assert len(samples) > 10 and set(samples) == {4}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_captum_attributes_to_embeddings(name):
    from captum.attr import LayerIntegratedGradients

    found, inputs = [], None
    for made in pair(name, CLASSIFIERS[name]):
        inputs = inputs or {k: v for k, v in inputs_of(made).items() if k != "labels"}

        def forward(ids, mask, made=made):
            return made(ids, attention_mask=mask).logits

        method = LayerIntegratedGradients(forward, made.base_model.embeddings)
        found.append(
            method.attribute(
                inputs["input_ids"],
                baselines=torch.full_like(inputs["input_ids"], PAD),
                additional_forward_args=(inputs["attention_mask"],),
                target=1,
                n_steps=4,
            )
        )
    assert found[0].shape == (4, 19, found[0].shape[-1])
    close(*found)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_neftune_in_the_trainer(name, tmp_path, monkeypatch):
    # ours draws a seed for its dropout first, so noise drawn afterwards would differ
    def ramp(x, low=0.0, high=1.0, **named):
        return x.copy_(torch.linspace(low, high, x.numel()).view_as(x))

    monkeypatch.setattr(torch.Tensor, "uniform_", ramp)
    losses, inputs = [], None
    for made in pair(name, CLASSIFIERS[name]):
        inputs = inputs or inputs_of(made)
        rows = [{key: value[i] for key, value in inputs.items()} for i in range(4)]
        arguments = TrainingArguments(
            str(tmp_path), max_steps=2, learning_rate=1e-3, per_device_train_batch_size=4,
            neftune_noise_alpha=5.0, logging_steps=1, report_to="none", save_strategy="no",
            use_cpu=True, seed=1,
        )  # fmt: skip
        trainer = Trainer(made, arguments, train_dataset=rows)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize(
    ("name", "head"), [("roberta", "RobertaModel"), ("electra", "ElectraModel")]
)
def test_sentence_encoders(checkpoint, name, head):
    """Embeddings of sentences and tokens, and a training step."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    folder = checkpoint(name, head)
    theirs, ours = (SentenceTransformer(folder, device="cpu") for _ in range(2))
    sb.accelerate(ours)
    encoded = [made.encode(TEXTS, convert_to_tensor=True) for made in (ours, theirs)]
    close(*encoded)
    tokens = [made.encode(TEXTS, output_value="token_embeddings") for made in (ours, theirs)]
    for a, b in zip(*tokens, strict=True):
        close(a, b)
    sb.accelerate(ours, fill_padding=True)
    whole = [made.encode(TEXTS, output_value=None) for made in (ours, theirs)]
    for a, b in zip(*whole, strict=True):
        close(a["token_embeddings"], b["token_embeddings"])
    sb.accelerate(ours)
    losses = []
    for made in (ours, theirs):
        sentences = [made.tokenize(TEXTS[:2]), made.tokenize(TEXTS[2:])]
        loss = MultipleNegativesRankingLoss(made)(sentences, torch.zeros(2))
        loss.backward()
        losses.append((loss.detach(), next(made.parameters()).grad))
    for a, b in zip(*losses, strict=True):
        close(a, b)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_cross_encoders(checkpoint, name):
    from sentence_transformers import CrossEncoder

    folder = checkpoint(name, CLASSIFIERS[name], num_labels=1)
    theirs, ours = (CrossEncoder(folder, device="cpu") for _ in range(2))
    sb.accelerate(ours)
    pairs = [(TEXTS[0], text) for text in TEXTS]
    scores = [made.predict(pairs, convert_to_tensor=True) for made in (ours, theirs)]
    assert scores[0].std() > 0
    close(*scores)
