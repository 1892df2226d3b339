"""Span pre-training of every family with a masked-LM head, against transformers' own model and the
formula of the span boundary objective; and checkpoints that are ordinary ones for others."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import AddedToken
from torch import nn
from torch.nn import functional as F

import spanbert_fast as sb
from bert_cases import large_init
from family_cases import (
    BATCH,
    BY_NAME,
    NAMES,
    PAD,
    SEQLEN,
    VOCABULARY,
    config,
    ids,
    mask,
    stock_classes,
)
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.models.any_encoder import EncoderForSpanPreTraining
from spanbert_fast.models.span_boundary_file import FILE
from spanbert_fast.testing import assert_bitwise_equal, assert_models_agree, gradients_of
from spanbert_fast.values import SPACES
from tokenizer_cases import KINDS

OTHERS = [name for name in NAMES if name != "bert" and BY_NAME[name].lm_head]
SPAN = {"max_span_targets": 4, "span_position_embedding_size": 12}
Auto = sb.AutoModelForSpanPreTraining


def model_of(name, **fields):
    made = Auto.from_config(config(name, **SPAN, **fields))
    return large_init(made).train()


def stock_of(ours):
    """transformers' model with the same weights, including those of the span boundary head."""
    head = next(c for n, c in stock_classes(ours.row.name).items() if n.endswith("ForMaskedLM"))
    theirs = head(copy.deepcopy(ours.config)).train()
    if not hasattr(theirs, "cls"):
        theirs.cls = nn.Module()
    theirs.cls.span_boundary = copy.deepcopy(ours.cls.span_boundary)
    theirs.load_state_dict(ours.state_dict())
    return theirs


def targets():
    """A ragged batch with spans in three of its four sequences, rows of (batch * seqlen)."""
    spans = [(0, 2, 6), (0, 8, 10), (2, 1, 4), (3, 4, 9)]  # (sequence, boundaries) of each span
    positions = [s * SEQLEN + p for s, a, b in spans for p in range(a + 1, b)]
    lengths = [min(b - a - 1, SPAN["max_span_targets"]) for _, a, b in spans]
    draw = torch.Generator().manual_seed(3)
    return {
        "input_ids": ids(),
        "attention_mask": mask(),
        "mlm_positions": torch.tensor(positions),
        "mlm_targets": torch.randint(2, VOCABULARY, (len(positions),), generator=draw),
        "span_boundaries": torch.tensor([[s * SEQLEN + a, s * SEQLEN + b] for s, a, b in spans]),
        "cu_span_lengths": F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int(),
        "sbo_targets": torch.randint(2, VOCABULARY, (sum(lengths),), generator=draw),
    }


def packed(batch):
    """The same batch without its padding."""
    real = batch["attention_mask"].bool()
    row_of = torch.full((BATCH * SEQLEN,), -1).masked_scatter(
        real.flatten(), torch.arange(int(real.sum()))
    )
    batch = dict(batch, input_ids=batch["input_ids"][real])
    for name in ("mlm_positions", "span_boundaries"):
        batch[name] = row_of[batch[name]]
    batch["cu_seqlens"] = F.pad(batch.pop("attention_mask").sum(1).cumsum(0), (1, 0)).int()
    return batch


def losses_by_formula(stock, batch):
    """The losses of contract C2 on transformers' model, without splitting, gathering or fusing."""
    encoder = {name: batch[name] for name in ("input_ids", "attention_mask")}
    rows = stock.base_model(**encoder).last_hidden_state.flatten(0, 1)
    logits = stock(**encoder).logits.flatten(0, 1)
    mlm = F.cross_entropy(logits[batch["mlm_positions"]], batch["mlm_targets"])
    head, decoder = stock.cls.span_boundary, stock.get_output_embeddings().weight
    lengths = batch["cu_span_lengths"].diff().long()
    left, right = batch["span_boundaries"].repeat_interleave(lengths, dim=0).T
    places = torch.cat([torch.arange(int(n)) for n in lengths])
    x = torch.cat([rows[left], rows[right], head.position_embeddings(places)], dim=1)
    x = head.layer_norm1(F.gelu(head.linear1(x)))
    x = head.layer_norm2(F.gelu(head.linear2(x)))
    sbo = F.cross_entropy(x @ decoder.T + head.bias, batch["sbo_targets"])
    return mlm + stock.config.sbo_weight * sbo, mlm, sbo


def results(made, batch):
    made.zero_grad()
    if isinstance(made, EncoderForSpanPreTraining):
        out = made(**batch)
        loss, mlm, sbo = out.loss, out.mlm_loss, out.sbo_loss
    else:
        loss, mlm, sbo = losses_by_formula(made, batch)
    loss.backward()
    named = {"loss": loss, "mlm_loss": mlm, "sbo_loss": sbo}
    return {name: x.detach() for name, x in named.items()} | gradients_of(made)


@pytest.mark.parametrize("name", OTHERS)
def test_losses_and_gradients_are_those_of_the_formula(name):
    """A packed batch keeps C5; a padded one gives the same bits."""
    ours = model_of(name, sbo_weight=0.7)
    theirs, padded = stock_of(ours), targets()
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    got = results(ours, packed(padded))
    assert_models_agree(
        got,
        results(theirs, padded),
        copy.deepcopy(theirs).double(),
        lambda made: results(made, padded),
    )
    for key, value in results(ours, padded).items():
        assert_bitwise_equal(value, got[key], key)


@pytest.mark.parametrize("name", OTHERS)
def test_scores_are_transformers_own(name):
    """Without targets, packed and padded; also the hidden states of all stages, and positions of a
    text that has the padding id in its middle."""
    ours = model_of(name).double().eval()
    theirs, batch = stock_of(ours).double().eval(), targets()
    batch["input_ids"][0, 4] = PAD
    real = batch["attention_mask"].bool()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = theirs(**inputs, output_hidden_states=True)
        padded = ours(**inputs, output_hidden_states=True)
        flat = packed(batch)
        alone = ours(input_ids=flat["input_ids"], cu_seqlens=flat["cu_seqlens"])
    torch.testing.assert_close(padded.logits[real], expected.logits[real])
    torch.testing.assert_close(alone.logits, expected.logits[real])
    assert len(padded.hidden_states) == len(expected.hidden_states)
    for got, wanted in zip(padded.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(got[real], wanted[real])


@pytest.mark.parametrize("name", ["roberta", "distilbert", "electra"])
def test_bf16_autocast_and_checkpointing(name):
    """The losses are near those in fp32, and the second forward of a checkpointed layer drops the
    same elements as the first."""
    fields = {"dropout": 0.1} if name == "distilbert" else {"hidden_dropout_prob": 0.1}
    ours, batch = model_of(name, **fields), packed(targets())
    batch["dropout_seed"] = torch.tensor(5)
    plain = results(ours, batch)
    ours.gradient_checkpointing_enable()
    for key, value in results(ours, batch).items():
        assert_bitwise_equal(value, plain[key], key)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(**batch).loss.item() == pytest.approx(plain["loss"].item(), rel=0.1)
    batch["dropout_seed"] = torch.tensor(6)
    assert results(ours, batch)["loss"] != plain["loss"]


STRANGER = """
import json, sys, torch
from transformers import AutoModelForMaskedLM
found = {}
for folder in sys.argv[1:]:
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([[3, 4, 5, 6, 7, 8]])).logits[0].tolist()
    differ = sorted([*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]])
    found[folder] = [type(model).__name__, differ, logits]
assert not any(name.split(".")[0] == "spanbert_fast" for name in sys.modules)
print(json.dumps(found))
"""


def test_transformers_alone_loads_them_without_a_word(tmp_path):
    models = {str(tmp_path / name): model_of(name).eval() for name in OTHERS}
    for folder, ours in models.items():
        ours.save_pretrained(folder, span_boundary_apart=True)
        head = {n for n, _ in ours.named_parameters() if n.startswith("cls.span_boundary.")}
        assert load_file(f"{folder}/{FILE}").keys() == head
    command = [sys.executable, "-c", STRANGER, *models]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "REPORT" not in done.stderr and "Some weights" not in done.stderr, done.stderr
    for folder, (kind, differ, logits) in json.loads(done.stdout.splitlines()[-1]).items():
        ours = models[folder]
        assert kind == type(ours).__name__ and not differ
        with torch.no_grad():
            expected = ours(torch.tensor([[3, 4, 5, 6, 7, 8]])).logits[0]
        torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-4, atol=1e-4)
        again, info = Auto.from_pretrained(folder, output_loading_info=True)
        assert type(again) is type(ours)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        for key, value in ours.state_dict().items():
            assert_bitwise_equal(again.state_dict()[key], value, key)
        assert again.config.max_span_targets == SPAN["max_span_targets"]


def test_a_stock_checkpoint_gains_the_head_alone(tmp_path, caplog):
    stock = large_init(transformers.RobertaForMaskedLM(config("roberta")))
    stock.save_pretrained(tmp_path)
    with caplog.at_level("INFO", "spanbert_fast"):
        ours = Auto.from_pretrained(tmp_path, sbo_weight=0.5, hidden_dropout_prob=0.25)
    assert f"{tmp_path}: lacks cls.span_boundary.*: initialised" in caplog.text
    assert ours.config.sbo_weight == 0.5 and ours.config.max_span_targets == 20
    assert ours.roberta.encoder.layer[0].output.dropout.p == 0.25
    for key, value in stock.state_dict().items():
        assert_bitwise_equal(ours.state_dict()[key], value, key)
    assert ours.lm_head.decoder.weight is ours.roberta.embeddings.word_embeddings.weight
    head = ours.cls.span_boundary
    assert not head.bias.any() and 0.01 < head.linear1.weight.std() < 0.03
    copy.deepcopy(ours)
    assert type(pickle.loads(pickle.dumps(ours))) is type(ours)


def test_resized_embeddings_resize_the_head():
    ours = model_of("xlm_roberta").eval()
    ours.resize_token_embeddings(VOCABULARY + 4)
    assert ours.cls.span_boundary.bias.shape == (VOCABULARY + 4,)
    assert ours(**targets()).loss.isfinite()


def test_damaged_checkpoints_are_refused(tmp_path):
    ours = model_of("roberta")
    state = ours.state_dict()
    lacking = {k: v for k, v in state.items() if "layer.1.output.dense" not in k}
    ours.save_pretrained(tmp_path / "lacking", state_dict=lacking)
    with pytest.raises(DataError, match=r"lacks 2 tensors of the encoder \(roberta.encoder.layer"):
        Auto.from_pretrained(tmp_path / "lacking")
    with torch.no_grad():
        ours.roberta.encoder.layer[0].output.dense.bias[3] = float("nan")
    ours.save_pretrained(tmp_path / "nan")
    with pytest.raises(DataError, match="holds values that are not finite"):
        Auto.from_pretrained(tmp_path / "nan")
    path = tmp_path / "nan" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_span_targets": 1 << 20}))
    with pytest.raises(DataError, match="max_span_targets must be a whole number in"):
        Auto.from_pretrained(tmp_path / "nan")


REFUSED = {
    "BertGenerationConfig": "must have a masked-LM head, got BertGenerationConfig",
    "GPT2Config": "must have a masked-LM head, got GPT2Config",
    "DebertaV2Config": "got DebertaV2ForMaskedLM: DeBERTa-v2's attention has terms of relative",
    "MPNetConfig": "got MPNetForMaskedLM: MPNet adds a bias by relative position",
    "ConvBertConfig": "got ConvBertForMaskedLM: spanbert_fast does not compute its layers",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_trained_so_is_refused_by_name(kind):
    with pytest.raises(UsageError, match=REFUSED[kind]) as error:
        Auto.from_config(getattr(transformers, kind)())
    assert "RoBERTa, XLM-RoBERTa" in str(error.value)


def test_another_activation_is_refused():
    with pytest.raises(ValueError, match='must have hidden_act "gelu"'):
        Auto.from_config(config("roberta", hidden_act="relu"))
    ours = model_of("distilbert")
    with pytest.raises(ValueError, match="token_type_ids must be None for DistilBERT"):
        ours(**targets(), token_type_ids=torch.zeros(BATCH, SEQLEN, dtype=torch.int64))
    with pytest.raises(ValueError, match="longer than max_position_embeddings = 38"):
        model_of("roberta")(torch.zeros(1, 39, dtype=torch.int64))


def test_a_bert_is_a_spanbert():
    ours = Auto.from_config(transformers.BertConfig(**{"num_hidden_layers": 1, **SPAN}))
    assert type(ours) is sb.SpanBertForPreTraining and ours.config.max_span_targets == 4


@pytest.mark.parametrize("takes_the_space", [False, True])
@pytest.mark.parametrize("kind", ["byte-level", "sentence piece"])
def test_masks_are_filled_with_the_spaces_that_tokens_have(kind, takes_the_space):
    """RoBERTa's mask token swallows the space before it, and a decoder drops the first token's."""
    tokenizer = KINDS[kind]()
    if takes_the_space:
        tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True)})
    kind = transformers.RobertaConfig if kind == "byte-level" else transformers.XLMRobertaConfig
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Auto.from_config(
        kind(vocab_size=len(tokenizer), intermediate_size=48, max_position_embeddings=40, **small)
    )
    fill = sb.FillSpan(model, tokenizer)
    vocabulary = sorted(token for token in tokenizer.get_vocab() if token.isascii() or token[1:])
    begins = next(t for t in vocabulary if t[0] in SPACES and t[1:].isascii() and t[1:].isalpha())
    inside = next(t for t in vocabulary if t.isascii() and t.isalpha())
    for token in (begins, inside):
        word = token.strip("\u0120\u2581")
        with torch.no_grad():
            for bias in (model.lm_head.bias, model.cls.span_boundary.bias):
                bias.zero_()[tokenizer.convert_tokens_to_ids(token)] = 100.0
        for text, expected in {
            "The <mask> parts": f"The {word} parts",
            "The<mask> parts": f"The {word} parts" if token is begins else f"The{word} parts",
            "<mask> parts": f"{word} parts",
        }.items():
            if takes_the_space and token is inside:
                expected = expected.replace(f" {word}", word)
            assert fill(text, head="both", top_k=1)[0].text == expected, (token, text)
