"""Coreference: words per second and peak memory of training and prediction, and how memory grows.

    python benchmarks/bench_coref.py [--model DIR] [--words 1000 10000 100000] [--rounds 3] [--draw]

Three providers of the same weights:

- ours: packed segments, tiles of pairs.
- reference ops: the same model under `use_backend("reference")`, all pairs in memory.
- padded: the form of the public code, written from its description (Lee et al. 2018, Kirstain et
  al. 2021): transformers' BertModel on segments padded to the longest one of the batch, with the
  scores of all spans and all pairs in memory.

Each measurement runs in a process of its own, whose peak memory includes the libraries. Documents
are ragged sentences of random words. The losses of the three must agree.
"""

import argparse
import contextlib
import json
import math
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertModel

from spanbert_fast.data.tokenizer import load_tokenizer
from spanbert_fast.models import SpanBertConfig, SpanBertForCoreference
from spanbert_fast.nn.coreference import Words
from spanbert_fast.ops._backend import use_backend
from spanbert_fast.tasks.coref_documents import Document
from spanbert_fast.tasks.coref_predict import document_clusters
from spanbert_fast.tasks.coref_segments import CoreferenceCollator, parts_of

PROVIDERS = ("ours", "reference ops", "padded")
SEGMENT = 384
RESULTS = Path(__file__).resolve().parent / "results"


def made_up(words: int, tokenizer, seed: int = 0) -> Document:
    """Sentences of 3 to 60 words, a gold mention of three or four in each."""
    draw = random.Random(seed)
    pieces = [p for p in tokenizer.get_vocab() if p.isalpha() and len(p) > 2]
    sentences, clusters, count = [], {}, 0
    while count < words:
        size = min(words - count, draw.randint(3, 60))
        sentences.append(draw.choices(pieces, k=size))
        for start in range(0, size - 1, 8):
            span = (count + start, count + start + draw.randint(0, 1))
            clusters.setdefault(draw.randrange(max(4, words // 40)), []).append(span)
        count += size
    return Document("made-up", "", "0", sentences, list(clusters.values()))


class Padded(nn.Module):
    """transformers' encoder on padded segments, with our head on the reference ops."""

    def __init__(self, model: SpanBertForCoreference):
        super().__init__()
        fields = {**model.config.to_dict(), "model_type": "bert"}
        config = BertConfig.from_dict(fields, attn_implementation="sdpa")
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.encoder.load_state_dict(model.bert.state_dict())
        self.model = model
        model.bert = None

    def forward(self, **batch):
        lengths = batch["cu_seqlens"].diff().long()
        mask = torch.arange(batch["max_seqlen"]) < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.int64)
        ids[mask] = batch["input_ids"]
        hidden = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        rows = mask.flatten().nonzero().squeeze(1)
        words = Words(
            rows[batch["first_pieces"]],
            rows[batch["last_pieces"]],
            batch["sentences"],
            batch["cu_words"],
        )
        with use_backend("reference"):
            if "gold_starts" not in batch:
                return self.model.resolve_words(hidden.flatten(0, 1), *words)
            gold = tuple(batch[f"gold_{name}"] for name in ("starts", "ends", "clusters"))
            return self.model._losses(hidden.flatten(0, 1), words, gold)


def model_of(directory: Path | None) -> SpanBertForCoreference:
    """A new head on a checkpoint's encoder, or on a random one of MiniLM's size."""
    torch.manual_seed(1)
    if directory is not None:
        return SpanBertForCoreference.from_pretrained(directory)
    config = SpanBertConfig(
        vocab_size=30_522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536,
    )  # fmt: skip
    return SpanBertForCoreference(config)


def child(options: argparse.Namespace) -> dict:
    """One measurement: seconds of the median round, bytes at the peak, and the loss."""
    tokenizer = load_tokenizer(options.model)
    document = made_up(options.words[0], tokenizer)
    model = model_of(options.model)
    run_on = contextlib.nullcontext
    if options.provider == "reference ops":
        run_on = lambda: use_backend("reference")  # noqa: E731
    if options.provider == "padded":
        model = Padded(model)
    model.eval()  # dropout's masks differ between the providers
    (window,) = parts_of(document, tokenizer, SEGMENT)
    batch = CoreferenceCollator()([window])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, loss = [], None
    for _ in range(options.rounds):
        began = time.perf_counter()
        with run_on():
            if options.train:
                out = model(**batch)
                out.loss.backward()
                model.zero_grad()
                loss = out.loss.item()
            elif options.provider == "ours":
                list(document_clusters(model, [document], tokenizer, max_seq_length=SEGMENT,
                                       singletons=True))  # fmt: skip
            else:
                with torch.no_grad():
                    model(**{k: v for k, v in batch.items() if not k.startswith("gold")})
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "provider": options.provider,
        "train": options.train,
        "words": options.words[0],
        "seconds": sorted(seconds)[len(seconds) // 2],
        "grown_bytes": 1024 * (peak - before),
        "peak_bytes": 1024 * peak,
        "loss": loss,
    }


def measured(options: argparse.Namespace, provider: str, words: int, train: bool) -> dict:
    """The result of `child` in a process of its own, or what it raised."""
    command = [sys.executable, __file__, "--provider", provider, "--words", str(words),
               "--rounds", str(options.rounds)]  # fmt: skip
    command += ["--model", str(options.model)] + (["--train"] if train else [])
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return {"provider": provider, "train": train, "words": words, "raised": last}
    return json.loads(done.stdout.splitlines()[-1])


def exponent(records: list[dict]) -> float:
    """The slope of log(memory) over log(words), between the smallest and the largest document."""
    ends = sorted((r["words"], r["peak_bytes"]) for r in records)
    (words, low), (more, high) = ends[0], ends[-1]
    return math.log(high / low) / math.log(more / words)


def draw(path: Path, records: list[dict]) -> None:
    """Plots peak memory over words, a line per provider that is told apart without colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for provider, style in zip(PROVIDERS, ("-o", "--s", ":^"), strict=True):
        own = [r for r in records if r["provider"] == provider and "raised" not in r]
        points = [(r["words"], r["peak_bytes"] / 1e9) for r in own if not r["train"]]
        if points:
            axis.loglog(*zip(*sorted(points), strict=True), style, label=provider)
    axis.set_xlabel("words of the document")
    axis.set_ylabel("peak memory of prediction (GB)")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write results/coref.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="checkpoint with its tokenizer")
    add("--words", type=int, nargs="+", default=[1000, 10_000, 100_000])
    add("--train-words", type=int, default=1000, help="of the document that is trained on")
    add("--rounds", type=int, default=3)
    add("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS)
    add("--draw", action="store_true")
    add("--provider", choices=PROVIDERS, help=argparse.SUPPRESS)
    add("--train", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.provider:
        print(json.dumps(child(options)))
        return
    records = []
    plan = [(options.train_words, True), *((words, False) for words in options.words)]
    for words, train in plan:
        for provider in options.providers:
            record = measured(options, provider, words, train)
            records.append(record)
            what = "training step" if train else "prediction"
            if "raised" in record:
                print(f"{what:<14}{words:>8,}  {provider:<14} {record['raised']}", flush=True)
                continue
            rate = words / record["seconds"]
            print(f"{what:<14}{words:>8,}  {provider:<14}{rate:10,.0f} words/s"
                  f"{record['peak_bytes'] / 1e9:8.2f} GB", flush=True)  # fmt: skip
        losses = [r["loss"] for r in records if r.get("loss") is not None]
        if train and losses and max(losses) - min(losses) > 1e-3 * abs(losses[0]):
            raise SystemExit(f"the providers' losses differ: {losses}")
    ours = [r for r in records if r["provider"] == "ours" and not r["train"] and "raised" not in r]
    if len(ours) > 1:
        print(f"memory grows with words to the power of {exponent(ours):.2f}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "coref.json").write_text(json.dumps(records, indent=2) + "\n")
    if options.draw:
        draw(RESULTS / "coref-memory.png", records)


if __name__ == "__main__":
    main()
