"""The report's pictures: one question each, at most a dozen bars, the machine in the caption. They
can be read without colour: bars have numbers, lines have markers and dashes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.transforms import blended_transform_factory

MOST_BARS = 12
WIDTH, DPI = 8.3, 160  # inches: a page's width, on which 10 points are as large as its text
_MARKERS, _DASHES = "osD^v", ("-", "--", ":", "-.")
_NAMES = {
    "hf-eager": "Hugging Face eager",
    "hf-sdpa": "Hugging Face sdpa",
    "hf-eager-compiled": "Hugging Face eager, compiled",
    "hf-sdpa-compiled": "Hugging Face sdpa, compiled",
    "hf-sdpa-masked-rows": "Hugging Face sdpa, head on masked rows only",
    "reference": "our model on the reference ops",
}


class Bar(NamedTuple):
    """A bar: its name, its length, and the text at its end."""

    name: str
    value: float
    text: str


class Group(NamedTuple):
    """The bars of one case, under a heading that says what is special about it."""

    heading: str
    bars: list[Bar]


class Canvas(NamedTuple):
    """The folder of a machine's pictures, and their common caption.

    Attributes:
        prefix: the path of a picture without "-NAME.png".
        caption: the machine, and whatever else is the same in all.
    """

    prefix: Path
    caption: str

    def path(self, name: str) -> Path:
        """The path of the picture of that name."""
        return self.prefix.with_name(f"{self.prefix.name}-{name}.png")


def called(provider: str) -> str:
    """A provider's name, for readers."""
    return _NAMES.get(provider, provider)


def speedup(provider: str, ratio: float) -> Bar:
    """The speed-up of ours over a provider."""
    return Bar(called(provider), ratio, f"{ratio:.2f} x")


def speedups(result: dict[str, Any]) -> list[Bar]:
    """A bar for each provider that ours is compared with."""
    return [speedup(name, ratio["median"]) for name, ratio in result["speedups"].items()]


def sequences(lengths: list[int], seqlen: int, tokens: int) -> str:
    """The shape of a batch in words, and the share of real tokens."""
    share = tokens / (len(lengths) * seqlen)
    real = "" if share == 1 else f", {share:.0%} of them real"
    return f"{len(lengths)} x {seqlen} tokens{real}"


def pages(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """The groups in order, on pages of at most MOST_BARS bars; a larger group continues on the next
    page."""
    page: list[Group] = []
    room = MOST_BARS
    for heading, bars in groups:
        if len(bars) > room and page:
            yield page
            page, room = [], MOST_BARS
        while len(bars) > room:
            yield [Group(heading, bars[:room])]
            bars = bars[room:]
        page, room = [*page, Group(heading, bars)], room - len(bars)
    if page:
        yield page


def bars(
    canvas: Canvas,
    name: str,
    question: str,
    groups: Sequence[Group],
    label: str,
    line: float | None = None,
) -> str:
    """Draw horizontal bars in groups; returns the Markdown of the pictures.

    Args:
        canvas: where they go.
        name: name of the first picture; further ones are NAME-2 and so on.
        question: the title, which the bars answer.
        groups: see `pages`.
        label: label of the axis, with its unit.
        line: the value of a line across all bars.
    """
    drawn = list(pages([group for group in groups if group.bars]))
    most = max((bar.value for group in groups for bar in group.bars), default=0)
    parts = []
    for number, page in enumerate(drawn, start=1):
        title = question if len(drawn) == 1 else f"{question} ({number} of {len(drawn)})"
        path = canvas.path(name if number == 1 else f"{name}-{number}")
        parts.append(_bars(path, title, page, (label, canvas.caption), (most, line)))
    return "\n\n".join(parts)


def _bars(
    path: Path,
    title: str,
    groups: Sequence[Group],
    texts: tuple[str, str],
    axis_of_values: tuple[float, float | None],
) -> str:
    (label, caption), (most, line) = texts, axis_of_values
    rows = sum(1 + len(group.bars) for group in groups)
    figure, axis = pyplot.subplots(figsize=(WIDTH, 1.3 + 0.3 * rows), layout="constrained")
    # a heading begins at the picture's left edge, above the names of its bars
    from_edge = blended_transform_factory(figure.transFigure, axis.transData)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    place, places, names = 0.0, [], []
    for heading, members in groups:
        style = {"weight": "bold", "va": "center", "bbox": white, "zorder": 5}
        axis.text(0.01, place, heading, transform=from_edge, **style)
        place += 1
        for bar in members:
            axis.barh(place, bar.value, height=0.72, color="#9db9d6", edgecolor="black")
            axis.text(bar.value + 0.01 * most, place, bar.text, va="center")
            places, names = [*places, place], [*names, bar.name]
            place += 1
    axis.set_yticks(places, names)
    axis.set_ylim(place - 0.4, -0.6)
    axis.set_xlim(0, 1.14 * most)
    if line is not None:
        axis.axvline(line, color="black", linewidth=1, linestyle="--")
    axis.set(xlabel=label)
    figure.suptitle(title, fontsize=13)
    axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(caption, fontsize=8.5)
    return _saved(figure, path, title)


def lines(
    canvas: Canvas,
    name: str,
    question: str,
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    axes: tuple[str, str],
    logarithmic: bool = False,
) -> str:
    """(name, x, y) curves; returns the Markdown of the picture."""
    figure, axis = pyplot.subplots(figsize=(0.8 * WIDTH, 4.2), layout="constrained")
    for i, (provider, x, y) in enumerate(curves):
        style = {"marker": _MARKERS[i % 5], "linestyle": _DASHES[i % 4], "color": "black"}
        style |= {"markerfacecolor": "white", "markevery": max(1, len(x) // 12)}
        axis.plot(x, y, label=called(provider), **style)
    if logarithmic:
        axis.set(xscale="log", yscale="log")
    elif len(curves[0][1]) <= 8:
        axis.set_xticks(curves[0][1])
    axis.set(xlabel=axes[0], ylabel=axes[1], title=question)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.supxlabel(canvas.caption, fontsize=8.5)
    return _saved(figure, canvas.path(name), question)


def _saved(figure, path: Path, title: str) -> str:
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    return f"![{title}]({path.name})"
