"""The report's pictures. They read without colour: bars by their hatches and the numbers on them,
lines by markers and dashes."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Patch

_MARKERS, _DASHES, _HATCHES = "osD^v", ("-", "--", ":", "-."), ("//", "..", "xx", "")


def _saved(figure, path: Path, title: str) -> str:
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return f"![{title}]({path.name})"


def bars(
    path: Path,
    title: str,
    items: Sequence[tuple[str, float, str, str]],
    label: str,
    line: float | None = None,
) -> str:
    """Horizontal bars; returns the Markdown of the picture.

    Args:
        path: of the PNG.
        title: above it.
        items: (name, length, what stands at the bar's end, kind); kinds have hatches of their own,
            and a legend where there are several.
        label: of the axis.
        line: where a line across all bars is.
    """
    figure, axis = pyplot.subplots(figsize=(9, 0.8 + 0.34 * len(items)), layout="constrained")
    names = [f"{name}" for name, *_ in items][::-1]
    values = [value for _, value, _, _ in items][::-1]
    kinds = list(dict.fromkeys(kind for *_, kind in items))
    places = range(len(items))
    drawn = axis.barh(places, values, color="0.85", edgecolor="black")
    hatches = {kind: _HATCHES[i % len(_HATCHES)] for i, kind in enumerate(kinds)}
    for bar, (*_, kind) in zip(drawn, items[::-1], strict=True):
        bar.set_hatch(hatches[kind])
    axis.set_yticks(places, names)
    axis.bar_label(drawn, labels=[f" {text}" for _, _, text, _ in items[::-1]])
    if line is not None:
        axis.axvline(line, color="black", linewidth=1)
    if len(kinds) > 1:
        patches = [
            Patch(facecolor="0.85", edgecolor="black", hatch=hatches[kind], label=kind)
            for kind in kinds
        ]
        axis.legend(handles=patches, loc="lower right")
    axis.set(xlabel=label, title=title)
    axis.margins(x=0.18, y=0.02)
    return _saved(figure, path, title)


def speedups(path: Path, title: str, items: Sequence[tuple[str, float]]) -> str:
    """Bars of ratios, with a line at 1."""
    rows = [(name, value, f"{value:.2f} x", "") for name, value in items]
    return bars(path, title, rows, "times as fast", line=1.0)


def lines(
    path: Path,
    title: str,
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    axes: tuple[str, str],
    logarithmic: bool = False,
) -> str:
    """(name, x, y) curves; returns the Markdown of the picture."""
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for i, (name, x, y) in enumerate(curves):
        style = {"marker": _MARKERS[i % 5], "linestyle": _DASHES[i % 4], "color": "black"}
        style |= {"markerfacecolor": "white", "markevery": max(1, len(x) // 12)}
        axis.plot(x, y, label=name, **style)
    if logarithmic:
        axis.set(xscale="log", yscale="log")
    axis.set(xlabel=axes[0], ylabel=axes[1], title=title)
    axis.grid(alpha=0.3)
    axis.legend()
    return _saved(figure, path, title)
