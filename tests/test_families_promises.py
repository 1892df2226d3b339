"""What accelerate() promises for BERT holds for every family in the table."""

import copy
import inspect
import pickle
import warnings

import pytest
import torch
import transformers
from torch import nn

import spanbert_fast as sb
from accelerate_cases import results
from family_cases import (
    BATCH,
    BY_NAME,
    EVERY,
    NAMES,
    PAD,
    SEQLEN,
    ids,
    inputs_of,
    mask,
    model,
    stock_classes,
)
from spanbert_fast.accelerated import packed
from spanbert_fast.accelerated.registry import fast_class, is_fast
from spanbert_fast.testing import assert_bitwise_equal, assert_models_agree


def encoder_of(name):
    """The name of the family's headless class."""
    return next(iter(stock_classes(name)))


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_and_stages(name):
    """inputs_embeds, custom positions, and the hidden states of every stage."""
    ours = model(name, encoder_of(name)).eval()
    truth, real = copy.deepcopy(ours).double(), mask()
    width = ours.get_input_embeddings().embedding_dim
    embeddings, places = torch.randn(BATCH, SEQLEN, width), torch.randint(0, 40, (1, SEQLEN))

    def run(made):
        x = embeddings.to(made.dtype, copy=True).requires_grad_()
        plain = made(inputs_embeds=x, attention_mask=real, output_hidden_states=True)
        moved = made(inputs_embeds=x, attention_mask=real, position_ids=places)
        (plain[0] + moved[0])[real.bool()].sin().sum().backward()
        stages = {str(i): h[real.bool()].detach() for i, h in enumerate(plain.hidden_states)}
        return {**stages, "moved": moved[0][real.bool()].detach(), "input": x.grad[real.bool()]}

    theirs = run(ours)
    assert_models_agree(run(sb.accelerate(ours)), theirs, truth, run)


@pytest.mark.parametrize("name", NAMES)
def test_selected_stages(name):
    """By their numbers, where transformers knows such; the others are None."""
    theirs, real, tokens = model(name, encoder_of(name)).eval(), mask(), ids()
    ours = sb.accelerate(copy.deepcopy(theirs))
    for chosen in ([0, -1], [1], 2, [-3, 7], []):
        inputs = {"attention_mask": real, "output_hidden_states": chosen}
        expected = theirs(tokens, **inputs)
        packed.warn_once.cache_clear()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            got = ours(tokens, **inputs)
        assert packed.can_select_stages != any("selects stages" in str(w.message) for w in said)
        assert got.keys() == expected.keys()
        stages = zip(got.get("hidden_states", ()), expected.get("hidden_states", ()), strict=True)
        for a, b in stages:
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a[real == 1], b[real == 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_padding_without_a_mask(name):
    """If the mask was forgotten, padding counts as text, as in transformers."""
    ours = model(name, encoder_of(name))
    truth, inputs = copy.deepcopy(ours).double(), {"input_ids": ids()}

    def run(made):
        return results(made, inputs, None)

    theirs = run(ours)
    assert_models_agree(run(sb.accelerate(ours)), theirs, truth, run)


@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_without_tokens_is_zero_and_leaves_the_others_alone(name):
    ours, real = sb.accelerate(model(name, encoder_of(name)).eval()), mask()
    for empty in ([1], [3], [0, 3], [0, 1, 2, 3]):
        given = real.clone()
        given[empty] = 0
        tokens = ids()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got, whole = (ours(tokens, attention_mask=m) for m in (given, real))
        assert not got[0][given == 0].any()
        rest = [i for i in range(BATCH) if i not in empty]
        torch.testing.assert_close(got[0][rest], whole[0][rest])
        if got.get("pooler_output") is not None:
            torch.testing.assert_close(got.pooler_output[rest], whole.pooler_output[rest])
            of_nothing = ours.pooler(torch.zeros_like(got[0][empty]))
            assert_bitwise_equal(got.pooler_output[empty], of_nothing)


@pytest.mark.parametrize(
    ("name", "head"), [each for each in EVERY if each[1].endswith("ForSequenceClassification")]
)
def test_heads_read_zeros_of_a_sequence_without_tokens(name, head):
    ours = sb.accelerate(model(name, head).eval())
    given = mask()
    given[1] = given[3] = 0
    tokens = ids()
    short = ours(tokens, attention_mask=given).logits
    every = ours(tokens, attention_mask=given, output_hidden_states=True).logits
    torch.testing.assert_close(short, every)
    assert_bitwise_equal(short[1], short[3])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_covered_runs_transformers_code(name):
    theirs = model(name, encoder_of(name)).eval()
    ours, real, tokens = sb.accelerate(copy.deepcopy(theirs)), mask(), ids()
    theirs.set_attn_implementation("eager")
    ours.set_attn_implementation("eager")
    for inputs, why in (
        ({"attention_mask": real.flip(1)}, "0 at the first position"),
        ({"attention_mask": real, "output_attentions": True}, "output_attentions needs"),
        ({"attention_mask": real, "cross_attention_kwargs": {"a": 1}}, "is given"),
    ):
        packed.warn_once.cache_clear()
        with pytest.warns(UserWarning, match=why):
            got = ours(tokens, **inputs)
        expected = theirs(tokens, **inputs)
        assert got.keys() == expected.keys()
        torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = ours(tokens, **inputs, spanbert_fast=False)
        assert_bitwise_equal(again[0], got[0])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_classes_changes(name, tmp_path):
    for head, kind in stock_classes(name).items():
        ours = model(name, head).eval()
        before = [(n, m, type(m), dict(vars(m))) for n, m in ours.named_modules()]
        parameters = {n: id(p) for n, p in ours.named_parameters()}
        found = sb.accelerate(ours, dry_run=True)
        assert found.error is None and {f.verdict for f in found.findings} <= {"replaced", "kept"}
        assert [type(m) for m in ours.modules()] == [kind for _, _, kind, _ in before]
        sb.accelerate(sb.accelerate(ours))
        assert isinstance(ours, kind) and type(ours).__name__ == head
        assert {n: id(p) for n, p in ours.named_parameters()} == parameters
        inputs = inputs_of(ours)
        copies = [ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours, protocol=2))]
        outputs = [next(iter(made(**inputs).values())) for made in copies]
        assert [type(made) for made in copies] == [type(ours)] * 3
        assert_bitwise_equal(outputs[1], outputs[0])
        assert_bitwise_equal(outputs[2], outputs[0])
        sb.decelerate(ours)
        for (n, m, before_kind, fields), (now_name, now) in zip(
            before, ours.named_modules(), strict=True
        ):
            assert (n, id(m), before_kind) == (now_name, id(now), type(now))
            assert vars(now) == fields
    fast_class(kind)(ours.config).save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert loaded.config.architectures == [kind.__name__]


def test_accelerated_classes_have_a_module_and_follow_a_change_of_attention():
    made = model("roberta", "RobertaForMaskedLM")
    inputs = {"input_ids": ids(), "attention_mask": mask()}
    expected = made.eval()(**inputs).logits
    sb.accelerate(made)
    assert inspect.getfile(type(made)).endswith("roberta.py")
    made.set_attn_implementation("eager")
    assert made.config._attn_implementation == "eager"
    output = made(**inputs, output_attentions=True)
    assert len(output.attentions) == 2
    torch.testing.assert_close(output.logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_drawn_by_the_generator(name):
    """One seed gives the same mask twice, another a different one; checkpointing repeats the
    mask."""
    fields = {"dropout": 0.1, "attention_dropout": 0.1} if name == "distilbert" else {}
    fields = fields or {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    ours = sb.accelerate(model(name, encoder_of(name), **fields))
    inputs, found = {"input_ids": ids(), "attention_mask": mask()}, []
    for seed, checkpointing in ((1, False), (1, True), (2, False)):
        if checkpointing:
            ours.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(seed)
        ours.zero_grad()
        hidden = ours(**inputs)[0]
        hidden.sin().sum().backward()
        layer = getattr(ours, BY_NAME[name].encoder).layer[0]
        found.append((hidden.detach(), *(p.grad.clone() for p in layer.parameters())))
    for a, b in zip(found[0], found[1], strict=True):
        assert_bitwise_equal(a, b)
    assert not torch.equal(found[0][0], found[2][0])
    ours.eval()
    assert_bitwise_equal(ours(**inputs)[0], ours(**inputs)[0])


@pytest.mark.parametrize(
    "kind", ["MPNet", "DebertaV2", "Deberta", "RoFormer", "XLMRobertaXL", "Albert", "ModernBert"]
)
def test_other_encoders_are_refused_by_name(kind):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 97}
    made = getattr(transformers, f"{kind}Model")(
        getattr(transformers, f"{kind}Config")(**sizes, pad_token_id=PAD)
    )
    for whole in (made, nn.Sequential(made)):
        with pytest.raises(ValueError, match=f"got {kind}Model: "):
            sb.accelerate(whole)
    assert not any(is_fast(type(part)) for part in made.modules())
