"""`pretrain` from a checkpoint of another family: files, resume, words, refusals."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertGenerationConfig,
    BertGenerationEncoder,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizer,
)

import spanbert_fast as sb
from spanbert_fast.cli import main
from spanbert_fast.data.prepare import open_shards
from spanbert_fast.training.checkpoints import checkpoints
from test_pretrain import metrics, trajectory
from tokenizer_cases import TEXTS

FAMILIES = {
    "roberta": (RobertaTokenizer, RobertaConfig, RobertaForMaskedLM),
    "xlm-roberta": (XLMRobertaTokenizer, XLMRobertaConfig, XLMRobertaForMaskedLM),
}
OPTIONS = (
    "--recipe tiny --tokens-per-batch 256 --warmup-steps 5 --held-out 0.1 --logging-steps 1 "
    "--seed 3 --learning-rate 5e-3"
).split()


def write_start(folder, family, texts, **tokenizer_options):
    torch.manual_seed(0)
    tokenizer_class, config_class, model_class = FAMILIES[family]
    tokenizer = tokenizer_class(**tokenizer_options).train_new_from_iterator(texts, 400)
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory, corpus_file):
    """A function that returns the folder of a family's small model with its tokenizer."""
    made = {}

    def of(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            texts = [corpus_file.read_text()] * 2 + list(TEXTS)
            made[family] = write_start(folder, family, texts, model_max_length=48)
        return made[family]

    return of


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_leaves_an_ordinary_checkpoint_and_resumes_bit_for_bit(
    tmp_path, corpus_file, start, family, capsys, one_thread
):
    run, text = tmp_path / "run", corpus_file.read_text().splitlines()[0]
    options = ["pretrain", "--data", str(corpus_file), "--init-from", str(start(family))]
    options += [*OPTIONS, "--max-steps", "60", "--save-steps", "30", "--save-total-limit", "3"]
    assert main([*options, "--output-dir", str(run)]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    kind = FAMILIES[family][2]
    assert "lacks cls.span_boundary.*: initialised" in said.err
    assert "sequences have at most 48 tokens, the tokenizer's limit" in said.err
    summary = json.loads((run / "summary.json").read_text())
    before, after = summary["held_out_before"], summary["held_out_after"]
    assert before["mlm_count"] == after["mlm_count"] > 50 and after["sbo_count"] > 20
    for loss in ("mlm_loss", "sbo_loss"):
        assert after[loss] < 0.8 * before[loss], loss
    assert "<mask><mask>" in summary["example"]["masked"].replace(" ", "")
    assert "<mask>" not in summary["example"]["filled"]
    card = (run / "model" / "README.md").read_text()
    assert f"{kind.__name__} with span objectives from" in card
    assert f"`transformers` loads it as `{kind.__name__}`" in card

    stock, info = AutoModelForMaskedLM.from_pretrained(run / "model", output_loading_info=True)
    assert type(stock) is kind
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert type(tokenizer) is FAMILIES[family][0]
    inputs = tokenizer([text, text[:40]], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    ours = sb.AutoModelForSpanPreTraining.from_pretrained(run / "model").eval()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        got, expected = ours(**inputs).logits[real], stock.eval()(**inputs).logits[real]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    masked = text.replace("The", "The <mask>", 1)
    assert main(["fill", masked, "--model", str(run / "model"), "--top-k", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2

    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "model")
    for late in checkpoints(again)[1:]:
        shutil.rmtree(late)
    assert main(["pretrain", "--output-dir", str(again), "--resume"]) == 0, capsys.readouterr().err
    assert trajectory(again) == trajectory(run)
    ended = json.loads((again / "summary.json").read_text())["held_out_after"]
    assert ended == after


def test_it_goes_on_from_its_own_checkpoint_by_a_file_of_options(
    tmp_path, corpus_file, start, capsys
):
    options = ["--data", str(corpus_file), *OPTIONS]
    first = ["--init-from", str(start("roberta")), "--max-steps", "30", "--max-span-targets", "3"]
    assert main(["pretrain", *options, *first, "--output-dir", str(tmp_path / "first")]) == 0
    capsys.readouterr()
    code = main(
        ["pretrain", "--config", str(tmp_path / "first" / "options.json")]
        + ["--init-from", str(tmp_path / "first" / "model"), "--max-steps", "3"]
        + ["--output-dir", str(tmp_path / "second"), "--static-shapes", "--precision", "bf16"]
    )
    said = capsys.readouterr().err
    assert code == 0, said
    assert "initialised" not in said and "another tokenizer" not in said
    assert len(metrics(tmp_path / "second")) == 3
    ended, began = (
        json.loads((tmp_path / run / "summary.json").read_text())[f"held_out_{when}"]
        for run, when in (("first", "after"), ("second", "before"))
    )
    for loss in ("mlm_loss", "sbo_loss"):  # bf16
        assert began[loss] == pytest.approx(ended[loss], rel=0.05)
    config = json.loads((tmp_path / "second" / "model" / "config.json").read_text())
    assert config["model_type"] == "roberta" and config["max_span_targets"] == 3


def test_words_are_those_of_the_prepared_data(tmp_path, start, capsys):
    text, shards = tmp_path / "text.txt", tmp_path / "shards"
    text.write_text("\n\n".join("\n".join(TEXTS) for _ in range(30)), encoding="utf-8")
    folder = str(start("xlm-roberta"))
    prepare = ["prepare", "--data", str(text), "--tokenizer", folder, "--words", "characters"]
    assert main([*prepare, "--output-dir", str(shards)]) == 0
    run = ["pretrain", "--data", str(shards), "--init-from", folder, *OPTIONS, "--max-steps", "1"]
    capsys.readouterr()
    assert main([*run, "--words", "tokens", "--output-dir", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert f"--words tokens: --data {shards} was prepared with --words characters" in said
    assert main([*run, "--output-dir", str(tmp_path / "b")]) == 0, capsys.readouterr().err
    raw = [str(text) if option == str(shards) else option for option in run]
    starts = {}
    for words in ("tokens", "tokenizer"):
        run = tmp_path / words
        assert main([*raw, "--words", words, "--output-dir", str(run)]) == 0
        (shard,) = open_shards(run / "shards")
        starts[words] = shard.word_starts(0, shard.num_tokens)
    assert starts["tokens"].all() and not starts["tokenizer"].all()


def test_a_spanbert_may_have_any_tokenizer(tmp_path, corpus_file, start, capsys):
    """Without --init-from the model is a new SpanBERT, whatever its tokenizer."""
    sizes = "--hidden-size 32 --num-attention-heads 2 --intermediate-size 64".split()
    options = ["--data", str(corpus_file), "--tokenizer", str(start("roberta")), *OPTIONS, *sizes]
    run = tmp_path / "run"
    assert main(["pretrain", *options, "--max-steps", "2", "--output-dir", str(run)]) == 0
    config = json.loads((run / "model" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert config["model_type"] == "bert" and config["vocab_size"] == len(tokenizer)
    assert tokenizer.mask_token == "<mask>"


def test_what_cannot_be_started_from_is_refused(tmp_path, corpus_file, start, capsys):
    folder = tmp_path / "generation"
    config = BertGenerationConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    BertGenerationEncoder(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(start("roberta")).save_pretrained(folder)
    options = [
        "pretrain",
        "--data",
        str(corpus_file),
        *OPTIONS,
        "--output-dir",
        str(tmp_path / "x"),
    ]
    assert main([*options, "--init-from", str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"--init-from {folder}: the model must have a masked-LM head" in said
    assert "Traceback" not in said

    options = [*options, "--overwrite", "--init-from", str(start("roberta"))]
    assert main([*options, "--max-seq-length", "64", "--max-steps", "1"]) == 2
    said = capsys.readouterr().err
    assert "--max-seq-length 64 is beyond the tokenizer's limit of 48" in said
    # RoBERTa's positions begin after that of padding
    places = 63 - AutoTokenizer.from_pretrained(start("roberta")).pad_token_id
    assert f"--max-seq-length 64 is beyond the checkpoint's position table of {places}" in said
