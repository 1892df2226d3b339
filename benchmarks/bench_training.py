#!/usr/bin/env python
"""A training step of SpanBERT beside Hugging Face's BERT, end to end.

For each case and allocator setting one process trains ours, and one process after another trains a
peer. The two take steps in turn, so that the steps of a pair are close in time. A speed-up is the
median over the pairs of the peer's time divided by ours. Before it is printed, both must give the
right loss and gradients, at large random weights and without dropout.

Ours computes both losses, Hugging Face's models the masked-LM loss alone. All have torch's fused
AdamW (ours on a GPU its own) and one batch, already masked and on the device.

On a GPU, whose events take the times, gradients are clipped and steps follow each other as in
training. Ours is one CUDA graph of a batch filled up to fixed shapes (only its own tokens count);
`ours-eager` is the same step launched kernel by kernel. The matrix product that is measured first
bounds every step: the table has each step's share of that bound.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

from ceilings import ceilings
from results_format import document, write_document
from training_check import LOSS, Errors, allowed_errors, verdict, write_truth
from training_options import cases_of, parser, with_defaults
from training_providers import BOTH, MLM, OURS, Batch, Case, installed
from training_work import product_flops
from training_worker import fresh_process, worker

WITH_SPANS = (OURS, "ours-eager", "reference")  # they compute both losses


def summary(seconds: Sequence[float], tokens: int) -> dict[str, Any]:
    """The figures of one provider's steps."""
    return {
        "median_ms": 1e3 * statistics.median(seconds),
        "low_ms": 1e3 * min(seconds),
        "high_ms": 1e3 * max(seconds),
        "steps": len(seconds),
        "tokens_per_second": tokens / statistics.median(seconds),
    }


def checked(ask, truth_file: Path, allowed: Errors) -> dict[str, Any]:
    """A provider's peak memory, and then whether its results are right."""
    peak = ask("peak_memory")
    errors = ask("check", truth_file)
    share, where = verdict(errors, allowed)
    all_errors = [item for by_name in errors.values() for item in by_name.items()]
    return {
        "peak_rss_mb": peak,
        "loss_error": errors[MLM][LOSS][1],
        "gradient_error": max(e[1] for k, e in all_errors if k != LOSS),
        "error_share": share,  # the largest error by what is allowed for it
        "error_at": where,
        "passed": share <= 1,
    }


class Bounds(NamedTuple):
    """The bounds of all providers: the truth, the allowed errors, and the matrix product's rate in
    GFLOP/s."""

    truth_file: Path
    allowed: Errors
    product: float


def measure(
    case: Case,
    allocator: str,
    bounds: Bounds,
    options: argparse.Namespace,
    deadline: float = math.inf,
) -> dict[str, Any]:
    """Time, memory and correctness of ours and of each peer, and the speed-up over each. A peer
    that could not end by `deadline`, judged by the one before, is named and left out."""
    batch, (truth_file, allowed, product) = Batch.of(case), bounds
    tokens, peers = batch.tokens(), [peer for peer in options.providers if installed(peer)]
    providers: dict[str, dict[str, Any]] = {}
    pairs: dict[str, list[tuple[float, float]]] = {}
    late: dict[str, str] = {}
    last = 0.0
    with worker(OURS, case, allocator, options.threads) as ours:
        ours("step")
        for peer in peers:
            began = time.perf_counter()
            if pairs and began + last > deadline:
                late[peer] = "the time was up"
                continue
            try:
                with worker(peer, case, allocator, options.threads) as theirs:
                    theirs("step")  # compiles, makes the optimiser's state, lets the heap grow
                    pairs[peer], start = [], time.perf_counter()
                    while len(pairs[peer]) < options.rounds and (
                        len(pairs[peer]) < 2 or time.perf_counter() - start < options.budget
                    ):
                        pairs[peer].append((ours("step"), theirs("step")))
                    providers[peer] = summary([b for _, b in pairs[peer]], tokens)
                    providers[peer] |= checked(theirs, truth_file, allowed)
            except Exception as error:  # whatever a peer raises, the others are measured
                providers[peer] = {"passed": False, "raised": f"{type(error).__name__}: {error}"}
            last = time.perf_counter() - began
        profile = ours("profile") if options.profile else None
        steps = [a for taken in pairs.values() for a, _ in taken]
        steps = steps or [ours("step") for _ in range(2)]  # no peer has taken one
        providers = {OURS: summary(steps, tokens) | checked(ours, truth_file, allowed), **providers}
    for name, found in providers.items():
        if "median_ms" in found:
            flops = product_flops(case, batch, BOTH if name in WITH_SPANS else MLM)
            found["share_of_product"] = flops / found["median_ms"] / 1e6 / product
    speedups = {}
    for peer in pairs:
        if providers[OURS]["passed"] and providers[peer]["passed"]:
            ratios = [b / a for a, b in pairs[peer]]
            speedups[peer] = {
                "median": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
            }
    return {
        "layers": case.layers,
        "hidden_size": case.hidden_size,
        "vocab_size": case.vocab_size,
        "seqlen": case.seqlen,
        "lengths": list(case.lengths),
        "dtype": case.dtype,
        "dropout": case.dropout,
        "allocator": allocator,
        "tokens": tokens,
        "providers": providers,
        "speedups": speedups,
        "not_measured": late,
        "not_installed": [peer for peer in options.providers if peer not in peers],
        "product_gflops": product,
        "device": case.device,
        "profile": profile,
    }


def table(result: dict[str, Any]) -> str:
    """One result for reading."""
    full = len(result["lengths"]) * result["seqlen"]
    lines = [
        f"{result['layers']} x {result['hidden_size']}, {len(result['lengths'])} x "
        f"{result['seqlen']} tokens ({result['tokens'] / full:.0%} real), {result['dtype']}, "
        f"dropout {result['dropout']}, malloc {result['allocator']}",
        f"{'provider':<22}{'step ms':>9}{'low':>9}{'high':>9}{'tokens/s':>10}{'peak MB':>9}"
        f"{'product':>9}{'error':>7}   ours is faster (pairs)",
    ]
    for name, found in result["providers"].items():
        if "raised" in found:
            lines.append(f"{name:<22}{found['raised'].splitlines()[0]}")
            continue
        speedup = result["speedups"].get(name)
        ratio = "" if found["passed"] else f"WRONG: {found['error_at']}"
        if speedup:
            ratio = "{median:.2f} x ({low:.2f} to {high:.2f})".format(**speedup)
        lines.append(
            f"{name:<22}{found['median_ms']:>9.1f}{found['low_ms']:>9.1f}{found['high_ms']:>9.1f}"
            f"{found['tokens_per_second']:>10,.0f}{found['peak_rss_mb']:>9,.0f}"
            f"{found['share_of_product']:>9.1%}{found['error_share']:>7.2f}   {ratio}"
        )
    lines += [f"{name:<22}not measured: {why}" for name, why in result["not_measured"].items()]
    lines += [f"{name:<22}not installed" for name in result["not_installed"]]
    return "\n".join([*lines, *filter(None, [result["profile"]])])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; 1 if any provider failed."""
    options = with_defaults(parser(__doc__).parse_args(argv))
    results: list[dict[str, Any]] = []
    content = document("training", options.threads, results, options.device)
    end, todo = time.perf_counter() + (options.time_limit or math.inf), cases_of(options)
    left = len(todo) * len(options.allocators)
    with fresh_process("default", options.threads) as run:
        found = run(partial(ceilings, options.threads, tiny=options.tiny, device=options.device))
    rates = {record["what"]: record["value"] for record in found}
    with tempfile.TemporaryDirectory() as folder:
        truth_file, of_truth = Path(folder) / "truth.pt", None
        for case in todo:
            # a process of its own for fp64: memory that this one never gets
            with fresh_process("default", options.threads) as run:
                # the truth is that of every dtype
                same_model = (case.layers, case.hidden_size, case.lengths)
                if same_model != of_truth:
                    run(write_truth, case, truth_file)
                    of_truth = same_model
                allowed = run(allowed_errors, case, truth_file)
            bounds = Bounds(truth_file, allowed, rates[f"matrix product, {case.dtype}"])
            for allocator in options.allocators:
                now = time.perf_counter()
                deadline, left = now + (end - now) / left, left - 1
                result = measure(case, allocator, bounds, options, deadline)
                results.append(result)
                print(table(result), end="\n\n", flush=True)
                write_document(options.output, content)
    print(f"written to {options.output}; error is the largest one as a share of what is allowed")
    passed = all(p["passed"] for r in results for p in r["providers"].values())
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
