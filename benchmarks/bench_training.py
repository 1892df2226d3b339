#!/usr/bin/env python
"""A training step of SpanBERT beside Hugging Face's BERT, end to end.

For each case and allocator setting one process trains ours, and beside it, one after the other, a
process for each peer; they take one step in turn, so that the two of a pair are close in time. A
speed-up is the median over the pairs of the peer's time by ours. Before it is printed, both have to
show the right loss and gradients, at large random weights and without dropout.

Ours computes both losses, Hugging Face's models the masked-LM loss alone. All have torch's fused
AdamW, no gradient clipping, and one batch, already masked and on the device.
"""

import argparse
import itertools
import math
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

from results_format import RESULTS, document, write_document
from training_check import LOSS, Errors, allowed_errors, verdict, write_truth
from training_providers import MLM, OURS, PROVIDERS, Batch, Case, lengths_of
from training_worker import ALLOCATORS, fresh_process, worker

EXAMPLES = """examples:
  python benchmarks/bench_training.py
      4 layers of 768, 8 x 512 tokens, bf16, dropout 0.1, both allocator settings
  python benchmarks/bench_training.py --quick
      the same with two pairs each, and no peer that has to be compiled
  python benchmarks/bench_training.py --lengths full ragged --dtypes bf16 fp32
  python benchmarks/bench_training.py --layers 12 --shapes 8x512 32x128 --dropout 0.1 0
  python benchmarks/bench_training.py --providers hf-eager hf-sdpa --allocators heap-kept --profile
"""
QUICK_PEERS = ("hf-eager", "hf-sdpa", "hf-sdpa-masked-rows")


def parser() -> argparse.ArgumentParser:
    """The script's options."""
    parser = argparse.ArgumentParser(
        prog="bench_training.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    peers = [name for name in PROVIDERS if name != OURS]

    def many(name: str, default: Sequence[Any], text: str, **options: Any) -> None:
        parser.add_argument(name, nargs="+", default=default, help=text, **options)

    many("--layers", [(4, 768)], "layers of 768, or layers x width: 12 24x1024", type=_model)
    many("--shapes", [(8, 512)], "sequences x their longest length: 8x512 32x128", type=_shape)
    many("--lengths", ["full"], "full, or ragged as texts are", choices=["full", "ragged"])
    many("--dtypes", ["bf16"], "bf16 is autocast", choices=["bf16", "fp32"])
    many("--dropout", [0.1], "of hidden states and attention", type=float)
    many("--allocators", list(ALLOCATORS), "glibc's malloc", choices=list(ALLOCATORS))
    many("--providers", None, "peers to measure ours beside (default: all)", choices=peers)
    parser.add_argument("--rounds", type=_count, default=5, help="pairs of each peer (default 5)")
    parser.add_argument(
        "--budget", type=float, default=15, help="seconds after which 2 pairs are enough (15)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--time-limit", type=float, help="seconds for everything; peers past it are left out"
    )
    parser.add_argument("--threads", type=_count, default=2, help="of each process (default 2)")
    parser.add_argument("--quick", action="store_true", help="2 pairs, peers that start at once")
    parser.add_argument("--tiny", action="store_true", help="2 layers of 128, 3 x 48 tokens")
    parser.add_argument("--profile", action="store_true", help="print where our step's time goes")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "training.json", help="the JSON file"
    )
    return parser


def _shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or int(match[1]) < 1 or int(match[2]) < 3:
        raise argparse.ArgumentTypeError(f"must be like 8x512, got {text!r}")
    return int(match[1]), int(match[2])


def _model(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    width = int(match[2] or 768) if match else 0
    if match is None or int(match[1]) < 1 or width < 64 or width % 64:
        raise argparse.ArgumentTypeError(f"must be like 12 or 24x1024, got {text!r}")
    return int(match[1]), width


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """The product of the options."""
    documents: list[str] = []
    if "ragged" in arguments.lengths:
        from spanbert_fast.data.embedded import embedded_documents  # takes seconds

        documents = embedded_documents()
    sizes = {"vocab_size": 1000} if arguments.tiny else {}
    models = [(2, 128)] if arguments.tiny else arguments.layers
    shapes = [(3, 48)] if arguments.tiny else arguments.shapes
    cases = []
    sizes["device"] = arguments.device
    for (count, width), (batch, seqlen), kind, dtype, dropout in itertools.product(
        models, shapes, arguments.lengths, arguments.dtypes, arguments.dropout
    ):
        full = (seqlen,) * batch
        lengths = full if kind == "full" else lengths_of(documents, batch, seqlen)
        cases.append(Case(count, seqlen, lengths, dtype, dropout, width, **sizes))
    return cases


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
    """A provider's peak of memory so far, and then whether its results are right."""
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


def measure(
    case: Case,
    allocator: str,
    peers: Sequence[str],
    truth_file: Path,
    allowed: Errors,
    options: argparse.Namespace,
    deadline: float = math.inf,
) -> dict[str, Any]:
    """Time, memory and correctness of ours and of each peer, and the speed-up beside each. A peer
    that would not be done by `deadline`, by what the last one took, is named and left out."""
    tokens = Batch.of(case).tokens()
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
        providers = {OURS: summary(steps, tokens) | checked(ours, truth_file, allowed), **providers}
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
        f"{'error':>8}   ours is faster (pairs)",
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
            f"{found['error_share']:>8.2f}   {ratio}"
        )
    lines += [f"{name:<22}not measured: {why}" for name, why in result["not_measured"].items()]
    return "\n".join([*lines, *filter(None, [result["profile"]])])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; 1 where any provider failed."""
    options = parser().parse_args(argv)
    if options.quick:
        options.rounds, options.budget = 2, 0.0
    peers = options.providers
    if peers is None:
        peers = [p for p in PROVIDERS if p != OURS and (not options.quick or p in QUICK_PEERS)]
    results: list[dict[str, Any]] = []
    end, todo = time.perf_counter() + (options.time_limit or math.inf), cases_of(options)
    left = len(todo) * len(options.allocators)
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
            for allocator in options.allocators:
                now = time.perf_counter()
                deadline, left = now + (end - now) / left, left - 1
                result = measure(case, allocator, peers, truth_file, allowed, options, deadline)
                results.append(result)
                print(table(result), end="\n\n", flush=True)
    write_document(options.output, document("training", options.threads, results, options.device))
    print(f"written to {options.output}; error is the largest one as a share of what is allowed")
    passed = all(p["passed"] for r in results for p in r["providers"].values())
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
