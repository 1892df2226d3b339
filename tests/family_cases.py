"""Shared by the tests of families: a small model of each class in the table, and its inputs."""

import importlib
import inspect

import torch
import transformers
from transformers import PreTrainedModel

from accelerate_cases import LENGTHS
from bert_cases import large_init
from spanbert_fast.accelerated.families import FAMILIES

BATCH, SEQLEN, VOCABULARY, PAD = 4, 19, 97, 1
NAMES = [family.name for family in FAMILIES]
BY_NAME = {family.name: family for family in FAMILIES}
# fields of a family's configuration beside the common sizes, or in place of them
FIELDS = {
    "electra": {"embedding_size": 32},
    "ernie": {"use_task_id": True},
    "layoutlm": {"max_2d_position_embeddings": 50},
}
DISTILLED = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 100,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "qa_dropout": 0.0,
    "seq_classif_dropout": 0.0,
}
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 100,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.0,
    "summary_last_dropout": 0.0,
}


def stock_classes(name):
    """Every model class of a family in transformers that is an encoder or contains one."""
    modeling = importlib.import_module(BY_NAME[name].modeling)
    return {
        key: value
        for key, value in vars(modeling).items()
        if isinstance(value, type)
        and issubclass(value, PreTrainedModel)
        and value.__module__ == modeling.__name__
        and not key.endswith(("PreTrainedModel", "ForCausalLM", "LMHeadModel", "Decoder"))
        and inspect.signature(value.forward).parameters.keys() & {"input_ids"}
    }


def config(name, **fields):
    """A small configuration of the family, without dropout."""
    kind = {"data2vec_text": "Data2VecText", "bert_generation": "BertGeneration"}.get(name)
    modeling = importlib.import_module(BY_NAME[name].modeling)
    kind = kind or next(iter(stock_classes(name))).removesuffix("Model")
    sizes = DISTILLED if name == "distilbert" else {**SIZES, **FIELDS.get(name, {})}
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "pad_token_id": PAD}
    made = getattr(transformers, f"{kind}Config", None) or getattr(modeling, f"{kind}Config")
    return made(**{**common, **sizes, **fields})


def model(name, head, **fields):
    """A model with normal parameters, std 0.3, in training mode."""
    return large_init(stock_classes(name)[head](config(name, **fields))).train()


def mask():
    return (torch.arange(SEQLEN) < LENGTHS[:, None]).long()


def ids(real=None):
    real = mask() if real is None else real
    return torch.where(real.bool(), torch.randint(2, VOCABULARY, (BATCH, SEQLEN)), PAD)


def inputs_of(made):
    """A ragged batch with every argument that the model's class takes, and labels."""
    taken, head = inspect.signature(made.forward).parameters, type(made).__name__
    real = mask()
    inputs = {"input_ids": ids(), "attention_mask": real}
    if "token_type_ids" in taken:
        kinds = getattr(made.config, "type_vocab_size", 1)
        inputs["token_type_ids"] = torch.randint(0, kinds, real.shape)
    # transformers does not flatten the tasks of multiple choice
    if "task_type_ids" in taken and not head.endswith("ForMultipleChoice"):
        inputs["task_type_ids"] = torch.randint(0, 3, real.shape)
    if "bbox" in taken:
        low = torch.randint(0, 20, (*real.shape, 2))
        inputs["bbox"] = torch.cat([low, low + torch.randint(0, 20, low.shape)], dim=-1)
    if head.endswith("ForMaskedLM") or "next_sentence_label" in taken:
        labels = torch.where(torch.rand(real.shape) < 0.3, inputs["input_ids"], -100)
        labels[0, 0] = 5
        inputs["labels"] = labels.masked_fill(real == 0, -100)
    elif head.endswith(("ForTokenClassification", "ForPreTraining")):
        inputs["labels"] = torch.randint(0, 2, real.shape).masked_fill(real == 0, -100)
    elif head.endswith(("ForSequenceClassification", "ForNextSentencePrediction")):
        inputs["labels"] = torch.tensor([0, 1, 1, 0])
    elif head.endswith("ForMultipleChoice"):
        inputs = {key: value.unflatten(0, (2, 2)) for key, value in inputs.items()}
        inputs["labels"] = torch.tensor([1, 0])
    elif head.endswith("ForQuestionAnswering"):
        inputs["start_positions"] = torch.tensor([3, 0, 6, 40])
        inputs["end_positions"] = torch.tensor([5, 0, 6, 2])
    if "next_sentence_label" in taken:
        inputs["next_sentence_label"] = torch.tensor([0, 1, 1, 0])
    return inputs


def only_tokens(inputs, head):
    """The inputs without padding, for heads that do not score padding as transformers does."""
    if head.endswith("ForQuestionAnswering"):
        inputs = {key: value for key, value in inputs.items() if key != "attention_mask"}
    return inputs


EVERY = [(name, head) for name in NAMES for head in stock_classes(name)]
