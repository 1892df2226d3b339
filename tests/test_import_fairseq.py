"""import_fairseq: imports the original training checkpoints (model.pt), every tensor (C1)."""

import argparse
import pickle
import sys
import types

import pytest
import torch
from transformers import AutoTokenizer, BertModel, BertTokenizer

from checkpoint_cases import SIZES, SPAN_SIZES, assert_same_state, pretraining
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.integrations.import_fairseq import import_fairseq
from spanbert_fast.models import SpanBertForPreTraining
from spanbert_fast.testing import assert_bitwise_equal

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def fairseq_names(model):
    """The state dict of `model` with the names of the original training code."""
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("cls.span_boundary.", "cls.pair_target_predictions.")
        for part in ("linear1", "linear2", "layer_norm1", "layer_norm2"):
            name = name.replace(f"_predictions.{part}", f"_predictions.mlp_layer_norm.{part}")
        if "norm" in name.lower().rsplit(".", 2)[1]:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        if name != "cls.predictions.decoder.bias":
            state[f"decoder.{name}"] = tensor
    words = model.bert.embeddings.word_embeddings.weight
    state["decoder.cls.pair_target_predictions.decoder.weight"] = words
    return state


@pytest.fixture
def fairseq():
    """A function that writes a file with fairseq's classes, which cannot be imported when it is
    read."""
    names = ("fairseq", "fairseq.pair", "fairseq.meters")
    modules = {name: types.ModuleType(name) for name in names}
    for module, name in (("fairseq.pair", "BertConfig"), ("fairseq.meters", "AverageMeter")):
        setattr(modules[module], name, type(name, (), {"__module__": module}))

    def write(path, state, legacy=True, **arguments):
        sys.modules.update(modules)
        config = modules["fairseq.pair"].BertConfig()
        config.num_attention_heads, config.hidden_act = 2, "gelu"
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.1
        given = {"pair_target_layer": -1, "endpoints": "external", "pair_loss_weight": 1.0}
        given |= {"arch": "cased_bert_pair", "num_attention_heads": None, **arguments}
        args = argparse.Namespace(config=config, **given)
        meter = modules["fairseq.meters"].AverageMeter()
        meter.avg = 1.5
        checkpoint = {
            "args": args,
            "model": state,
            "optimizer_history": [{"optimizer_name": "FP16Optimizer", "num_updates": 3}],
            "extra_state": {"epoch": 1, "val_loss": 2.0, "train_meters": {"loss": meter}},
            "last_optimizer_state": {"state": {0: {"exp_avg": torch.ones(3)}}},
        }
        torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
        for name in modules:
            del sys.modules[name]
        return path

    return write


@pytest.fixture
def vocabulary(tmp_path):
    """The text of a dict.txt with 61 lines of token and count."""
    tokens = [*SPECIAL, *(f"Word{i}" for i in range(40)), *(f"##piece{i}" for i in range(16))]
    path = tmp_path / "dict.txt"
    path.write_text("".join(f"{token} {99 - i}\n" for i, token in enumerate(tokens)))
    return path, tokens


@pytest.mark.parametrize("legacy", [True, False])
def test_fairseq_checkpoint_imports_without_loss(tmp_path, fairseq, vocabulary, legacy):
    model = pretraining(layer_norm_eps=1e-12)
    state = fairseq_names(model)
    state["decoder.cls.seq_relationship.weight"] = torch.randn(2, 64)
    state["decoder.cls.seq_relationship.bias"] = torch.randn(2)
    state["decoder.bert.pooler.dense.weight"] = torch.randn(64, 64)
    state["decoder.bert.pooler.dense.bias"] = torch.randn(64)
    path = fairseq(tmp_path / "model.pt", state, legacy)
    report = import_fairseq(path, tmp_path / "out", vocabulary[0])

    # every tensor is listed as read or left out
    assert set(report.renamed) | set(report.tied) | set(report.dropped) == set(state)
    assert "dropped: decoder.cls.seq_relationship.weight" in str(report)
    assert report.dropped == tuple(k for k in state if "seq_relationship" in k)
    assert set(report.tied) == {
        "decoder.cls.predictions.decoder.weight",
        "decoder.cls.pair_target_predictions.decoder.weight",
    }
    again, info = SpanBertForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert info["unexpected_keys"] == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert_same_state(again, model.state_dict())
    for name in (*SIZES, *SPAN_SIZES):
        assert getattr(again.config, name) == getattr(model.config, name), name
    assert (again.config.sbo_denominator_offset, again.config.layer_norm_eps) == (1, 1e-12)
    bert = BertModel.from_pretrained(tmp_path / "out")
    assert_bitwise_equal(bert.pooler.dense.bias.detach(), state["decoder.bert.pooler.dense.bias"])

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(list(range(61))) == vocabulary[1]
    assert tokenizer.tokenize("Word3piece1 word3") == ["Word3", "##piece1", "[UNK]"]  # cased
    assert tokenizer("Word3")["input_ids"] == [2, 8, 3]


def test_fairseq_without_span_head_and_in_half_precision(tmp_path, fairseq):
    """The release's plain BERT has another eps; a head has 64 features if args do not say."""
    model = pretraining()
    state = {k: v.half() for k, v in fairseq_names(model).items() if "pair_target" not in k}
    path = tmp_path / "model.pt"
    torch.save({"model": state}, path)
    report = import_fairseq(path, tmp_path / "out")
    assert (report.config.layer_norm_eps, report.config.num_attention_heads) == (1e-5, 1)
    again, info = SpanBertForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert all(k.startswith("cls.span_boundary.") for k in info["missing_keys"])
    word = again.bert.embeddings.word_embeddings.weight.detach()
    assert_bitwise_equal(word, state["decoder.bert.embeddings.word_embeddings.weight"].float())


def test_what_is_not_reproduced_is_said(tmp_path, fairseq):
    state = fairseq_names(pretraining())
    path = fairseq(tmp_path / "model.pt", state, clamp_attention=True)
    report = import_fairseq(path, tmp_path / "out")
    assert "not reproduced: clamp_attention: attention scores beyond +-10,000 were" in str(report)
    plain = {name: tensor for name, tensor in state.items() if "pair_target" not in name}
    fairseq(path, plain, clamp_attention=True, arch="bert_hf_large")
    report = import_fairseq(path, tmp_path / "plain")
    assert "+-32,000" in str(report) and report.config.layer_norm_eps == 1e-5
    # the family decides the norms' eps if the head does not show it
    fairseq(path, plain, arch="bert_pair")
    report = import_fairseq(path, tmp_path / "pair")
    assert report.config.layer_norm_eps == 1e-12 and "not reproduced" not in str(report)


@pytest.mark.parametrize("as_directory", [True, False])
def test_fairseq_with_another_vocabulary(tmp_path, fairseq, vocabulary, as_directory):
    path = fairseq(tmp_path / "model.pt", fairseq_names(pretraining()))
    lower = [token if token in SPECIAL else token.lower() for token in vocabulary[1]]
    given = tmp_path / "vocab.txt"
    given.write_text("\n".join(lower) + "\n")
    if as_directory:
        given = tmp_path / "tokenizer"
        BertTokenizer(vocab={t: i for i, t in enumerate(lower)}).save_pretrained(given)
    import_fairseq(path, tmp_path / "out", given)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("Word3") == ["word3"]  # no capital letters: uncased


def test_fairseq_refusals(tmp_path, fairseq, vocabulary):
    state = fairseq_names(pretraining())
    path, out = tmp_path / "model.pt", tmp_path / "out"
    words = "decoder.bert.embeddings.word_embeddings.weight"
    dense = "decoder.bert.encoder.layer.1.output.dense.weight"
    cases = {
        "holds a tensor with no place: decoder.bert.other": {"decoder.bert.other": torch.ones(2)},
        "must start with 'decoder.', got encoder.x": {"encoder.x": torch.ones(2)},
        f"decoder.cls.predictions.decoder.weight must equal {words}": {
            "decoder.cls.predictions.decoder.weight": torch.zeros(61, 64)
        },
        rf"{dense} must have shape \(64, 96\), got \(64, 95\)": {dense: torch.zeros(64, 95)},
    }
    for message, change in cases.items():
        with pytest.raises(DataError, match=message):
            import_fairseq(fairseq(path, {**state, **change}), out)
    without = {k: v for k, v in state.items() if k != dense}
    with pytest.raises(DataError, match="lacks the tensor of bert.encoder.layer.1.output.dense"):
        import_fairseq(fairseq(path, without), out)
    with pytest.raises(DataError, match=f"lacks the tensor {words}"):
        import_fairseq(fairseq(path, {}), out)
    with pytest.raises(DataError, match=r"pair_target_layer must be the last layer \(-1\), got 0"):
        import_fairseq(fairseq(path, state, pair_target_layer=0), out)
    with pytest.raises(DataError, match='endpoints must be "external", got "internal"'):
        import_fairseq(fairseq(path, state, endpoints="internal"), out)
    nan = {words: torch.full((61, 64), float("nan"))}
    with pytest.raises(DataError, match=f"{words} must be finite in .*model.pt, it holds NaN"):
        import_fairseq(fairseq(path, {**state, **nan}), out)
    with pytest.raises(DataError, match="num_hidden_layers must be that of the tensors, 2, got 3"):
        import_fairseq(fairseq(path, state, num_hidden_layers=3), out)
    with pytest.raises(DataError, match="arch must be one of bert_pair, .*, got transformer_lm"):
        import_fairseq(fairseq(path, state, arch="transformer_lm"), out)
    with pytest.raises(DataError, match="arch must be one of bert_pair with .*, got cased_bert_hf"):
        import_fairseq(fairseq(path, state, arch="cased_bert_hf"), out)
    with pytest.raises(UsageError, match="model_pt must be a file"):
        import_fairseq(tmp_path / "absent.pt", out)

    fairseq(path, state)
    for lines, message in (
        (SPECIAL[1:], r"it lacks \[PAD\]"),
        ([*SPECIAL, "a", "a"], "got 'a' twice"),
        ([*SPECIAL, *(f"w{i}" for i in range(57))], "rows = 61, got 62"),
    ):
        (tmp_path / "vocab.txt").write_text("\n".join(lines))
        with pytest.raises(DataError, match=message):
            import_fairseq(path, out, tmp_path / "vocab.txt")
    assert not out.exists(), "nothing is written before all is checked"
    with pytest.raises(UsageError, match="output_dir must not exist or be empty"):
        import_fairseq(path, tmp_path)
    for content in (b"", b"no pickle", path.read_bytes()[:3000], pickle.dumps([1, 2])):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(DataError, match="model_pt cannot be read: .*bad.pt"):
            import_fairseq(tmp_path / "bad.pt", out)
    torch.save({"no": 1}, path)
    with pytest.raises(DataError, match="must hold a dict with the key 'model'"):
        import_fairseq(path, out)


class Malicious:
    def __reduce__(self):
        return (exec, ("import sys; sys.pwned = True",))


def test_no_code_of_a_checkpoint_runs(tmp_path):
    torch.save({"model": {"decoder.x": Malicious()}, "y": Malicious()}, tmp_path / "model.pt")
    with pytest.raises(DataError):
        import_fairseq(tmp_path / "model.pt", tmp_path / "out")
    assert not hasattr(sys, "pwned")
