"""Masked LM and the task heads against stock BERT's at a large initialisation, within C5."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    Trainer,
    TrainingArguments,
)

from bert_cases import large_init, widened
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models import (
    SpanBertForMaskedLM,
    SpanBertForQuestionAnswering,
    SpanBertForSequenceClassification,
    SpanBertForTokenClassification,
)
from spanbert_fast.testing import assert_bitwise_equal, assert_models_agree, gradients_of

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 100,
    "max_position_embeddings": 24,
}
LENGTHS = (19, 1, 7, 18)


def models(ours_class, theirs_class, **fields):
    """(ours, theirs, theirs in fp64) with the same large weights."""
    ours = large_init(ours_class(SpanBertConfig(**SIZES, **fields)))
    config = BertConfig(**SIZES, **fields, attn_implementation="eager")
    theirs, truth = theirs_class(config).eval(), theirs_class(config).eval()
    theirs.load_state_dict(ours.state_dict())
    truth.load_state_dict(ours.state_dict())
    return ours, theirs, truth.double()


def batch():
    """Padded inputs, and the mask of real tokens."""
    mask = torch.arange(19) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(1, 97, (4, 19)) * mask
    types = torch.randint(0, 2, (4, 19))
    return {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": types}, mask


def packed(inputs, real):
    cu_seqlens = torch.tensor((0, *LENGTHS), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    flat = {k: v[real] for k, v in inputs.items() if k != "attention_mask"}
    return {**flat, "cu_seqlens": cu_seqlens, "max_seqlen": 19}


def check(trio, inputs, logits_of, **labels):
    """Check loss, logits and all parameter gradients within C5."""

    def run(model):
        # Hugging Face does not convert the targets of a double model
        given = widened(labels) if model.dtype == torch.float64 else labels
        output = model(**inputs, **given)
        model.zero_grad()
        output.loss.backward()
        logits = logits_of(output).detach()
        return {"loss": output.loss.detach(), "logits": logits, **gradients_of(model)}

    ours, theirs, truth = trio
    assert_models_agree(run(ours), run(theirs), truth, run)


def test_masked_lm():
    inputs, real = batch()
    labels = torch.where((torch.rand(4, 19) < 0.4) & real, torch.randint(0, 97, (4, 19)), -100)
    trio = models(SpanBertForMaskedLM, BertForMaskedLM)
    check(trio, inputs, lambda output: output.logits[real], labels=labels)
    padded, flat = trio[0](**inputs), trio[0](**packed(inputs, real), labels=labels[real])
    assert_bitwise_equal(flat.logits, padded.logits[real])
    assert_bitwise_equal(flat.loss, trio[0](**inputs, labels=labels).loss)
    assert isinstance(trio[0](**inputs, return_dict=False), tuple)


@pytest.mark.parametrize(
    ("num_labels", "labels"),
    [
        (1, torch.tensor([0.5, -1.0, 2.0, 0.0])),
        (3, torch.tensor([0, 2, 1, 2])),
        (3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])),
    ],
    ids=["regression", "single label", "several labels"],
)
def test_sequence_classification(num_labels, labels):
    inputs, real = batch()
    trio = models(
        SpanBertForSequenceClassification, BertForSequenceClassification, num_labels=num_labels
    )
    check(trio, inputs, lambda output: output.logits, labels=labels)
    assert trio[0].config.problem_type == trio[1].config.problem_type
    ours = trio[0]
    last_layer_in_full = ours(**inputs, output_hidden_states=True)
    assert len(last_layer_in_full.hidden_states) == 3
    torch.testing.assert_close(
        last_layer_in_full.logits, ours(**inputs).logits, rtol=1e-4, atol=1e-4
    )
    assert_bitwise_equal(ours(**packed(inputs, real)).logits, ours(**inputs).logits)


def test_token_classification():
    inputs, real = batch()
    labels = torch.where(real, torch.randint(0, 5, (4, 19)), -100)
    trio = models(SpanBertForTokenClassification, BertForTokenClassification, num_labels=5)
    check(trio, inputs, lambda output: output.logits[real], labels=labels)
    ours = trio[0]
    flat = ours(**packed(inputs, real), labels=labels[real])
    assert_bitwise_equal(flat.loss, ours(**inputs, labels=labels).loss)
    # labels on padding are never read
    assert_bitwise_equal(ours(**inputs, labels=torch.where(real, labels, 3)).loss, flat.loss)


def test_question_answering_without_padding():
    inputs, _ = batch()
    inputs["attention_mask"] = torch.ones(4, 19, dtype=torch.int64)
    trio = models(SpanBertForQuestionAnswering, BertForQuestionAnswering)
    check(
        trio,
        inputs,
        lambda output: torch.stack([output.start_logits, output.end_logits]),
        start_positions=torch.tensor([3, 0, 18, 25]),  # the last answer was cut off
        end_positions=torch.tensor([3, 5, 18, 30]),
    )


def test_question_answering_never_answers_with_padding():
    inputs, real = batch()
    ours, theirs, _ = models(SpanBertForQuestionAnswering, BertForQuestionAnswering)
    positions = {
        "start_positions": torch.tensor([3, 0, 2, 9]),
        "end_positions": torch.tensor([3, 0, 6, 17]),
    }
    output, other = ours(**inputs, **positions), theirs(**inputs)
    lowest = torch.finfo(torch.float32).min
    for got, expected in (
        (output.start_logits, other.start_logits),
        (output.end_logits, other.end_logits),
    ):
        torch.testing.assert_close(got[real], expected[real], rtol=1e-3, atol=1e-3)
        assert (got[~real] == lowest).all()
    flat = ours(**packed(inputs, real), **positions)
    assert_bitwise_equal(flat.start_logits, output.start_logits)
    assert_bitwise_equal(flat.end_logits, output.end_logits)
    # the loss is the mean of each sequence's own
    alone = [
        ours(
            input_ids=inputs["input_ids"][i : i + 1, :length],
            token_type_ids=inputs["token_type_ids"][i : i + 1, :length],
            **{k: v[i : i + 1] for k, v in positions.items()},
        ).loss
        for i, length in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(output.loss, torch.stack(alone).mean(), rtol=1e-4, atol=1e-4)


def test_question_answering_positions_on_padding_take_no_part_in_the_loss():
    """Positions beyond the batch take no part either; each mean is over valid positions."""
    inputs, real = batch()
    ours, _, _ = models(SpanBertForQuestionAnswering, BertForQuestionAnswering)
    starts, ends = torch.tensor([3, 1, 2, 18]), torch.tensor([18, 0, 7, 500])
    # the lengths are 19, 1, 7 and 18: starts count in rows 0 and 2, ends in rows 0 and 1
    padded = ours(**inputs, start_positions=starts, end_positions=ends)
    flat = ours(**packed(inputs, real), start_positions=starts, end_positions=ends)
    assert_bitwise_equal(flat.loss, padded.loss)
    log_p = [logits.log_softmax(-1) for logits in (padded.start_logits, padded.end_logits)]
    start_loss = -(log_p[0][0, 3] + log_p[0][2, 2]) / 2
    end_loss = -(log_p[1][0, 18] + log_p[1][1, 0]) / 2
    torch.testing.assert_close(padded.loss, (start_loss + end_loss) / 2)
    gradients = []
    for output in (padded, flat):
        ours.zero_grad()
        output.loss.backward()
        gradients.append(gradients_of(ours))
    for name, gradient in gradients[0].items():
        assert gradient.isfinite().all()
        assert_bitwise_equal(gradients[1][name], gradient, name)


@pytest.mark.parametrize(
    "model_class",
    [
        SpanBertForMaskedLM,
        SpanBertForSequenceClassification,
        SpanBertForTokenClassification,
        SpanBertForQuestionAnswering,
    ],
)
def test_every_head_trains_with_dropout_and_checkpointing(model_class):
    """One step as in a Trainer: train mode, checkpointing, autocast."""
    inputs, real = batch()
    model = model_class(SpanBertConfig(**SIZES)).train()
    model.gradient_checkpointing_enable()
    labels = {
        SpanBertForMaskedLM: {"labels": inputs["input_ids"]},
        SpanBertForSequenceClassification: {"labels": torch.tensor([0, 1, 0, 1])},
        SpanBertForTokenClassification: {"labels": inputs["token_type_ids"]},
        SpanBertForQuestionAnswering: {
            "start_positions": torch.tensor([1, 0, 2, 3]),
            "end_positions": torch.tensor([2, 0, 3, 4]),
        },
    }[model_class]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs, **labels).loss
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.bert.encoder.layer[0].attention.self.query.weight.grad.any()


@pytest.mark.parametrize("model_class", [SpanBertForMaskedLM, SpanBertForSequenceClassification])
def test_the_trainer_accumulates_means(tmp_path, model_class):
    """Two batches in one optimiser step train as one joint batch does."""
    if model_class is SpanBertForMaskedLM:
        labels = torch.randint(97, (8, 19))
    else:
        labels = torch.randint(2, (8,))
    ids = torch.randint(1, 97, (8, 19))
    examples = [{"input_ids": i, "labels": j} for i, j in zip(ids, labels, strict=True)]
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    start = large_init(model_class(SpanBertConfig(**SIZES, **dropout))).state_dict()
    trained = []
    for steps in (1, 2):
        model = model_class(SpanBertConfig(**SIZES, **dropout))
        model.load_state_dict(start)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, gradient_accumulation_steps=steps, optim="sgd",
            per_device_train_batch_size=8 // steps, learning_rate=0.1, max_grad_norm=0,
            lr_scheduler_type="constant", use_cpu=True, report_to="none", disable_tqdm=True,
            save_strategy="no", logging_strategy="no",
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=examples)
        trained.append((trainer.train().training_loss, model.state_dict()))
    (whole_loss, whole), (parts_loss, parts) = trained
    assert parts_loss == pytest.approx(whole_loss, rel=1e-5)
    # compares the changes, which are small beside the weights
    change = {name: whole[name] - start[name] for name in whole}
    largest = max(tensor.abs().max() for tensor in change.values())
    assert largest > 1e-3
    for name, tensor in change.items():
        torch.testing.assert_close(parts[name] - start[name], tensor, rtol=0, atol=largest * 1e-3)


def test_bad_input():
    model = SpanBertForTokenClassification(SpanBertConfig(**SIZES))
    with pytest.raises(ValueError, match="output_attentions must be False"):
        model(torch.ones(1, 3, dtype=torch.int64), output_attentions=True)
    with pytest.raises(TypeError, match="got an unexpected argument 'encoder_hidden_states'"):
        model(torch.ones(1, 3, dtype=torch.int64), encoder_hidden_states=torch.ones(1))
