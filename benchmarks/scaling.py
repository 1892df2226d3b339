#!/usr/bin/env python
"""How time grows: with sequence length, batch tokens, padding, vocabulary and threads.

A curve has points of ours and of PyTorch's usual operators, measured in turn, and for each the
exponent of a power law through its points (least squares over the logarithms). Everything runs
forward and backward in bf16. Before a point is timed, results and gradients of both are compared,
without dropout, with the usual operators in fp32; a curve with a wrong point gets no ratio.
"""

import argparse
import copy
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import numpy as np
import torch
from op_case import OURS, Tensors, error_share
from results_format import RESULTS, document, write_document
from timing import Clock, interleaved, quartiles, ratio
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from spanbert_fast.nn import Packing, TransformerLayer
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.ops.varlen_attention import varlen_attention

HEADS, HEAD_DIM, HIDDEN = 12, 64, 768
_FLOOR = torch.finfo(torch.bfloat16).eps  # of the largest value, where the peer is right by luck


@dataclasses.dataclass
class Point:
    """One size of a curve.

    Attributes:
        timed: the functions to time, by provider, ours first.
        checked: functions of the same providers that return results and gradients without dropout.
        truth: the same for the usual operators in fp32.
    """

    timed: dict[str, Callable[[], object]]
    checked: dict[str, Callable[[], Tensors]]
    truth: Callable[[], Tensors]

    def errors(self) -> dict[str, float]:
        """Each provider's largest error as a share of the allowed error."""
        found = {name: run() for name, run in self.checked.items()}
        exact, baseline = self.truth(), list(found.values())[-1]
        return {name: error_share(r, baseline, exact, _FLOOR) for name, r in found.items()}


def exponent(sizes: list[float], seconds: list[float]) -> float | None:
    """The exponent with which time grows; None for fewer than two sizes."""
    if len(set(sizes)) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def with_gradients(out: torch.Tensor, leaves: list[torch.Tensor], dy: torch.Tensor) -> Tensors:
    """(out, the gradients of the leaves)."""
    return out, *torch.autograd.grad(out, leaves, dy.to(out.dtype))


def attention(seqlen: int, tokens: int) -> Point:
    """Attention of about `tokens` tokens in sequences of one length."""
    batch = max(1, tokens // seqlen)
    qkv = torch.randn(batch * seqlen, 3, HEADS, HEAD_DIM).bfloat16().requires_grad_()
    dout = torch.randn(batch * seqlen, HEADS, HEAD_DIM).bfloat16()
    bounds = torch.arange(0, batch * seqlen + 1, seqlen, dtype=torch.int32)

    def ours():
        return with_gradients(varlen_attention(*qkv.unbind(1), bounds, seqlen), [qkv], dout)

    def sdpa(qkv=qkv):
        q, k, v = (t.unflatten(0, (batch, seqlen)).transpose(1, 2) for t in qkv.unbind(1))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
        return with_gradients(out, [qkv], dout)

    runs = {OURS: ours, "sdpa": sdpa}
    return Point(runs, runs, lambda: sdpa(qkv.detach().float().requires_grad_()))


def layer(lengths: list[int]) -> Point:
    """A BERT layer on a batch with these lengths, dropout 0.1; Hugging Face's gets it padded."""
    config = BertConfig(hidden_size=HIDDEN, attn_implementation="sdpa")
    theirs = BertLayer(config).bfloat16()
    ours = TransformerLayer(HIDDEN, HEADS, 4 * HIDDEN).bfloat16()
    ours.load_state_dict(theirs.state_dict())
    counts = torch.tensor(lengths)
    real = torch.arange(max(lengths)) < counts[:, None]
    padded, dy = (torch.randn(*real.shape, HIDDEN).bfloat16() * real[..., None] for _ in range(2))
    packed, packed_dy = padded[real], dy[real]
    bounds = F.pad(counts.cumsum(0), (1, 0)).int()
    packing = Packing.of_packed(bounds, max(lengths), len(packed))
    mask = None if real.all() else real[:, None, None, :]

    def leaves(model):
        return [parameter for _, parameter in sorted(model.named_parameters())]

    def run(training: bool) -> Tensors:
        out = ours.train(training)(packed, packing)
        return with_gradients(out, leaves(ours), packed_dy)

    def run_theirs(training: bool, model=theirs, x=padded) -> Tensors:
        return with_gradients(model.train(training)(x, mask), leaves(model), dy)

    def compared(out: torch.Tensor, *gradients: torch.Tensor) -> Tensors:
        # a key's bias has no gradient but for rounding: softmax ignores a common shift
        names = [name for name, _ in sorted(theirs.named_parameters())]
        kept = [g for n, g in zip(names, gradients, strict=True) if not n.endswith("key.bias")]
        return out if out.dim() == 2 else out[real], *kept

    peer = "Hugging Face sdpa"
    wide = copy.deepcopy(theirs).float()
    return Point(
        {OURS: lambda: run(True), peer: lambda: run_theirs(True)},
        {OURS: lambda: compared(*run(False)), peer: lambda: compared(*run_theirs(False))},
        lambda: compared(*run_theirs(False, wide, padded.float())),
    )


def loss(vocab_size: int, rows: int) -> Point:
    """Scores over a vocabulary and the mean cross-entropy of `rows` rows."""
    hidden = torch.randn(rows, HIDDEN).bfloat16()
    weight = (0.05 * torch.randn(vocab_size, HIDDEN)).bfloat16()
    bias, targets = torch.zeros(vocab_size).bfloat16(), torch.randint(vocab_size, (rows,))
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    one = torch.ones(())

    def ours():
        return with_gradients(linear_cross_entropy(*leaves, targets).losses.mean(), leaves, one)

    def usual(leaves=leaves):
        return with_gradients(F.cross_entropy(F.linear(*leaves), targets), leaves, one)

    def truth():
        return usual([t.detach().float().requires_grad_() for t in leaves])

    runs = {OURS: ours, "linear + cross_entropy": usual}
    return Point(runs, runs, truth)


def with_threads(count: int, make: Callable[[], Point]) -> Point:
    """The same points with another number of threads."""
    point = make()
    point.timed = {
        name: lambda run=run: (torch.set_num_threads(count), run())[1]
        for name, run in point.timed.items()
    }
    return point


def curves(options: argparse.Namespace) -> Iterator[tuple[str, str, list]]:
    """(what is measured, what grows, [(size, how to make its point)])."""
    few, tiny = options.quick, options.tiny

    def sizes(tiny_ones: list, few_ones: list, all_of_them: list) -> list:
        return tiny_ones if tiny else few_ones if few else all_of_them

    tokens, rows, seqlen = (256, 16, 16) if tiny else (4096, 600, 128)
    lengths = sizes([16, 32], [64, 512, 2048], [64, 128, 256, 512, 1024, 2048, 4096])
    yield "attention", "sequence length", [(n, lambda n=n: attention(n, tokens)) for n in lengths]
    totals = sizes([32, 64], [512, 2048], [512, 1024, 2048, 4096])
    points = [(n, lambda n=n: layer([seqlen] * (n // seqlen))) for n in totals]
    yield "layer", "batch tokens", points
    longest, others = (16, 3) if tiny else (256, 7)
    shares = sizes([0.0, 0.5], [0.0, 0.5], [0.0, 0.25, 0.5, 0.75])
    shorter = [max(1, round(longest * (1 - share))) for share in shares]
    points = [
        (share, lambda n=n: layer([longest] + [n] * others))
        for share, n in zip(shares, shorter, strict=True)
    ]
    yield "layer", "padding share", points
    vocabularies = sizes([100, 200], [8000, 28_996], [4000, 8000, 16_000, 28_996])
    yield "loss", "vocabulary", [(n, lambda n=n: loss(n, rows)) for n in vocabularies]
    batch = [seqlen] * (totals[-1] // 2 // seqlen)
    counts = range(1, options.threads + 1)
    points = [(n, lambda n=n: with_threads(n, lambda: layer(batch))) for n in counts]
    yield "layer", "threads", points


def measure(
    options: argparse.Namespace, what: str, grows: str, points: list, end: float
) -> dict[str, Any]:
    """Errors and medians of a curve's points, and, if all are right, exponents and ratios.

    Points that are not reached before `end` (of time.perf_counter) are listed in "not_measured".
    """
    found: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    sizes, late = [], []
    for number, (size, make) in enumerate(points):
        left = end - time.perf_counter()
        if left <= 0:
            late.append(size)
            continue
        torch.set_num_threads(options.threads)
        point = make()
        for name, share in point.errors().items():
            errors.setdefault(name, []).append(share)
        budget = left / (len(points) - number) / 2  # the other half checks
        least = 1 if options.tiny else 3
        seconds = interleaved(point.timed, Clock(), budget, least, options.rounds)
        sizes.append(size)
        for name, times in seconds.items():
            found.setdefault(name, []).append(1e3 * quartiles(times)[1])
            if name != OURS:
                ratios.setdefault(name, []).append(ratio(times, seconds[OURS])["median"])
    passed = all(share <= 1 for shares in errors.values() for share in shares)
    fits = passed and grows not in ("padding share", "threads")
    return {
        "what": what,
        "grows": grows,
        "sizes": sizes,
        "not_measured": late,
        "passed": passed,
        "error_share": errors,
        "median_ms": found,
        "speedups": ratios if passed else {},
        "exponents": {n: exponent(sizes, times) for n, times in found.items()} if fits else {},
    }


def show(curve: dict[str, Any]) -> str:
    """A curve for reading."""
    wrong = "" if curve["passed"] else "  WRONG"
    lines = [f"{curve['what']}, ms by {curve['grows']}{wrong}"]
    lines.append(" " * 26 + "".join(f"{size:>10}" for size in curve["sizes"]) + "   exponent")
    for name, times in curve["median_ms"].items():
        power = curve["exponents"].get(name)
        tail = "" if power is None else f"{power:>11.2f}"
        lines.append(f"  {name:<24}" + "".join(f"{t:>10.2f}" for t in times) + tail)
    for name, ratios in curve["speedups"].items():
        lines.append(f"  {'beside ' + name:<24}" + "".join(f"{r:>8.2f} x" for r in ratios))
    if curve["not_measured"]:
        late = ", ".join(map(str, curve["not_measured"]))
        lines.append(f"  not measured, the time was up: {late}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure all curves; 1 if one has a wrong point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=7, help="at most (7)")
    add("--budget", type=float, default=100, help="seconds for all curves (100)")
    add("--quick", action="store_true", help="two or three points a curve")
    add("--tiny", action="store_true", help="two tiny points a curve")
    add("--output", type=Path, default=RESULTS / "scaling.json")
    options = parser.parse_args(argv)
    if options.tiny:
        options.rounds = 1
    torch.manual_seed(0)
    results, todo = [], list(curves(options))
    end = time.perf_counter() + options.budget
    for number, (what, grows, points) in enumerate(todo):
        now = time.perf_counter()
        curve_end = now + (end - now) / (len(todo) - number)
        results.append(measure(options, what, grows, points, curve_end))
        print(show(results[-1]), flush=True)
    write_document(options.output, document("scaling", options.threads, results))
    return 0 if all(curve["passed"] for curve in results) else 1


if __name__ == "__main__":
    sys.exit(main())
