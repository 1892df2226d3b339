#!/usr/bin/env python
"""How time grows: with sequence length, batch tokens, padding, vocabulary and threads.

Each curve is a set of points of ours and of PyTorch's usual way, measured in turn, and the exponent
of a power law through each one's points (least squares over the logarithms). Everything runs
forward and backward in bf16.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import numpy as np
import torch
from results_format import RESULTS, document, write_document
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from spanbert_fast.nn import TransformerLayer
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.ops.varlen_attention import varlen_attention

Runs = dict[str, Callable[[], object]]
HEADS, HEAD_DIM, HIDDEN = 12, 64, 768


def exponent(sizes: list[float], seconds: list[float]) -> float | None:
    """The power with which time grows; None for fewer than two sizes."""
    if len(set(sizes)) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def attention(seqlen: int, tokens: int) -> Runs:
    """Attention of about `tokens` tokens in sequences of one length."""
    batch = max(1, tokens // seqlen)
    qkv = torch.randn(batch * seqlen, 3, HEADS, HEAD_DIM).bfloat16().requires_grad_()
    dout = torch.randn(batch * seqlen, HEADS, HEAD_DIM).bfloat16()
    bounds = torch.arange(0, batch * seqlen + 1, seqlen, dtype=torch.int32)

    def ours():
        out = varlen_attention(*qkv.unbind(1), bounds, seqlen)
        return torch.autograd.grad(out, qkv, dout)

    def sdpa():
        q, k, v = (t.unflatten(0, (batch, seqlen)).transpose(1, 2) for t in qkv.unbind(1))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
        return torch.autograd.grad(out, qkv, dout)

    return {"ours": ours, "sdpa": sdpa}


def layer(lengths: list[int]) -> Runs:
    """A BERT layer on a batch with these lengths, dropout 0.1; Hugging Face's gets it padded."""
    config = BertConfig(hidden_size=HIDDEN, attn_implementation="sdpa")
    ours = TransformerLayer(HIDDEN, HEADS, 4 * HIDDEN).bfloat16().train()
    theirs = BertLayer(config).bfloat16().train()
    counts = torch.tensor(lengths)
    real = torch.arange(max(lengths)) < counts[:, None]
    padded = torch.randn(*real.shape, HIDDEN).bfloat16()
    packed = padded[real]
    bounds = F.pad(counts.cumsum(0), (1, 0)).int()
    mask = None if real.all() else real[:, None, None, :]
    return {
        "ours": lambda: ours(packed, bounds, max(lengths)).float().sum().backward(),
        "Hugging Face sdpa": lambda: theirs(padded, mask).float().sum().backward(),
    }


def loss(vocab_size: int, rows: int) -> Runs:
    """The vocabulary's cross-entropy of some rows."""
    hidden = torch.randn(rows, HIDDEN).bfloat16().requires_grad_()
    weight = (0.05 * torch.randn(vocab_size, HIDDEN)).bfloat16().requires_grad_()
    bias = torch.zeros(vocab_size).bfloat16().requires_grad_()
    targets = torch.randint(vocab_size, (rows,))
    leaves = (hidden, weight, bias)

    def ours():
        return torch.autograd.grad(linear_cross_entropy(*leaves, targets).losses.mean(), leaves)

    def usual():
        return torch.autograd.grad(F.cross_entropy(F.linear(*leaves), targets), leaves)

    return {"ours": ours, "linear + cross_entropy": usual}


def with_threads(count: int, make: Callable[[], Runs]) -> Runs:
    """The same with another number of threads."""
    return {
        name: lambda run=run: (torch.set_num_threads(count), run())[1]
        for name, run in make().items()
    }


def curves(options: argparse.Namespace) -> Iterator[tuple[str, str, list]]:
    """(what is measured, what grows, [(size, how to make its runs)])."""
    few, tokens = options.quick or options.tiny, 256 if options.tiny else 4096
    lengths = (
        [16, 32]
        if options.tiny
        else [64, 512, 2048]
        if few
        else [64, 128, 256, 512, 1024, 2048, 4096]
    )
    yield "attention", "sequence length", [(n, lambda n=n: attention(n, tokens)) for n in lengths]
    sizes = [32, 64] if options.tiny else [512, 2048] if few else [512, 1024, 2048, 4096]
    seqlen = 16 if options.tiny else 128
    yield "layer", "batch tokens", [(n, lambda n=n: layer([seqlen] * (n // seqlen))) for n in sizes]
    longest, count = (16, 4) if options.tiny else (256, 8)
    shares = [0.0, 0.5] if few else [0.0, 0.25, 0.5, 0.75]
    yield (
        "layer",
        "padding share",
        [
            (
                share,
                lambda s=share: layer([longest] + [max(1, round(longest * (1 - s)))] * (count - 1)),
            )
            for share in shares
        ],
    )
    vocabularies = (
        [100, 200] if options.tiny else [8000, 28_996] if few else [4000, 8000, 16_000, 28_996]
    )
    rows = 16 if options.tiny else 600
    yield "loss", "vocabulary", [(n, lambda n=n: loss(n, rows)) for n in vocabularies]
    yield (
        "layer",
        "threads",
        [
            (n, lambda n=n: with_threads(n, lambda: layer([seqlen] * (sizes[-1] // 2 // seqlen))))
            for n in range(1, options.threads + 1)
        ],
    )


def measure(options: argparse.Namespace, what: str, grows: str, points: list) -> dict:
    """Medians of a curve's points, and its exponents."""
    found: dict[str, list[float]] = {}
    for _, make in points:
        torch.set_num_threads(options.threads)
        seconds: dict[str, list[float]] = {}
        runs = make()
        for number in range(options.rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if number:  # the first one warms up
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
        for name, times in seconds.items():
            found.setdefault(name, []).append(1e3 * statistics.median(times))
    sizes = [size for size, _ in points]
    fits = grows not in ("padding share", "threads")
    return {
        "what": what,
        "grows": grows,
        "sizes": sizes,
        "median_ms": found,
        "exponents": {n: exponent(sizes, times) for n, times in found.items()} if fits else {},
    }


def show(curve: dict) -> str:
    """A curve for reading."""
    lines = [f"{curve['what']}, ms by {curve['grows']}"]
    lines.append(" " * 26 + "".join(f"{size:>10}" for size in curve["sizes"]) + "   exponent")
    for name, times in curve["median_ms"].items():
        power = curve["exponents"].get(name)
        tail = "" if power is None else f"{power:>11.2f}"
        lines.append(f"  {name:<24}" + "".join(f"{t:>10.2f}" for t in times) + tail)
    return "\n".join(lines)


def main() -> None:
    """Measure all curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=5)
    add("--quick", action="store_true", help="two or three points a curve")
    add("--tiny", action="store_true", help="two tiny points a curve")
    add("--output", type=Path, default=RESULTS / "scaling.json")
    options = parser.parse_args()
    if options.tiny:
        options.rounds = 1
    torch.manual_seed(0)
    results = []
    for what, grows, points in curves(options):
        results.append(measure(options, what, grows, points))
        print(show(results[-1]), flush=True)
    write_document(options.output, document("scaling", options.threads, results))


if __name__ == "__main__":
    main()
