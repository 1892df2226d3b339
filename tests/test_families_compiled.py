"""accelerate() under torch.compile: one graph, attention_mask and labels included."""

import pytest
import torch

import spanbert_fast as sb
from family_cases import PAD, inputs_of, model
from spanbert_fast.testing import gradients_of

# every family, and every role of a head
HEADS = {
    "bert": "BertForPreTraining",
    "roberta": "RobertaForMaskedLM",
    "xlm_roberta": "XLMRobertaForSequenceClassification",
    "camembert": "CamembertForTokenClassification",
    "data2vec_text": "Data2VecTextForMultipleChoice",
    "electra": "ElectraForPreTraining",
    "distilbert": "DistilBertForQuestionAnswering",
    "ernie": "ErnieForNextSentencePrediction",
    "layoutlm": "LayoutLMForTokenClassification",
    "bert_generation": "BertGenerationEncoder",
}


def compiled(made, **options):
    torch._dynamo.reset()
    return torch.compile(made, backend="aot_eager", **options)


@pytest.mark.parametrize("name", HEADS)
def test_one_graph_for_every_mask(name):
    """Outputs and gradients are those of eager mode, and another mask uses the same graph."""
    layers = "n_layers" if name == "distilbert" else "num_hidden_layers"
    made = sb.accelerate(model(name, HEADS[name], **{layers: 1})).train()
    inputs = inputs_of(made)
    # the same lengths in another order, with one more token of padding in the longest sequence
    other = {k: v.flip(0) if v.dim() > 1 else v for k, v in inputs.items()}
    other["attention_mask"] = other["attention_mask"].clone()
    other["attention_mask"][..., -1, -1] = 0
    if "labels" in other and other["labels"].dim() > 1:
        other["labels"] = other["labels"].masked_fill(other["attention_mask"] == 0, -100)
    run = compiled(made, fullgraph=True)
    for given in (inputs, other):
        results = []
        with torch._dynamo.config.patch(error_on_recompile=given is other):
            for call in (made, run):
                made.zero_grad()
                output = call(**given)
                loss = output.loss if "loss" in output else output[0].tanh().sum()
                loss.backward()
                results.append((*output.to_tuple(), *gradients_of(made).values()))
        for expected, got in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_one_graph_without_being_asked_for_it():
    made = sb.accelerate(model("roberta", "RobertaForMaskedLM"))
    torch._dynamo.utils.counters.clear()
    compiled(made)(**inputs_of(made))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_what_a_graph_cannot_hand_to_transformers_raises():
    made = sb.accelerate(model("roberta", "RobertaForTokenClassification"))
    inputs, run = inputs_of(made), compiled(made, fullgraph=True)
    run(**inputs)
    with pytest.raises(RuntimeError, match="labels must be -100 at padding"):
        run(**{**inputs, "labels": inputs["labels"].clamp(min=0)})
    front = {key: value.flip(1) for key, value in inputs.items()}
    assert front["input_ids"][1, 0] == PAD
    with pytest.raises(RuntimeError, match="sequences must be padded behind"):
        run(**front)


def test_inductor_has_the_gradients_of_eager_mode():
    """`torch.compile`'s own backend, forward and backward, with dropout off."""
    made = sb.accelerate(model("electra", "ElectraModel", num_hidden_layers=1))
    inputs = inputs_of(made)
    torch._dynamo.reset()
    gradients = []
    for run in (made, torch.compile(made, fullgraph=True)):
        made.zero_grad()
        run(**inputs)[0].tanh().sum().backward()
        gradients.append(gradients_of(made))
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-5, atol=1e-5, msg=name)
