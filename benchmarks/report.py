#!/usr/bin/env python
"""Tables and plots out of the result files, and out of nothing else: `make report`.

Reads benchmarks/results/<machine>/*.json, writes benchmarks/results/REPORT.md and PNG plots beside
them. What has no file says "not measured". Plots read without colour: bars have their number on
them, lines their marker and dash.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from results_format import RESULTS, read_document

_MARKERS, _DASHES = "osD^v", ("-", "--", ":", "-.")


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table; numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def bars(path: Path, title: str, items: list[tuple[str, float]]) -> str:
    """Speed-ups as bars with a line at 1; returns the Markdown of the picture."""
    figure, axis = pyplot.subplots(figsize=(8, 0.5 + 0.38 * len(items)), layout="constrained")
    names = [name for name, _ in items][::-1]
    values = [value for _, value in items][::-1]
    drawn = axis.barh(names, values, color="0.75", edgecolor="black", hatch="//")
    axis.bar_label(drawn, fmt=" %.2f x")
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xlabel("times as fast")
    axis.margins(x=0.15)
    axis.set_title(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return f"![{title}]({path.name})"


def lines(path: Path, curve: dict) -> str:
    """Time against what grows, on logarithmic axes where it is not a share."""
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for i, (name, times) in enumerate(curve["median_ms"].items()):
        power = curve["exponents"].get(name)
        label = name if power is None else f"{name}, exponent {power:.2f}"
        style = {"marker": _MARKERS[i], "linestyle": _DASHES[i], "color": "black"}
        axis.plot(curve["sizes"], times, label=label, markerfacecolor="white", **style)
    if curve["grows"] not in ("padding share", "threads"):
        axis.set(xscale="log", yscale="log")
    axis.set(xlabel=curve["grows"], ylabel="ms, forward and backward", title=curve["what"])
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return f"![{curve['what']} by {curve['grows']}]({path.name})"


# One function per suite: the results of a document and where plots go -> Markdown


def of_ceilings(results: list[dict], plot: Callable[[str], Path]) -> str:
    """What bounds the rest."""
    rows = [[r["what"], f"{r['value']:.1f} {r['unit']}"] for r in results]
    return table(["ceiling", "measured"], rows)


def of_ops(results: list[dict], plot: Callable[[str], Path]) -> str:
    """Each op beside PyTorch's operators."""
    compared = [r for r in results if "speed_up" in r]
    rows = [
        [
            f"{r['op']} {_case(r)}",
            f"{r['ms']:.2f}",
            f"{r['peer_ms']:.2f}",
            f"{r['speed_up']:.2f}",
            f"{r['floor_ms']:.2f}" if "floor_ms" in r else "",
        ]
        for r in compared
    ]
    parts = [table(["op", "ours, ms", "PyTorch, ms", "times as fast", "memory alone, ms"], rows)]
    others = [
        [f"{r['op']} {_case(r)}", f"{r['median_ms']:.2f}"] for r in results if "speed_up" not in r
    ]
    if others:
        parts.append(table(["others", "median, ms"], others))
    chosen = [r for r in compared if "2 threads" in r["case"] and "bf16" in r["case"]]
    if chosen:
        items = [(f"{r['op']} {_case(r)}", r["speed_up"]) for r in chosen]
        parts.append(bars(plot("ops"), "Ops beside PyTorch's operators, 2 threads", items))
    return "\n\n".join(parts)


def _case(record: dict) -> str:
    return record["case"].partition("[")[2].rstrip("]") or record["case"]


def of_scaling(results: list[dict], plot: Callable[[str], Path]) -> str:
    """Curves."""
    parts = []
    for curve in results:
        header = [f"{curve['what']}, ms by {curve['grows']}", *map(str, curve["sizes"]), "exponent"]
        rows = [
            [name, *(f"{t:.1f}" for t in times), _power(curve["exponents"].get(name))]
            for name, times in curve["median_ms"].items()
        ]
        name = f"scaling-{curve['what']}-{curve['grows'].replace(' ', '-')}"
        parts += [table(header, rows), lines(plot(name), curve)]
    return "\n\n".join(parts)


def _power(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def of_inference(results: list[dict], plot: Callable[[str], Path]) -> str:
    """The encoder without gradients."""
    rows, items = [], []
    for r in results:
        lengths = r["lengths"]
        kind = "full" if len(set(lengths)) == 1 else "ragged"
        name = f"{r['layers']} x {r['hidden_size']}, {len(lengths)} x {max(lengths)} {kind}"
        for provider, found in r["providers"].items():
            ratio = r["speedups"].get(provider)
            text = "" if ratio is None else f"{ratio['median']:.2f}"
            rows.append([name, provider, f"{found['median_ms']:.1f}", text])
            if ratio is not None:
                items.append((f"{name}, {provider}", ratio["median"]))
        rows += [[name, provider, "not installed", ""] for provider in r["not_installed"]]
    parts = [table(["case", "provider", "ms", "ours is faster, times"], rows)]
    if items:
        parts.append(bars(plot("inference"), "Inference in bf16", items))
    return "\n\n".join(parts)


def of_training(results: list[dict], plot: Callable[[str], Path]) -> str:
    """The training step, its memory too."""
    rows, items = [], []
    for r in results:
        share = r["tokens"] / (len(r["lengths"]) * r["seqlen"])
        name = (
            f"{r['layers']} x {r['hidden_size']}, {len(r['lengths'])} x {r['seqlen']}, "
            f"{share:.0%} real, {r['dtype']}, dropout {r['dropout']}, malloc {r['allocator']}"
        )
        for provider, found in r["providers"].items():
            if "raised" in found:
                rows.append([name, provider, "failed", "", "", ""])
                continue
            ratio = r["speedups"].get(provider)
            rows.append(
                [
                    name,
                    provider,
                    f"{found['median_ms']:,.0f}",
                    f"{found['tokens_per_second']:,.0f}",
                    f"{found['peak_rss_mb']:,.0f}",
                    "" if ratio is None else f"{ratio['median']:.2f}",
                ]
            )
            if ratio is not None:
                items.append((f"{r['allocator']}, {r['dtype']}: {provider}", ratio["median"]))
    header = ["case", "provider", "step, ms", "tokens/s", "peak, MB", "ours is faster, times"]
    parts = [table(header, rows)]
    if items:
        parts.append(bars(plot("training"), "A training step beside Hugging Face's", items))
    return "\n\n".join(parts)


def of_finetuning(results: list[dict], plot: Callable[[str], Path]) -> str:
    """Fine-tuning on real tasks."""
    rows = []
    for r in results:
        runs = r.get("runs")
        figures = ["not measured"] * 4
        if runs:
            threads = r.get("run_threads")
            figures = [
                text
                for engine in ("spanbert_fast", "transformers")
                for text in (
                    f"{runs[engine]['dev'][r['metric']]:.2f}",
                    f"{runs[engine]['seconds']:,.0f}" + (f" ({threads} thread)" * bool(threads)),
                )
            ]
        rows.append([f"{r['case']}: {r['metric']}", *figures, f"{r['speed_up']:.2f} ({r['peer']})"])
    header = ["task", "ours", "ours, s", "transformers", "transformers, s"]
    items = [(f"{r['case']} beside {r['peer']}", r["speed_up"]) for r in results]
    return "\n\n".join(
        [
            table([*header, "a step is faster, times"], rows),
            bars(plot("finetuning"), "A fine-tuning step beside transformers'", items),
        ]
    )


SUITES = {
    "ceilings": ("Ceilings", of_ceilings),
    "ops": ("Ops", of_ops),
    "training": ("Training step", of_training),
    "inference": ("Inference", of_inference),
    "finetuning": ("Fine-tuning", of_finetuning),
    "scaling": ("Scaling", of_scaling),
}


def report(results: Path) -> Path:
    """Write REPORT.md and its plots into `results`; returns its path."""
    machines = sorted(path for path in results.iterdir() if path.is_dir())
    parts = ["# What was measured", "Made by `make report` from the result files beside it."]
    if not machines:
        parts.append("not measured")
    for machine in machines:
        parts.append(f"## {machine.name}")
        for name, (title, describe) in SUITES.items():
            path = machine / f"{name}.json"
            parts.append(f"### {title}")
            if not path.is_file():
                parts.append("not measured")
                continue
            content = read_document(path)
            cpu = content["environment"]["cpu"]
            parts.append(
                f"{cpu['model']}, {cpu['isa_level']}, {content['threads']} threads; torch "
                f"{content['environment']['libraries']['torch']}; commit "
                f"`{(content['commit'] or 'unknown')[:12]}`"
            )
            parts.append(
                describe(content["results"], lambda n, m=machine: results / f"{m.name}-{n}.png")
            )
    parts.append("## GPUs\n\nnot measured")
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
