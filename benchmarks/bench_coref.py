"""Coreference: words per second of training and prediction, and how memory grows.

    python benchmarks/bench_coref.py --model DIR [--fastcoref DIR] [--words 1000 100000] [--draw]

Speed is that of one thread, by its processor time, on ragged documents of 50 to 2,500 words: a
training step (forward and backward, without dropout) and the forward of prediction. All providers
get the same batches of documents, sorted by length as the best public code sorts them, or with
--shuffled in any order:

- ours: packed segments, tiles of pairs.
- reference ops: the same model under `use_backend("reference")`, all pairs in memory.
- padded: the same weights on padded batches, dense scores of all spans and all pairs.
- fastcoref: that package's model class with random weights of the same sizes (`coref_peers.py`);
  --fastcoref names an unpacked source distribution.

The losses of the first three must agree in training, and their antecedents in prediction. Memory is
the peak of a process that predicts one document from its words on. Each measurement runs in a
process of its own, whose peak includes the libraries.
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
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import torch
from coref_peers import FastCoref, Padded
from results_format import RESULTS, document, machine_name, write_document

from spanbert_fast.data.tokenizer import load_tokenizer
from spanbert_fast.models import SpanBertConfig, SpanBertForCoreference
from spanbert_fast.ops._backend import use_backend
from spanbert_fast.tasks.coref_documents import Document
from spanbert_fast.tasks.coref_predict import document_clusters
from spanbert_fast.tasks.coref_segments import CoreferenceCollator, parts_of

PROVIDERS = ("ours", "reference ops", "padded", "fastcoref")
SEGMENT = 384
SHORTEST, LONGEST = 50, 2500  # words of the ragged documents
MOST_PIECES = {True: 5000, False: 10_000}  # of a padded batch; fastcoref's own, to train and not


def made_up(words: int, tokenizer, seed: int = 0) -> Document:
    """Sentences of 3 to 60 words, a gold mention of three or four in each."""
    draw = random.Random(seed)
    pieces = sorted(p for p in tokenizer.get_vocab() if p.isalpha() and len(p) > 2)
    sentences, clusters, count = [], {}, 0
    while count < words:
        size = min(words - count, draw.randint(3, 60))
        sentences.append(draw.choices(pieces, k=size))
        for start in range(0, size - 1, 8):
            span = (count + start, count + start + draw.randint(0, 1))
            clusters.setdefault(draw.randrange(max(4, words // 40)), []).append(span)
        count += size
    return Document("made-up", "", "0", sentences, list(clusters.values()))


def ragged(count: int, tokenizer) -> list[Document]:
    """Documents whose lengths are spread evenly on a logarithmic scale."""
    steps = [(place + 0.5) / count for place in range(count)]
    words = [round(SHORTEST * (LONGEST / SHORTEST) ** step) for step in steps]
    return [made_up(size, tokenizer, seed) for seed, size in enumerate(words)]


def batches(documents: list[Document], tokenizer, most: int) -> Iterator[dict]:
    """As many documents, in their order, as take `most` pieces when padded to the longest."""
    waiting: list[dict] = []
    segments = 0
    for text in documents:
        (window,) = parts_of(text, tokenizer, SEGMENT)
        segments = max(segments, len(window["segment_lengths"]))
        if waiting and (len(waiting) + 1) * segments * SEGMENT > most:
            yield CoreferenceCollator()(waiting)
            waiting, segments = [], len(window["segment_lengths"])
        waiting.append(window)
    if waiting:
        yield CoreferenceCollator()(waiting)


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


def provider_of(options: argparse.Namespace) -> tuple[torch.nn.Module, type]:
    """(model in eval mode, the context that it runs in); dropout's masks would differ."""
    model = model_of(options.model)
    if options.provider == "padded":
        return Padded(model).eval(), contextlib.nullcontext
    if options.provider == "fastcoref":
        return FastCoref(model, options.fastcoref).eval(), contextlib.nullcontext
    if options.provider == "reference ops":
        return model.eval(), lambda: use_backend("reference")
    return model.eval(), contextlib.nullcontext


def ragged_documents(options: argparse.Namespace) -> dict:
    """Processor seconds of the fastest round over all batches, and what came out."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(options.model)
    documents = ragged(options.documents, tokenizer)
    if options.shuffled:
        random.Random(0).shuffle(documents)
    work = list(batches(documents, tokenizer, MOST_PIECES[options.train]))
    model, run_on = provider_of(options)
    seconds: list[float] = []
    for _ in range(options.rounds):
        seen: list[float] = []
        began = time.process_time()
        for batch in work:
            with run_on():
                if options.train:
                    loss = model(**batch)["loss"]
                    loss.backward()
                    model.zero_grad()
                    seen.append(loss.item())
                else:
                    with torch.no_grad():
                        out = model(**{k: v for k, v in batch.items() if k[:4] != "gold"})
                    seen += out["antecedents"].tolist() if "antecedents" in out else []
        seconds.append(time.process_time() - began)
    return {
        "words": sum(len(text.words) for text in documents),
        "documents": len(documents),
        "seconds": min(seconds),
        "seen": seen,
    }


def one_document(options: argparse.Namespace) -> dict:
    """Processor seconds of predicting one document, and bytes at the peak."""
    tokenizer = load_tokenizer(options.model)
    text = made_up(options.words[0], tokenizer)
    model, run_on = provider_of(options)
    began = time.process_time()
    if options.provider == "ours":
        list(document_clusters(model, [text], tokenizer, max_seq_length=SEGMENT,
                               singletons=True))  # fmt: skip
    else:
        (window,) = parts_of(text, tokenizer, SEGMENT)
        batch = CoreferenceCollator()([window])
        with run_on(), torch.no_grad():
            model(**{k: v for k, v in batch.items() if k[:4] != "gold"})
    return {"words": options.words[0], "documents": 1, "seconds": time.process_time() - began}


def measured(options: argparse.Namespace, provider: str, what: str, words: int) -> dict:
    """The result of a process of its own, or what it raised."""
    command = [sys.executable, __file__, "--provider", provider, "--what", what]
    command += ["--words", str(words), "--documents", str(options.documents)]
    command += ["--rounds", str(options.rounds), "--model", str(options.model)]
    command += ["--fastcoref", str(options.fastcoref)] if options.fastcoref else []
    command += ["--shuffled"] if options.shuffled else []
    limit = round(options.most_memory * 1e9)
    done = subprocess.run(
        command, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    record = {"provider": provider, "what": what, "words": words}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return {**record, "raised": last[:200]}
    return {**record, **json.loads(done.stdout.splitlines()[-1])}


def check_agreement(records: list[dict], what: str) -> None:
    """Our model, its reference ops and the padded one must give the same results.

    Raises:
        SystemExit: they do not.
    """
    seen = {r["provider"]: r["seen"] for r in records if r["what"] == what and "seen" in r}
    first = seen.get("ours")
    for provider, values in seen.items():
        if provider == "fastcoref" or first is None:
            continue
        if what == "training":
            same = all(abs(a - b) <= 1e-3 * abs(a) for a, b in zip(first, values, strict=True))
        else:  # two mentions or antecedents whose scores are one rounding apart may change places
            differ = sum(a != b for a, b in zip(first, values, strict=True))
            same = differ <= 0.002 * len(first)
        if not same:
            raise SystemExit(f"{what}: the results of {provider} differ from ours")


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
    for provider, style in zip(PROVIDERS, ("-o", "--s", ":^", "-.x"), strict=True):
        own = [r for r in records if r["provider"] == provider and "raised" not in r]
        points = [(r["words"], r["peak_bytes"] / 1e9) for r in own if r["what"] == "memory"]
        if points:
            axis.loglog(*zip(*sorted(points), strict=True), style, label=provider)
    axis.set_title("How much memory does a long document take?")
    axis.set_xlabel("words of the document")
    axis.set_ylabel("peak memory of prediction (GB)")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        ticks(lambda value, _: f"{value:g}")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    figure.supxlabel(machine_name(), fontsize=8.5)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write coref.json among the results of this machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="checkpoint with its tokenizer")
    add("--fastcoref", type=Path, metavar="DIR", help="an unpacked source distribution of it")
    add("--words", type=int, nargs="*", default=[1000, 10_000, 100_000], help="of one document")
    add("--documents", type=int, default=20, help="ragged ones")
    add("--shuffled", action="store_true", help="documents in any order, not sorted by length")
    add("--rounds", type=int, default=2)
    add("--most-memory", type=float, default=16, metavar="GB", help="of a process's addresses")
    add("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS)
    add("--draw", action="store_true")
    add("--provider", choices=PROVIDERS, help=argparse.SUPPRESS)
    add("--what", choices=("training", "prediction", "memory"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.provider:
        options.train = options.what == "training"
        record = one_document(options) if options.what == "memory" else ragged_documents(options)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({**record, "peak_bytes": peak}))
        return
    providers = [p for p in options.providers if p != "fastcoref" or options.fastcoref]
    plan = [("training", 0), ("prediction", 0), *(("memory", words) for words in options.words)]
    records: list[dict] = []
    for what, words in plan:
        for provider in providers:
            records.append(record := measured(options, provider, what, words))
            print(line_of(record, records), flush=True)
        check_agreement(records, what)
    ours = [r for r in records if r["provider"] == "ours" and r["what"] == "memory"]
    ours = [r for r in ours if "raised" not in r]
    if len(ours) > 1:
        print(f"memory grows with words to the power of {exponent(ours):.2f}")
    for record in records:
        record.pop("seen", None)
    folder = RESULTS / machine_name()
    write_document(folder / "coref.json", document("coref", 1, records))
    if options.draw:
        draw(folder.with_name(f"{folder.name}-coref-memory.png"), records)


def line_of(record: dict, records: list[dict]) -> str:
    """A row of what is printed; the last column is how many times faster ours is."""
    what = record["what"] if record["what"] != "memory" else f"{record['words']:,} words"
    if "raised" in record:
        return f"{what:<14}{record['provider']:<14} {record['raised']}"
    ours = next((r for r in records if r["provider"] == "ours" and r["what"] == record["what"]
                 and r["words"] == record["words"] and "raised" not in r), record)  # fmt: skip
    rate = record["words"] / record["seconds"]
    return (
        f"{what:<14}{record['provider']:<14}{rate:10,.0f} words/s"
        f"{record['peak_bytes'] / 1e9:8.2f} GB{record['seconds'] / ours['seconds']:8.2f}x"
    )


if __name__ == "__main__":
    main()
