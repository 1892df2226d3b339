"""The parts of a starting checkpoint that fine-tuning keeps, and those that it replaces."""

import logging

import pytest
import torch
from safetensors.torch import load_file

from finetune_cases import options_of, write_folder
from spanbert_fast import models
from spanbert_fast.cli import main
from spanbert_fast.data.tokenizer import load_tokenizer
from spanbert_fast.errors import UsageError
from spanbert_fast.tasks.classify import Classification
from spanbert_fast.tasks.ner import NamedEntities
from spanbert_fast.tasks.qa import QuestionAnswering
from spanbert_fast.testing import assert_bitwise_equal
from spanbert_fast.training.finetuning.finetune import finetune
from spanbert_fast.training.finetuning.models import initial_model
from spanbert_fast.training.precision import with_weights_in
from spanbert_fast.training.pretraining.options import PretrainOptions
from spanbert_fast.training.pretraining.sources import initial_model as initial_pretraining_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder / "model")


def classification(labels, **options):
    return Classification(labels=labels, max_seq_length=32, **options)


def start(where, task, tokenizer, **options):
    return initial_model(where, task, tokenizer, engine="spanbert_fast", **options)


def test_weights_in_half_precision_are_trained_in_fp32(folder, tokenizer, tmp_path):
    half = models.SpanBertForPreTraining.from_pretrained(folder / "model", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tuned = start(tmp_path, classification(["a", "b"]), tokenizer)
    options = PretrainOptions(output_dir="", init_from=str(tmp_path))
    options = PretrainOptions(
        output_dir="", init_from=str(tmp_path), overrides={"max_seq_length": 32}
    )
    continued = initial_pretraining_model(options, tokenizer)
    for model in (tuned, continued):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    weight = half.bert.embeddings.word_embeddings.weight
    assert_bitwise_equal(continued.bert.embeddings.word_embeddings.weight, weight.float())


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.parametrize("wanted", DTYPES)
def test_half_precision_is_trained_only_on_purpose(folder, tmp_path, caplog, wanted):
    """From the command line; the saved dtype is that of training."""
    half = models.SpanBertForPreTraining.from_pretrained(folder / "model", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    load_tokenizer(folder / "model").save_pretrained(tmp_path / "half")
    files = [f"--{split}={folder / split}.conll" for split in ("train", "dev")]
    given = [] if wanted == "fp32" else ["--weights-dtype", wanted]
    command = ["finetune", "ner", *files, "--model", str(tmp_path / "half"), *given]
    command += ["--epochs", "1", "--max-seq-length", "32", "--batch-size", "8"]
    with caplog.at_level(logging.INFO, "spanbert_fast"):
        assert main([*command, "--output-dir", str(tmp_path / "run")]) == 0
    stored = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {DTYPES[wanted]}
    predict = ["predict", "ner", str(tmp_path / "run" / "model"), str(folder / "test.conll")]
    assert main([*predict, "--output", str(tmp_path / "predictions.conll")]) == 0


def test_pretraining_in_half_precision(tmp_path, corpus_file, small_run):
    run = ["pretrain", "--data", corpus_file, "--output-dir", tmp_path / "run", *small_run]
    run += ["--max-steps", 4, "--save-steps", 2, "--weights-dtype", "bf16"]
    assert main([str(word) for word in run]) == 0
    stored = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


@pytest.mark.parametrize("wanted", DTYPES)
def test_a_ready_model_is_trained_in_the_dtype_that_is_asked_for(
    folder, tokenizer, tmp_path, caplog, wanted
):
    labels = sorted({line.split("\t")[1] for line in _lines(folder / "train.conll")})
    labels.remove("O")
    task = NamedEntities(max_seq_length=32, labels=["O", *labels])
    model = start(folder / "model", task, tokenizer).bfloat16()
    options = options_of(folder, tmp_path / "run", epochs=1, weights_dtype=wanted)
    with caplog.at_level(logging.INFO, "spanbert_fast"):
        finetune(options, model=model)
    assert {parameter.dtype for parameter in model.parameters()} == {DTYPES[wanted]}
    said = {
        "fp32": "the weights come in bfloat16 and are trained in fp32 (--weights-dtype bf16",
        "bf16": "--weights-dtype bf16: half the memory, but an update below 1/512 of its weight",
    }
    assert [text in caplog.text for text in said.values()] == [wanted == name for name in said]


def _lines(path):
    return [line for line in path.read_text().splitlines() if line]


def test_weights_in_full_precision_are_passed_over_in_silence(folder, tokenizer, caplog):
    model = start(folder / "model", classification(["a", "b"]), tokenizer)
    with caplog.at_level(logging.INFO, "spanbert_fast"):
        caplog.clear()
        assert with_weights_in("fp32", model) is model
    assert not caplog.records


def test_half_precision_computes_in_half_precision(folder, tmp_path):
    for precision in ("fp32", "fp16"):
        with pytest.raises(UsageError, match="must be auto or bf16 with --weights-dtype bf16"):
            PretrainOptions(output_dir="", precision=precision, weights_dtype="bf16")
        with pytest.raises(UsageError, match="must be auto or bf16 with --weights-dtype bf16"):
            options_of(folder, tmp_path, precision=precision, weights_dtype="bf16")
    with pytest.raises(UsageError, match="--weights-dtype must be fp32 or bf16, got fp16"):
        options_of(folder, tmp_path, weights_dtype="fp16")


def test_a_head_of_the_same_labels_goes_on_and_another_does_not(
    folder, tokenizer, tmp_path, caplog
):
    first = start(folder / "model", classification(["no", "yes"]), tokenizer)
    first.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "spanbert_fast"):
        again = start(tmp_path, classification(["no", "yes"]), tokenizer)
    assert_bitwise_equal(again.classifier.weight, first.classifier.weight)
    assert "its head is of the same labels, and is gone on with" in caplog.text
    caplog.clear()
    for task in (
        classification(["yes", "no"]),  # the same number of labels, with other meanings
        classification(["a", "b", "c"]),
        classification(None, regression=True),
        NamedEntities(max_seq_length=32, labels=["O", "B-X"]),
        QuestionAnswering(max_seq_length=32, max_query_length=8, doc_stride=4),
    ):
        with caplog.at_level(logging.INFO, "spanbert_fast"):
            other = start(tmp_path, task, tokenizer)
        head = getattr(other, "classifier", None) or other.qa_outputs
        assert head.weight.shape != first.classifier.weight.shape or not torch.equal(
            head.weight, first.classifier.weight
        )
        assert (
            "its head is of another task (BertForSequenceClassification): a new one" in caplog.text
        )
        caplog.clear()
        weight = first.bert.embeddings.word_embeddings.weight
        assert_bitwise_equal(other.bert.embeddings.word_embeddings.weight, weight)


def test_nothing_of_an_earlier_task_is_left_in_the_configuration(folder, tokenizer, tmp_path):
    numbers = start(folder / "model", classification(None, regression=True), tokenizer)
    assert (numbers.config.problem_type, numbers.config.num_labels) == ("regression", 1)
    numbers.save_pretrained(tmp_path)
    classes = start(tmp_path, classification(["no", "yes", "?"]), tokenizer).config
    assert classes.problem_type == "single_label_classification"
    assert classes.id2label == {0: "no", 1: "yes", 2: "?"}
    entities = start(tmp_path, NamedEntities(max_seq_length=32, labels=["O", "B-X"]), tokenizer)
    assert (entities.config.problem_type, entities.config.num_labels) == (None, 2)
    options = {"max_seq_length": 32, "max_query_length": 8, "doc_stride": 4}
    answers = start(tmp_path, QuestionAnswering(**options), tokenizer).config
    assert (answers.problem_type, answers.num_labels) == (None, 2)
