"""Shared by the tests of accelerate(): every model class, batches with labels, results."""

import torch
from torch import nn
from transformers import BertConfig
from transformers.models.bert import modeling_bert as stock

from bert_cases import SIZES as BERT_SIZES
from spanbert_fast.testing import gradients_of

SIZES = {**BERT_SIZES, "num_hidden_layers": 2}
NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.0,
}
LENGTHS = torch.tensor([19, 1, 7, 18])


class Holder(nn.Module):
    """A user's own module with a BERT inside."""

    def __init__(self, config):
        super().__init__()
        self.text = stock.BertModel(config)
        self.head = nn.Linear(config.hidden_size, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.text(input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return {"logits": self.head((hidden * weights).sum(1) / weights.sum(1))}


class OwnBert(stock.BertModel):
    """A user's subclass: its encoder is accelerated, its own code runs around it."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output["pooler_output"] = output["pooler_output"] * 2
        return output


def config(**fields):
    return BertConfig(**{**SIZES, **NO_DROPOUT, **fields})


def batch():
    mask = (torch.arange(19) < LENGTHS[:, None]).long()
    return {"input_ids": torch.randint(1, 97, (4, 19)) * mask, "attention_mask": mask}


def masked_labels(inputs):
    labels = torch.where(torch.rand(4, 19) < 0.3, torch.randint(0, 97, (4, 19)), -100)
    labels[0, 0] = 5  # at least one
    return torch.where(inputs["attention_mask"] == 0, -100, labels)


def inputs_of(name):
    """A padded batch with the labels of the head."""
    inputs = batch()
    if name in ("BertForMaskedLM", "BertForPreTraining"):
        inputs["labels"] = masked_labels(inputs)
    if name == "BertForPreTraining":
        inputs["next_sentence_label"] = torch.tensor([0, 1, 1, 0])
    if name in ("BertForSequenceClassification", "BertForNextSentencePrediction"):
        inputs["labels"] = torch.tensor([0, 1, 1, 0])
    if name == "BertForTokenClassification":
        inputs["labels"] = torch.randint(0, 2, (4, 19)).masked_fill(inputs["input_ids"] == 0, -100)
    if name == "BertForMultipleChoice":
        inputs = {k: v.view(2, 2, 19) for k, v in inputs.items()}
        inputs["labels"] = torch.tensor([1, 0])
    if name == "BertForQuestionAnswering":
        del inputs["attention_mask"]  # padding has tests of its own
        inputs["start_positions"] = torch.tensor([3, 0, 18, 40])
        inputs["end_positions"] = torch.tensor([5, 0, 18, 2])
    return inputs


MODELS = {
    name: getattr(stock, name)
    for name in (
        "BertModel",
        "BertForMaskedLM",
        "BertForPreTraining",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "BertForMultipleChoice",
        "BertForNextSentencePrediction",
    )
} | {"Holder": Holder, "OwnBert": OwnBert}


def results(model, inputs, mask):
    """Every output at real positions, and all gradients of a loss over these outputs."""
    output = model(**inputs)
    tensors = {}
    for key, value in output.items():
        if mask is not None and value.shape[:2] == mask.shape and value.dim() > 1:
            value = value[mask]
        tensors[key] = value
    loss = tensors.get("loss")
    if loss is None:
        loss = sum(value.double().tanh().sum() for value in tensors.values())
    model.zero_grad()
    loss.backward()
    return {**{key: value.detach() for key, value in tensors.items()}, **gradients_of(model)}


def without(tensors, *names):
    return {name: value for name, value in tensors.items() if name not in names}
