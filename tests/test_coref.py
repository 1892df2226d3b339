"""Coreference end to end: segments, both heads, a run that learns, prediction, long documents."""

import json
import random
import re
import resource

import pytest
import torch

from coref_cases import document, options_of, write_folder
from spanbert_fast import cli, use_backend
from spanbert_fast.data.tokenizer import load_tokenizer
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.models import SpanBertConfig, SpanBertForCoreference
from spanbert_fast.tasks.coref import HEADS, Coreference
from spanbert_fast.tasks.coref_documents import Document
from spanbert_fast.tasks.coref_segments import CoreferenceCollator, parts_of, segments_of
from spanbert_fast.training.finetuning.finetune import finetune


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("coref"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder / "model")


def config_of(**fields):
    return SpanBertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
        max_span_width=4,
        max_top_antecedents=5,
        **fields,
    )


def batch_of(tokenizer, count=3, seed=0):
    draw = random.Random(seed)
    documents = [document(f"d{i}", draw, 3 + 3 * i) for i in range(count)]
    windows = [w for d in documents for w in parts_of(d, tokenizer, 24)]
    return documents, CoreferenceCollator()(windows)


def test_segments_hold_whole_sentences_and_every_word_once(tokenizer):
    sentences = [["Ann", "saw", "Tom", "."]] * 5 + [["cat"] * 30] + [["it", "."]]
    long = Document("d", "", "0", sentences, [])
    segments = segments_of(long, tokenizer, 16)
    assert sum(len(s.firsts) for s in segments) == len(long.words)
    assert all(len(s.input_ids) <= 16 for s in segments)
    split = [number for s in segments for number in {*s.sentences}]
    assert split.count(5) > 1 and all(split.count(n) == 1 for n in range(5))
    for segment in segments:
        assert segment.input_ids[0] == tokenizer.cls_token_id
        assert segment.input_ids[-1] == tokenizer.sep_token_id
        assert segment.firsts[0] == 1 and segment.lasts[-1] == len(segment.input_ids) - 2
    # no mention crosses from one segment to the next, even within a sentence
    (window,) = parts_of(long, tokenizer, 16)
    assert window["sentences"][-1] + 1 == len(split) > 7
    words = [len(w["first_pieces"]) for w in parts_of(long, tokenizer, 16, 2)]
    assert sum(words) == len(long.words) and len(words) == -(-len(segments) // 2)


def test_parts_keep_the_mentions_that_lie_in_them(tokenizer):
    documents, batch = batch_of(tokenizer)
    parts = list(parts_of(documents[2], tokenizer, 24, 1))
    kept = sum(len(part["gold_starts"]) for part in parts)
    assert len(parts) > 1 and kept == sum(map(len, documents[2].clusters))
    clusters = sum(len(d.clusters) for d in documents)
    assert len(batch["gold_clusters"].unique()) == clusters, "those of documents stay apart"
    assert batch["cu_words"][-1] == len(batch["first_pieces"])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("depth", [1, 2])
def test_the_loss_is_that_of_the_reference_ops(tokenizer, head, depth):
    torch.manual_seed(0)
    model = SpanBertForCoreference(config_of(coref_head=head, coref_depth=depth)).eval()
    _, batch = batch_of(tokenizer)

    def run():
        out = model(**batch)
        model.zero_grad()
        out.loss.backward()
        return out, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    ours, gradients = run()
    with use_backend("reference"):
        theirs, of_reference = run()
    torch.testing.assert_close(ours.loss, theirs.loss)
    assert torch.equal(ours.mention_starts, theirs.mention_starts)
    for a, b in zip(gradients, of_reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert all(p.grad is not None for p in model.coref.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_documents_side_by_side_are_as_alone(tokenizer, head):
    torch.manual_seed(0)
    model = SpanBertForCoreference(config_of(coref_head=head)).eval()
    documents, _ = batch_of(tokenizer)
    task = Coreference(coref_head=head, max_seq_length=24, singletons=True)
    together = list(task.predictions(model, documents, tokenizer))
    alone = [next(task.predictions(model, [d], tokenizer)) for d in documents]
    in_parts = list(task.predictions(model, documents, tokenizer, tokens_per_batch=30))
    assert together == alone == in_parts
    assert any(len(cluster) > 1 for clusters in together for cluster in clusters)
    for clusters, d in zip(together, documents, strict=True):
        spans = [span for cluster in clusters for span in cluster]
        assert len({*spans}) == len(spans)
        assert all(0 <= start <= end < len(d.words) for start, end in spans)


def test_a_padded_batch_is_as_a_packed_one(tokenizer):
    torch.manual_seed(0)
    model = SpanBertForCoreference(config_of()).eval()
    _, batch = batch_of(tokenizer)
    lengths = batch["cu_seqlens"].diff()
    mask = (torch.arange(lengths.max()) < lengths[:, None]).long()
    ids = torch.zeros_like(mask).masked_scatter(mask.bool(), batch["input_ids"])
    flat = mask.flatten().nonzero().squeeze(1)
    padded = {k: v for k, v in batch.items() if k not in ("cu_seqlens", "max_seqlen")}
    padded |= {"input_ids": ids, "attention_mask": mask}
    padded |= {name: flat[batch[name]] for name in ("first_pieces", "last_pieces")}
    torch.testing.assert_close(model(**padded).loss, model(**batch).loss)
    with pytest.raises(ValueError, match="must be given"):
        model(input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_learns_a_batch_by_heart(tokenizer, head):
    torch.manual_seed(0)
    model = SpanBertForCoreference(config_of(coref_head=head, top_span_ratio=1.0)).eval()
    documents, batch = batch_of(tokenizer, count=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    task = Coreference(coref_head=head, max_seq_length=24, singletons=True)
    figures = task.metrics(documents, list(task.predictions(model, documents, tokenizer)))
    assert figures["conll_f1"] > 60


@pytest.mark.parametrize("head", HEADS)
def test_a_run_s_model_predicts_what_the_run_did(folder, tmp_path, head, capsys):
    epochs = 6 if head == "start-to-end" else 2
    options = options_of(folder, tmp_path / "run", epochs=epochs,
                         task_options={"coref_head": head})  # fmt: skip
    result = finetune(options)
    if head == "start-to-end":
        assert result["test"]["conll_f1"] > 20
    model = tmp_path / "run" / "model"
    assert f"head_learning_rate | {options.head_learning_rate}" in (model / "README.md").read_text()
    assert (tmp_path / "run" / "predictions-test" / "predictions.html").is_file()
    command = ["predict", "coref", str(model), str(folder / "test.jsonl")]
    assert cli.main([*command, "--output", str(tmp_path / "out.jsonl")]) == 0
    printed = re.search(r"conll_f1 +([\d.]+)", capsys.readouterr().out)
    assert float(printed[1]) == pytest.approx(result["test"]["conll_f1"], abs=1e-3)
    text = tmp_path / "new.txt"
    text.write_text("Ann saw Tom. She saw the old cat. It saw him.")
    assert cli.main(["predict", "coref", str(model), str(text), "--output",
                     str(tmp_path / "new.jsonl")]) == 0  # fmt: skip
    (line,) = (tmp_path / "new.jsonl").read_text().splitlines()
    assert json.loads(line)["sentences"][0] == ["Ann", "saw", "Tom", "."]


def test_what_is_not_possible_is_said(folder, tmp_path, caplog):
    with pytest.raises(UsageError, match="--coref-head must be one of start-to-end, coarse"):
        Coreference(coref_head="none")
    with pytest.raises(UsageError, match="--max-training-segments must be at least 1, got 0"):
        Coreference(max_training_segments=0)
    with pytest.raises(UsageError, match="--engine must be spanbert_fast for coref"):
        finetune(options_of(folder, tmp_path / "run", engine="transformers"))
    with pytest.raises(ValueError, match="coref_head must be"):
        config_of(coref_head="none")
    task, long = Coreference(max_span_width=2), document("d", random.Random(1), 4)
    long.clusters.append([(0, 2)])
    with caplog.at_level("WARNING", logger="spanbert_fast"):
        task.learn([long])
    assert "mentions have more than 2 words (--max-span-width) and are not learnt" in caplog.text
    assert task.singletons is True
    with pytest.raises(DataError, match="has no clusters to learn from"):
        task.learn([Document("d", "f:1", "0", [["a"]], None)])


def test_memory_grows_with_the_words_alone(tokenizer):
    """A document of 20,000 words; a words x words matrix in fp32 would take 1.6 GB."""
    model = SpanBertForCoreference(config_of()).eval()
    long = document("long", random.Random(0), 7500)
    assert len(long.words) > 20_000
    task = Coreference(max_seq_length=64, singletons=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (clusters,) = task.predictions(model, [long], tokenizer)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert clusters and grown < 400_000, f"{grown} kB"
