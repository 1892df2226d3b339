#!/usr/bin/env python
"""Tables and plots from the result files alone: `make report`.

Reads results/<machine>/*.json, writes results/REPORT.md and PNG plots beside it. A suite without a
file, or a case that its file says was not measured, gets the words "not measured".
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

import plots
from plots import Bar, Canvas, Group
from results_format import NOT_MEASURED, RESULTS, beside, read_document, why_not, without

Results = list[dict[str, Any]]
TIMES = "times as fast as the provider beside the bar"
GROWS = {  # what a curve of scaling.py grows with -> in a question, on an axis
    "sequence length": ("the sequence length", "sequence length (tokens)"),
    "batch tokens": ("the tokens of a batch", "tokens in the batch"),
    "padding share": ("the share of padding", "share of padding in the batch"),
    "vocabulary": ("the size of the vocabulary", "entries of the vocabulary"),
    "threads": ("the number of threads", "threads"),
}


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table; numbers to the right. A column without any content is left out."""
    kept = [i for i in range(len(header)) if not rows or any(row[i] != "" for row in rows)]
    header, rows = [header[i] for i in kept], [[row[i] for i in kept] for row in rows]
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def of_commit(result: dict[str, Any]) -> str:
    """The commit of a result that is older than the others of its file."""
    return f", commit `{result['commit'][:12]}`" if "commit" in result else ""


# One function per suite: the results of a document and where pictures go -> Markdown


def of_ceilings(results: Results, canvas: Canvas) -> str:
    """The ceilings, which bound the rest."""
    rows = [[r["what"], f"{r['value']:.1f} {r['unit']}"] for r in results]
    return table(["ceiling", "measured"], rows)


def of_gpu_check(results: Results, canvas: Canvas) -> str:
    """How each step of benchmarks/gpu_check.py ended."""
    names = ["name", "outcome", "seconds"]
    return table(names, [[r[name] for name in names] for r in results])


def of_check(results: Results, canvas: Canvas) -> str:
    """Whether each op is right on the device."""
    rows = []
    for r in results:
        passed = r.get("passed") or r.get("providers", {}).get("ours", {}).get("passed")
        rows.append([f"{r['op']} {r['case']}", "passed" if passed else why_not(r)])
    return table(["op", "result"], rows)


def of_ops(results: Results, canvas: Canvas) -> str:
    """Each op beside its peers and its bound."""
    rows, ratios, shares, memory, reasons = [], {}, {}, {}, {}
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
        if not r["case"].endswith("backward"):
            continue
        short = name.removesuffix("-forward+backward").replace(" ", ", ", 1)
        short = short.replace("p=.1", "dropout 0.1").replace("p=0", "dropout 0")
        if achieved:
            text = "{share:.0%}, {value:,.0f} {unit}".format(**achieved)
            bar = Bar(short, 100 * achieved["share"], text)
            shares.setdefault(f"limit: the measured {achieved['ceiling']}", []).append(bar)
        ratios[short] = [plots.speedup(n, ratio["median"]) for n, ratio in r["speedups"].items()]
        memory[short] = [
            Bar(n, p["peak_mb"], f"{p['peak_mb']:,.0f} MB")
            for n, p in found.items()
            if "peak_mb" in p
        ]
    header = ["op", "threads", "ours, ms", "half of the rounds", "achieved"]
    parts = [table([*header, "ours is faster than, times"], rows)]
    parts += [f"{name}: {why}" for name, why in reasons.items()]
    for name, question, groups, label, line in (
        ("ops", "How much faster is an op, forward and backward?", ratios, TIMES, 1.0),
        (
            "roofline",
            "How close is an op to the limit of the machine?",
            shares,
            "% of the limit",
            100.0,
        ),
        (
            "ops-memory",
            "How much memory does an op need beyond its inputs?",
            memory,
            "memory (MB)",
            None,
        ),
    ):
        drawn = [Group(heading, bars) for heading, bars in groups.items()]
        parts.append(plots.bars(canvas, name, question, drawn, label, line))
    return "\n\n".join(filter(None, parts))


def of_scaling(results: Results, canvas: Canvas) -> str:
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
        grows, axis = GROWS[curve["grows"]]
        axes = (axis, "time, forward and backward (ms)")
        logarithmic = curve["grows"] not in ("padding share", "threads")
        what = {"layer": "a layer", "loss": "the loss"}.get(curve["what"], curve["what"])
        question = f"How does the time of {what} change with {grows}?"
        if drawn:
            parts.append(plots.lines(canvas, name, question, drawn, axes, logarithmic))
    return "\n\n".join(parts)


def of_inference(results: Results, canvas: Canvas) -> str:
    """The encoder without gradients."""
    rows, groups = [], []
    for r in results:
        lengths = r["lengths"]
        kind = "full" if len(set(lengths)) == 1 else "ragged"
        name = f"{r['layers']} x {r['hidden_size']}, {len(lengths)} x {max(lengths)} {kind}"
        heading = f"{r['layers']} layers of {r['hidden_size']}, bf16, "
        heading += plots.sequences(lengths, max(lengths), sum(lengths))
        for provider, found in r["providers"].items():
            rows.append([name, provider, f"{found['median_ms']:.1f}", beside(r, provider)])
        rows += [[name, provider, why, ""] for provider, why in without(r)]
        groups.append(Group(heading, plots.speedups(r)))
    parts = [table(["case", "provider", "ms", "ours is faster, times"], rows)]
    question = "How much faster is inference?"
    parts.append(plots.bars(canvas, "inference", question, groups, TIMES, 1.0))
    return "\n\n".join(filter(None, parts))


def of_training(results: Results, canvas: Canvas, suite: str = "training") -> str:
    """The training step and its memory."""
    rows, groups, memory = [], [], []
    for r in results:
        share = r["tokens"] / (len(r["lengths"]) * r["seqlen"])
        model = f"{r['layers']} x {r['hidden_size']}, {len(r['lengths'])} x {r['seqlen']}"
        name = f"{model}, {share:.0%} real, {r['dtype']}, dropout {r['dropout']}"
        name += f", malloc {r['allocator']}{of_commit(r)}"
        heading = f"{r['layers']} layers of {r['hidden_size']}, {r['dtype']}, dropout "
        heading += f"{r['dropout']:g}, {plots.sequences(r['lengths'], r['seqlen'], r['tokens'])}"
        if r["allocator"] != "default":
            heading += ", malloc keeps its memory"
        bars = []
        for provider, found in r["providers"].items():
            if "raised" in found:
                rows.append([name, provider, "failed", "", "", "", ""])
                continue
            figures = [f"{found['median_ms']:,.0f}", f"{found['tokens_per_second']:,.0f}"]
            bound = found.get("share_of_product")  # older files have none
            figures += [f"{bound:.0%}" if bound else "", f"{found['peak_rss_mb']:,.0f}"]
            rows.append([name, provider, *figures, beside(r, provider)])
            peak = found["peak_rss_mb"] / 1024
            bars.append(Bar(plots.called(provider), peak, f"{peak:.1f} GB"))
        rows += [[name, provider, why, "", "", "", ""] for provider, why in without(r)]
        groups.append(Group(heading, plots.speedups(r)))
        memory.append(Group(heading, bars))
    header = ["case", "provider", "step, ms", "tokens/s", "of the matrix product", "peak, MB"]
    parts = [table([*header, "ours is faster, times"], rows)]
    memory_suite = suite.replace("training", "memory")
    for name, question, drawn, label, line in (
        (suite, "How much faster is a training step?", groups, TIMES, 1.0),
        (memory_suite, "How much memory does training take?", memory, "peak memory (GB)", None),
    ):
        parts.append(plots.bars(canvas, name, question, drawn, label, line))
    return "\n\n".join(filter(None, parts))


def of_loss_curve(results: Results, canvas: Canvas) -> str:
    """Loss against the time spent training."""
    rows, curves = [], []
    for r in results:
        for name, found in r["providers"].items():
            steps, seconds, losses = (found[key][-1] for key in ("steps", "seconds", "loss"))
            figures = [steps, f"{seconds:.1f}", f"{found['loss'][0]:.3f}", f"{losses:.3f}"]
            rows.append([name, *figures, beside(r, name)])
            curves.append((name, found["seconds"], found["loss"]))
    header = ["provider", "steps", "seconds of training", "first loss", "last loss"]
    question = "How fast does the held-out loss fall?"
    axes = ("time of training (s)", "masked-LM loss (nats)")
    return "\n\n".join(
        [
            table([*header, "a step of ours is faster, times"], rows),
            plots.lines(canvas, "loss", question, curves, axes),
        ]
    )


def of_finetuning(results: Results, canvas: Canvas) -> str:
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
    groups: dict[str, list[Bar]] = {}
    for r in results:
        bar = plots.speedup(r["case"], r["speed_up"])
        groups.setdefault(f"compared with {r['peer']}", []).append(bar)
    drawn = [Group(heading, bars) for heading, bars in groups.items()]
    question, label = "How much faster is a fine-tuning step?", "times as fast as the peer"
    return "\n\n".join(
        [
            table([*header, "a step is faster, times"], rows),
            plots.bars(canvas, "finetuning", question, drawn, label, 1.0),
        ]
    )


def of_families(results: Results, canvas: Canvas | None = None) -> str:
    """Correctness and speed of accelerate() on each family."""
    rows = []
    for r in results:
        tests, cells = r["common_tests"], []
        for dtype in ("fp32", "bf16"):
            share, ratio = r["share_of_allowed_error"][dtype], r["speedups"].get(dtype)
            cells += (
                [f"{share:.2f}", f"{ratio['median']:.2f}"] if ratio else [f"{share:.2f}", "wrong"]
            )
        passed = "{accelerated} of {stock}".format(**tests) if tests else NOT_MEASURED
        same = "the same" if r["same_parameters"] else "others"
        rows.append([r["family"], r["classes"], passed, same, *cells])
    header = ["family", "classes", "common tests passed, of stock's", "parameters"]
    for dtype in ("fp32", "bf16"):
        header += [f"{dtype}: error, of what C5 allows", f"{dtype}: a step is faster, times"]
    return table(header, rows)


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
        "families": ("Families of encoders", of_families),
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
    parts = [f"## {folder.name}"]
    for name, (title, describe) in SUITES[device].items():
        parts.append(f"### {title}")
        content = documents.get(name)
        if content is None:
            parts.append(NOT_MEASURED)
            continue
        found = content["environment"]
        cpu = f"{found['cpu']['model']}, {found['cpu']['cores']} cores, "
        cpu += f"{found['cpu']['isa_level']}, threads: {content['threads']}"
        what = found["gpus"][0] if device == "cuda" else cpu
        commit = (content["commit"] or "unknown")[:12]
        caption = f"{what}; torch {found['libraries']['torch']}; commit {commit}"
        parts.append(caption)
        parts.append(describe(content["results"], Canvas(folder, caption)))
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
