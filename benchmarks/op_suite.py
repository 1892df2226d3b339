#!/usr/bin/env python
"""Every op beside every provider that this machine has, checked and then timed.

    python benchmarks/op_suite.py                        # on the CPU
    python benchmarks/op_suite.py --device cuda --check-only
    python benchmarks/op_suite.py --tiny --ops padding bias_gelu

The most important cases come first: bf16, forward and backward, all threads. The cases that are
left share the rest of the budget; when it is spent, the results name them as not measured. The exit
code is 1 if ours is wrong or raises.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import op_case
import torch
from ceilings import ceilings
from op_case import OURS, ExactCase, OpCase
from results_format import RESULTS, document, write_document
from timing import LEAST, MOST, Clock, clock_of, interleaved, ratio, summary

OPS = (
    "varlen_attention",
    "linear_cross_entropy",
    "dropout_add_layer_norm",
    "bias_gelu",
    "embedding_layer_norm",
    "span_boundary_gather",
    "span_representation",
    "antecedent_loss",
    "antecedent_top_k",
    "span_loss",
    "padding",
    "sample_spans",
    "adamw",
)
FORWARD_ALONE = ("adamw", "antecedent_top_k", "sample_spans")  # without gradients
SEED = 20191010
_SLOW_REASON = "it takes long to compile or run: in a few cases of a whole run only"


class Item(NamedTuple):
    """One record to make."""

    op: str
    variant: str
    backward: bool
    threads: int

    def name(self) -> dict[str, Any]:
        """What distinguishes its record from others."""
        direction = "forward+backward" if self.backward else "forward"
        case = f"{self.variant}-{direction}"
        return {"op": self.op, "case": case, "threads": self.threads}

    def case(self, device: str, size: str) -> OpCase | ExactCase:
        """Its tensors and providers, the same at every call."""
        torch.manual_seed(SEED)
        torch.compiler.reset()  # a compiled function is compiled for few shapes at a time
        return importlib.import_module(f"bench_{self.op}").case(self.variant, device, size)

    def has_slow_ones(self, device: str) -> bool:
        """Whether slow providers are measured, too."""
        module = importlib.import_module(f"bench_{self.op}")
        chosen = module.VARIANTS[:1]
        if device == "cuda":
            chosen = getattr(module, "CUDA_SLOW_IN", chosen)
        return self.backward and self.variant in chosen


def items(device: str, threads: int, ops=OPS, quick: bool = False) -> list[Item]:
    """What is to be measured, the most important first."""
    found, places = [], {}
    for op in ops:
        module = importlib.import_module(f"bench_{op}")
        variants = getattr(module, "CUDA_VARIANTS", None) if device == "cuda" else None
        directions = (False,) if op in FORWARD_ALONE else (True, False)
        for place, variant in enumerate(variants or module.VARIANTS):
            places[op, variant] = place
            found += [Item(op, variant, backward, threads) for backward in directions]
            if device == "cpu" and threads > 1 and "fp32" not in variant:
                found.append(Item(op, variant, directions[0], 1))

    def aside(item: Item) -> tuple[bool, bool, bool]:
        forward_alone = not item.backward and item.op not in FORWARD_ALONE
        return item.threads != threads, "fp32" in item.variant, forward_alone

    # of equals, every op's first variant first
    found.sort(key=lambda item: (*aside(item), places[item.op, item.variant]))
    return [item for item in found if not any(aside(item))] if quick else found


def measure(
    item: Item,
    case: OpCase | ExactCase,
    clock: Clock,
    budget: float,
    skipped: dict[str, str],
    check_only: bool = False,
) -> dict[str, Any]:
    """One record: each provider's error and figures, and its ratio to ours if both are right.

    Args:
        item, case: what is measured.
        clock: the device's.
        budget: seconds for all rounds.
        skipped: providers that are left out, and why.
        check_only: no timing and no peers.
    """
    needed = (OURS, getattr(case, "baseline", None)) if check_only else case.providers
    case.providers = {k: v for k, v in case.providers.items() if k in needed and k not in skipped}
    record = item.name() | {"shape": case.shape, "dtype": case.dtype}
    record |= {"not_installed": list(case.not_installed), "not_measured": skipped}
    providers: dict[str, dict[str, Any]] = {}
    for name, share in case.errors(item.backward).items():
        if isinstance(share, Exception):
            text = str(share).splitlines() or [""]
            providers[name] = {"passed": False, "raised": f"{type(share).__name__}: {text[0]}"}
        else:
            providers[name] = {"passed": share <= 1, "error_share": share}
    record |= {"providers": providers, "speedups": {}}
    if check_only or not providers[OURS]["passed"]:
        return record
    right = [name for name, found in providers.items() if found["passed"]]
    calls = {name: case.call(name, item.backward) for name in right}
    least, most = (2, 2) if op_case.TINY else (LEAST, MOST)
    seconds = interleaved(calls, clock, budget, least, most)
    for name, times in seconds.items():
        providers[name] |= summary(times)
        if (peak := clock.peak_mb(calls[name])) is not None:
            providers[name]["peak_mb"] = peak
    ratios = {name: ratio(times, seconds[OURS]) for name, times in seconds.items() if name != OURS}
    return record | {"speedups": ratios}


def one(
    item: Item,
    options: argparse.Namespace,
    clock: Clock,
    budget: float,
    bounds: dict[int, dict[str, float]],
) -> dict[str, Any]:
    """The record of an item; `bounds` has the ceilings by number of threads."""
    case = item.case(options.device, "tiny" if options.tiny else options.device)
    slow_ones = item.has_slow_ones(options.device) and (options.tiny or not options.quick)
    skipped = {
        name: _SLOW_REASON
        for name, provider in case.providers.items()
        if getattr(provider, "slow", False) and not slow_ones
    }
    record = measure(item, case, clock, budget, skipped, options.check_only)
    if "median_ms" in record["providers"][OURS]:
        record["achieved"] = against_ceiling(record, case, bounds[item.threads])
    return record


def against_ceiling(
    record: dict[str, Any], case: OpCase | ExactCase, bounds: dict[str, float]
) -> dict[str, Any]:
    """The share of its bound that ours achieves: of the matrix product's rate or the copy's,
    whichever would take longer alone."""
    seconds = record["providers"][OURS]["median_ms"] / 1e3
    direction = int(record["case"].endswith("backward"))
    product = f"matrix product, {'fp32' if case.dtype == 'fp32' else 'bf16'}"
    works = {product: case.flops[direction], "copy": case.bytes_moved[direction]}
    kind = max(works, key=lambda kind: works[kind] / bounds[kind])
    rate = works[kind] / seconds / 1e9
    unit = "GB/s" if kind == "copy" else "GFLOP/s"
    return {"value": rate, "unit": unit, "ceiling": kind, "share": rate / bounds[kind]}


def show(record: dict[str, Any]) -> str:
    """A record for reading."""
    threads = f", {record['threads']} threads" if record["threads"] > 1 else ""
    lines = [f"{record['op']} {record['case']}{threads}"]
    for name, found in record.get("providers", {}).items():
        if "raised" in found:
            lines.append(f"  {name:<26}{found['raised'][:70]}")
            continue
        figures = f"{found['median_ms']:>10.3f} ms" if "median_ms" in found else ""
        speedup = record["speedups"].get(name)
        text = speedup and "{median:.2f} x ({low:.2f} to {high:.2f})".format(**speedup)
        verdict = f"error {found['error_share']:.2f}" if found["passed"] else "WRONG"
        lines.append(f"  {name:<26}{figures}  {verdict:<11} {text or ''}".rstrip())
    if achieved := record.get("achieved"):
        lines.append("  ours: {value:.1f} {unit}, {share:.0%} of {ceiling}".format(**achieved))
    lines += [f"  {name:<26}not installed" for name in record.get("not_installed", ())]
    if isinstance(record.get("not_measured"), str):
        lines.append(f"  not measured: {record['not_measured']}")
    if "raised" in record:
        lines.append(f"  raised {record['raised']}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The script's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=2, help="at most, on the CPU (2)")
    add("--ops", nargs="+", choices=OPS, default=OPS)
    add("--budget", type=float, default=240, help="seconds for all of it (240)")
    add("--quick", action="store_true", help="bf16, forward and backward, all threads")
    add("--tiny", action="store_true", help="tiny shapes, to see that it runs")
    add("--check-only", action="store_true", help="no timing")
    add("--output", type=Path, default=RESULTS / "ops.json", help="the JSON file")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure; 1 if ours is wrong."""
    options = parser().parse_args(argv)
    op_case.TINY = op_case.TINY or options.tiny
    clock = clock_of(options.device)
    torch.set_num_threads(options.threads)
    todo = items(options.device, options.threads, options.ops, options.quick)
    bounds: dict[int, dict[str, float]] = {}
    results: list[dict[str, Any]] = []
    content = document("ops", options.threads, results, options.device)
    start, lost = time.perf_counter(), False
    for number, item in enumerate(todo):
        left = options.budget - (time.perf_counter() - start)
        if lost or left <= 0:
            reason = "an earlier case lost the GPU" if lost else "the time was up"
            record = item.name() | {"not_measured": reason}
        else:
            torch.set_num_threads(item.threads)
            if not options.check_only and item.threads not in bounds:
                found = ceilings(item.threads, tiny=options.tiny, device=options.device)
                bounds[item.threads] = {r["what"]: r["value"] for r in found}
            try:
                record = one(item, options, clock, left / (len(todo) - number), bounds)
            except Exception as error:  # the other ops are measured
                record = item.name() | {"raised": f"{type(error).__name__}: {error}"}
                lost = isinstance(error, torch.AcceleratorError)  # all later calls would raise it
        results.append(record)
        print(show(record), flush=True)
        write_document(options.output, content)  # what is done stays, whatever ends the run
    wrong = [
        f"{r['op']} {r['case']}: {r.get('raised', 'ours is wrong')}"
        for r in results
        if "raised" in r or ("providers" in r and not r["providers"][OURS]["passed"])
    ]
    for text in wrong:
        print(f"op_suite.py: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
