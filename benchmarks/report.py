#!/usr/bin/env python
"""Tables and plots out of the result files, and out of nothing else: `make report`.

Reads results/<machine>/*.json, writes results/REPORT.md and PNG plots beside it. What has no file
says "not measured", and so does what a file says was not.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import plots
from results_format import NOT_MEASURED, RESULTS, beside, read_document, why_not, without

Plot, Results = Callable[[str], Path], list[dict[str, Any]]


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table; numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def of_commit(result: dict[str, Any]) -> str:
    """Where a file keeps a result of an older commit than its others: that commit."""
    return f", commit `{result['commit'][:12]}`" if "commit" in result else ""


# One function per suite: the results of a document and where plots go -> Markdown


def of_ceilings(results: Results, plot: Plot) -> str:
    """What bounds the rest."""
    rows = [[r["what"], f"{r['value']:.1f} {r['unit']}"] for r in results]
    return table(["ceiling", "measured"], rows)


def of_gpu_check(results: Results, plot: Plot) -> str:
    """How each step of benchmarks/gpu_check.py has ended."""
    names = ["name", "outcome", "seconds"]
    return table(names, [[r[name] for name in names] for r in results])


def of_check(results: Results, plot: Plot) -> str:
    """Whether every op is right on the device."""
    rows = []
    for r in results:
        passed = r.get("passed") or r.get("providers", {}).get("ours", {}).get("passed")
        rows.append([f"{r['op']} {r['case']}", "passed" if passed else why_not(r)])
    return table(["op", "result"], rows)


def of_ops(results: Results, plot: Plot) -> str:
    """Each op beside its peers, and beside what bounds it."""
    rows, ratios, shares, memory, reasons = [], [], [], [], {}
    most = max((r.get("threads", 1) for r in results), default=1)
    for r in sorted(results, key=lambda r: r["op"]):
        name = f"{r['op']} {r['case']}"
        found = r.get("providers", {})
        if "median_ms" not in found.get("ours", {}):
            rows.append([name, r.get("threads", ""), why_not(r), "", "", ""])
            continue
        reasons |= dict(without(r))
        raised = {n: p["raised"] for n, p in found.items() if "raised" in p}
        wrong = [n for n, p in found.items() if not p["passed"] and n not in raised]
        peers = [f"{n} {beside(r, n)}" for n in found if n in r["speedups"]]
        peers += [f"{n} wrong" for n in wrong] + [f"{n} refuses" for n in raised]
        ours, achieved = found["ours"], r.get("achieved")
        spread = f"{ours['low_ms']:.2f} to {ours['high_ms']:.2f}"
        text = achieved and "{value:,.1f} {unit}, {share:.0%} of {ceiling}".format(**achieved)
        figures = [f"{ours['median_ms']:.3f}", spread, text or ""]
        rows.append([name, r["threads"], *figures, "; ".join(peers)])
        if r["threads"] != most or r["dtype"] == "fp32" or r["op"] == "sample_spans":
            continue
        if achieved:
            kind = "of the copy" if achieved["ceiling"] == "copy" else "of the matrix product"
            label = "{value:,.0f} {unit}".format(**achieved)
            shares.append((name, 100 * achieved["share"], label, kind))
        if r["case"].endswith("backward"):
            short = name.removesuffix("-forward+backward")
            ratios += [(f"{short} beside {n}", s["median"]) for n, s in r["speedups"].items()]
            memory += [
                (f"{short}: {n}", p["peak_mb"], f"{p['peak_mb']:,.0f} MB", "")
                for n, p in found.items()
                if "peak_mb" in p
            ]
    header = ["op", "threads", "ours, ms", "half of the rounds", "achieved"]
    parts = [table([*header, "ours is faster than, times"], rows)]
    parts += [f"{name}: {why}" for name, why in reasons.items()]
    if ratios:
        parts.append(plots.speedups(plot("ops"), "Ops, forward and backward, bf16", ratios))
    if shares:
        title = "Share of the measured ceiling, bf16"
        parts.append(plots.bars(plot("roofline"), title, shares, "% of the ceiling", line=100.0))
    if memory:
        title = "Memory of a call beyond its inputs, bf16"
        parts.append(plots.bars(plot("ops-memory"), title, memory, "MB at most"))
    return "\n\n".join(parts)


def of_scaling(results: Results, plot: Plot) -> str:
    """Curves."""
    parts = []
    for curve in results:
        header = [f"{curve['what']}, ms by {curve['grows']}", *map(str, curve["sizes"]), "exponent"]
        powers = curve["exponents"]
        rows = [
            [name, *(f"{t:.1f}" for t in times), f"{powers[name]:.2f}" if powers.get(name) else ""]
            for name, times in curve["median_ms"].items()
        ]
        rows += [
            [f"ours is faster than {name}, times", *(f"{r:.2f}" for r in ratios), ""]
            for name, ratios in curve.get("speedups", {}).items()
        ]
        parts.append(table(header, rows))
        if curve.get("not_measured"):
            parts.append(f"{NOT_MEASURED}: {', '.join(map(str, curve['not_measured']))}")
        name = f"scaling-{curve['what']}-{curve['grows'].replace(' ', '-')}"
        drawn = [(n, curve["sizes"], times) for n, times in curve["median_ms"].items()]
        axes = (curve["grows"], "ms, forward and backward")
        logarithmic = curve["grows"] not in ("padding share", "threads")
        if drawn:
            parts.append(plots.lines(plot(name), curve["what"], drawn, axes, logarithmic))
    return "\n\n".join(parts)


def of_inference(results: Results, plot: Plot) -> str:
    """The encoder without gradients."""
    rows, items = [], []
    for r in results:
        lengths = r["lengths"]
        kind = "full" if len(set(lengths)) == 1 else "ragged"
        name = f"{r['layers']} x {r['hidden_size']}, {len(lengths)} x {max(lengths)} {kind}"
        for provider, found in r["providers"].items():
            rows.append([name, provider, f"{found['median_ms']:.1f}", beside(r, provider)])
        rows += [[name, provider, why, ""] for provider, why in without(r)]
        items += [(f"{name}, {n}", ratio["median"]) for n, ratio in r["speedups"].items()]
    parts = [table(["case", "provider", "ms", "ours is faster, times"], rows)]
    if items:
        parts.append(plots.speedups(plot("inference"), "Inference in bf16", items))
    return "\n\n".join(parts)


def of_training(results: Results, plot: Plot, suite: str = "training") -> str:
    """The training step, its memory too."""
    rows, items, memory = [], [], []
    for r in results:
        share = r["tokens"] / (len(r["lengths"]) * r["seqlen"])
        model = f"{r['layers']} x {r['hidden_size']}, {len(r['lengths'])} x {r['seqlen']}"
        name = f"{model}, {share:.0%} real, {r['dtype']}, dropout {r['dropout']}"
        name += f", malloc {r['allocator']}{of_commit(r)}"
        ragged = "" if len(set(r["lengths"])) == 1 else " ragged"
        label = f"{model}{ragged} {r['dtype']}, malloc {r['allocator']}"
        for provider, found in r["providers"].items():
            if "raised" in found:
                rows.append([name, provider, "failed", "", "", "", ""])
                continue
            figures = [f"{found['median_ms']:,.0f}", f"{found['tokens_per_second']:,.0f}"]
            bound = found.get("share_of_product")  # older files have none
            figures += [f"{bound:.0%}" if bound else "", f"{found['peak_rss_mb']:,.0f}"]
            rows.append([name, provider, *figures, beside(r, provider)])
            peak = found["peak_rss_mb"] / 1024
            memory.append((f"{label}: {provider}", peak, f"{peak:.1f} GB", ""))
        rows += [[name, provider, why, "", "", "", ""] for provider, why in without(r)]
        items += [(f"{label}: {n}", ratio["median"]) for n, ratio in r["speedups"].items()]
    header = ["case", "provider", "step, ms", "tokens/s", "of the matrix product", "peak, MB"]
    parts = [table([*header, "ours is faster, times"], rows)]
    if items:
        title = "A training step beside Hugging Face's"
        parts.append(plots.speedups(plot(suite), title, items))
    if memory:
        title = "Memory of a training process, at most"
        parts.append(plots.bars(plot(suite.replace("training", "memory")), title, memory, "GB"))
    return "\n\n".join(parts)


def of_loss_curve(results: Results, plot: Plot) -> str:
    """Loss against the time spent training."""
    rows, curves = [], []
    for r in results:
        for name, found in r["providers"].items():
            steps, seconds, losses = (found[key][-1] for key in ("steps", "seconds", "loss"))
            figures = [steps, f"{seconds:.1f}", f"{found['loss'][0]:.3f}", f"{losses:.3f}"]
            rows.append([name, *figures, beside(r, name)])
            curves.append((name, found["seconds"], found["loss"]))
    header = ["provider", "steps", "seconds of training", "first loss", "last loss"]
    title = "Held-out masked-LM loss from one start"
    axes = ("seconds of training", "loss, nats")
    return "\n\n".join(
        [
            table([*header, "a step of ours is faster, times"], rows),
            plots.lines(plot("loss"), title, curves, axes),
        ]
    )


def of_finetuning(results: Results, plot: Plot) -> str:
    """Fine-tuning on real tasks."""
    rows = []
    for r in results:
        runs = r.get("runs")
        figures = [NOT_MEASURED] * 4
        if runs:
            figures = [
                text
                for engine in ("spanbert_fast", "transformers")
                for text in (
                    f"{runs[engine]['dev'][r['metric']]:.2f}",
                    f"{runs[engine]['seconds']:,.0f}",
                )
            ]
        name = f"{r['case']}: {r['metric']}{of_commit(r)}"
        rows.append([name, *figures, f"{r['speed_up']:.2f} ({r['peer']})"])
    header = ["task", "ours", "ours, s", "transformers", "transformers, s"]
    items = [(f"{r['case']} beside {r['peer']}", r["speed_up"]) for r in results]
    title = "A fine-tuning step beside transformers'"
    picture = plots.speedups(plot("finetuning"), title, items)
    return "\n\n".join([table([*header, "a step is faster, times"], rows), picture])


COMMON = {
    "ceilings": ("Ceilings", of_ceilings),
    "ops": ("Ops", of_ops),
    "training": ("Training step", of_training),
    "inference": ("Inference", of_inference),
    "loss_curve": ("Loss against time", of_loss_curve),
}
SUITES = {
    "cpu": {
        **COMMON,
        "finetuning": ("Fine-tuning", of_finetuning),
        "scaling": ("Scaling", of_scaling),
    },
    "cuda": {
        "gpu_check": ("Every step of the check", of_gpu_check),
        "check": ("Every op on the device", of_check),
        **COMMON,
        "training_tuned": ("Training step, tuned", partial(of_training, suite="training_tuned")),
        "host_cost": ("Host time of an eager step", of_ceilings),
    },
}


def of_machine(folder: Path, device: str, documents: dict[str, dict]) -> list[str]:
    """The sections of one machine."""

    def plot(name: str) -> Path:
        return folder.parent / f"{folder.name}-{name}.png"

    parts = [f"## {folder.name}"]
    for name, (title, describe) in SUITES[device].items():
        parts.append(f"### {title}")
        content = documents.get(name)
        if content is None:
            parts.append(NOT_MEASURED)
            continue
        found = content["environment"]
        cpu = f"{found['cpu']['model']}, {found['cpu']['isa_level']}, threads: {content['threads']}"
        what = found["gpus"][0] if device == "cuda" else cpu
        commit = (content["commit"] or "unknown")[:12]
        parts.append(f"{what}; torch {found['libraries']['torch']}; commit `{commit}`")
        parts.append(describe(content["results"], plot))
    return parts


def report(results: Path) -> Path:
    """Write REPORT.md and its plots into `results`; returns its path."""
    parts = ["# What was measured", "Made by `make report` from the result files beside it."]
    sections: dict[str, list[str]] = {"cpu": [], "cuda": []}
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        documents = {path.stem: read_document(path) for path in sorted(folder.glob("*.json"))}
        device = "cpu"
        if any(content.get("device") == "cuda" for content in documents.values()):
            device = "cuda"
        sections[device] += of_machine(folder, device, documents)
    parts += sections["cpu"] or [NOT_MEASURED]
    parts += ["## GPUs", *(sections["cuda"] or [NOT_MEASURED])]
    path = results / "REPORT.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    print(report(parser.parse_args().results))


if __name__ == "__main__":
    main()
