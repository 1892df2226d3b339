"""accelerate() with tools that expect hidden states of (batch, seqlen, ...), in several
families."""

import copy
import warnings

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model, MPNetConfig

import spanbert_fast as sb
from accelerate_cases import results
from bert_cases import SIZES
from family_cases import inputs_of, mask, model
from spanbert_fast.accelerated import packed
from spanbert_fast.accelerated.registry import is_fast
from spanbert_fast.commands import env
from spanbert_fast.testing import assert_models_agree

HEADS = {
    "roberta": "RobertaForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
}
SMALL_GPT2 = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=97)


def encoder_inputs(inputs):
    return {key: value for key, value in inputs.items() if key != "labels"}


def pair(name, head=None):
    """(accelerated, transformers' own, its inputs), in evaluation mode."""
    theirs = model(name, head or HEADS[name]).eval()
    ours = sb.accelerate(copy.deepcopy(theirs))
    packed.warn_once.cache_clear()
    return ours, theirs, inputs_of(theirs)


def query_of(made):
    return next(m for n, m in made.named_modules() if n.endswith(("query", "q_lin")))


@pytest.mark.parametrize("name", HEADS)
def test_torch_func(name):
    """Gradients and directional derivatives equal those of transformers' model."""
    ours, theirs, inputs = pair(name)
    # transformers reads the mask's values, which torch.func does not allow
    inputs.pop("attention_mask")

    def gradients(made):
        run = lambda p: torch.func.functional_call(made, p, (), inputs).loss  # noqa: E731
        return torch.func.grad(run)(dict(made.named_parameters()))

    with pytest.warns(UserWarning, match="a transform of torch.func is active"):
        got = gradients(ours)
    for key, value in gradients(theirs).items():
        torch.testing.assert_close(got[key], value)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("head", ["classification", "masked LM"])
def test_gradients_per_sample(name, head):
    """As in opacus: parameters get a grad_sample from hooks that take the leading dimension for the
    batch."""
    title = HEADS[name].removesuffix("ForSequenceClassification")
    ours, theirs, inputs = pair(
        name, HEADS[name] if head == "classification" else f"{title}ForMaskedLM"
    )
    shapes = []
    for made in (ours, theirs):
        for parameter in made.parameters():
            parameter.grad_sample = None
        seen = []
        query_of(made).register_forward_hook(lambda _, args, out, seen=seen: seen.append(out.shape))
        made.train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = made(**inputs).loss
        shapes.append((seen, loss))
    assert shapes[0][0] == shapes[1][0] == [(4, 19, 64)]
    torch.testing.assert_close(shapes[0][1], shapes[1][1])


@pytest.mark.parametrize("name", HEADS)
def test_hooks_on_embeddings_see_padded_input(name):
    """Noise on the word embeddings (NEFTune), and attributions to all embeddings."""
    ours, theirs, inputs = pair(name)
    for part in ("words", "all"):
        outputs = []
        for made in (ours, theirs):
            embeddings = made.base_model.embeddings
            module = embeddings.word_embeddings if part == "words" else embeddings
            hook = module.register_forward_hook(lambda _, args, out: out * out.size(1) * 0.1)
            outputs.append(made(**inputs).logits)
            hook.remove()
        assert not torch.allclose(outputs[1], theirs(**inputs).logits)
        torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", HEADS)
def test_lora_and_an_adapter_for_each_sequence(name):
    peft = pytest.importorskip("peft")
    ours, theirs, inputs = pair(name)
    targets = ["q_lin", "lin1"] if name == "distilbert" else ["query", "intermediate.dense"]
    wrapped = []
    for made in (ours, theirs):
        settings = peft.LoraConfig(
            target_modules=[*targets, "word_embeddings"], init_lora_weights=False
        )
        made = peft.get_peft_model(made, settings, adapter_name="a")
        made.add_adapter("b", settings)
        wrapped.append(made.eval())
    wrapped[0].load_state_dict(wrapped[1].state_dict())
    truth = copy.deepcopy(wrapped[1]).double()

    def run(made):
        return results(made, inputs, None)

    assert_models_agree(run(wrapped[0]), run(wrapped[1]), truth, run)
    names = ["a", "b", "__base__", "b"]
    with pytest.warns(UserWarning, match="adapter_names choose an adapter for each sequence"):
        got = wrapped[0](**inputs, adapter_names=names).logits
    expected = wrapped[1](**inputs, adapter_names=names).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_without_data(name):
    """Shapes are right on the meta device, with and without a mask, and with fake tensors."""
    ours, theirs, inputs = pair(name)
    expected = theirs(**inputs).logits.shape
    ours.to("meta")
    on_meta = {key: value.to("meta") for key, value in inputs.items()}
    assert ours(**on_meta).logits.shape == expected
    on_meta.pop("attention_mask")
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(**on_meta).logits.shape == expected
    with torch._subclasses.fake_tensor.FakeTensorMode():
        fake = sb.accelerate(type(theirs)(theirs.config))
        given = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in inputs.items()}
        assert fake(**given).logits.shape == expected


def test_a_model_inside_another():
    """Two encoders of different families in one module, each accelerated."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = model("roberta", "RobertaModel").eval()
            self.right = model("distilbert", "DistilBertModel").eval()

        def forward(self, **inputs):
            left = self.left(**inputs).last_hidden_state[:, 0]
            return left * self.right(**inputs).last_hidden_state[:, 0]

    theirs = Two()
    ours = sb.accelerate(copy.deepcopy(theirs))
    inputs = {"input_ids": torch.randint(2, 97, (4, 19)), "attention_mask": mask()}
    torch.testing.assert_close(ours(**inputs), theirs(**inputs), rtol=1e-3, atol=1e-3)


def test_an_unknown_encoder_beside_a_known_one_stays_and_is_named():
    made = nn.ModuleDict({"text": model("roberta", "RobertaModel"), "other": GPT2Model(SMALL_GPT2)})
    before = [type(part) for part in made["other"].modules()]
    assert "unknown   other (GPT2Model): of no family" in str(sb.accelerate(made, dry_run=True))
    with pytest.warns(UserWarning, match=r"other \(GPT2Model\): of no family that"):
        sb.accelerate(made)
    assert [type(part) for part in made["other"].modules()] == before
    assert is_fast(type(made["text"]))


@pytest.mark.parametrize("name", HEADS)
def test_padding_may_be_filled(name):
    """Padding may be filled with transformers' values; heads that read first tokens stay packed."""
    ours, theirs, inputs = pair(name)
    assert (ours.base_model(**encoder_inputs(inputs))[0][inputs["attention_mask"] == 0] == 0).all()
    sb.accelerate(ours, fill_padding=True)
    for stages in (False, True):
        given = {**encoder_inputs(inputs), "output_hidden_states": stages}
        got, expected = (made.base_model(**given).to_tuple() for made in (ours, theirs))
        for a, b in zip(got[-1] if stages else got, expected[-1] if stages else expected, strict=1):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    calls = []
    hook = query_of(ours).register_forward_hook(lambda _, args, out: calls.append(out.dim()))
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, rtol=1e-3, atol=1e-3)
    ours.base_model(inputs["input_ids"])  # nothing is padding
    hook.remove()
    assert calls == [2, 2]
    assert "fill_padding" not in vars(sb.decelerate(ours).base_model)


def test_the_command_line_says_what_would_be_replaced(tmp_path, capsys):
    made = model("roberta", "RobertaForMaskedLM")
    made.config.architectures = ["RobertaForMaskedLM"]
    made.config.save_pretrained(tmp_path)
    assert env._survey(str(tmp_path)) == str(sb.accelerate(made, dry_run=True)).splitlines()
    MPNetConfig(**SIZES, architectures=["MPNetModel"]).save_pretrained(tmp_path)
    lines = env._survey(str(tmp_path))
    assert lines[0].startswith("refused") and "adds a bias by relative position" in lines[-1]
