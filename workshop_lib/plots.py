"""The workshop's pictures: colour-blind-safe, markers as well as colours, units on every axis."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from IPython.display import Image, display
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from workshop_lib.measure import P99_SAMPLES, Samples, readable

# Okabe and Ito 2008, "Color Universal Design"; black is left for text.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P")
HATCHES = ("", "//", "..", "xx", "--", "++")
ROOMY = {"dpi": 110, "facecolor": "white", "bbox_inches": "tight"}


def show(figure: Figure, alt: str) -> None:
    """Show a figure in the notebook, with a text for those who cannot see it.

    Args:
        figure: a matplotlib figure.
        alt: what the picture shows, in a sentence or two.

    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Description": alt}, **ROOMY)  # type: ignore[arg-type]
    display(Image(buffer.getvalue(), format="png", alt=alt))


def latencies(samples: Mapping[str, Samples], title: str) -> Figure:
    """Every sample as a dot, with p50 (and its 95 % interval), p95 and p99, one line a subject.

    Args:
        samples: by the name that the line gets. What follows the last comma of a name is its kind
            ("by key, cache"); lines of one kind share a colour and a marker.
        title: of the picture.

    """
    figure, axes = _canvas(8.0, 1.1 + 0.85 * len(samples))
    kinds = list(dict.fromkeys(name.rpartition(", ")[2] for name in samples))
    for line, (name, found) in enumerate(samples.items()):
        number = kinds.index(name.rpartition(", ")[2])
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        micros = [s * 1e6 for s in found.seconds]
        # Spread the dots over the line's height in a fixed pattern, so that none hides another.
        heights = [line - 0.28 + 0.56 * (i * 0.618 % 1) for i in range(len(micros))]
        axes.scatter(micros, heights, s=9, color=colour, marker=marker, alpha=0.35, linewidths=0)
        middle, (low, high) = found.median * 1e6, found.interval(50)
        axes.plot([low * 1e6, high * 1e6], [line, line], color="black", linewidth=3, zorder=3)
        axes.plot(middle, line, "|", color="black", markersize=20, markeredgewidth=2.5, zorder=4)
        for q, style in ((95, ":"), (99, "--")) if len(found) >= P99_SAMPLES else ((95, ":"),):
            value = found.percentile(q) * 1e6
            axes.plot([value] * 2, [line - 0.36, line + 0.36], style, color="black", linewidth=1.2)
        axes.annotate(
            f"p50 {readable(found.median)}",
            (middle, line - 0.42),
            ha="center",
            va="bottom",
            fontsize=9,
        )
    labels = [f"{name}\n(n = {len(found):,})" for name, found in samples.items()]
    axes.set_yticks(range(len(samples)), labels)
    axes.set_ylim(len(samples) - 0.45, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value / 1e6)))
    axes.set_xlabel("time until the answer is here (log scale)\nbar: p50 and its 95 % interval, "
                    f"dotted: p95, dashed: p99 (of {P99_SAMPLES} or more)", fontsize=9)  # fmt: skip
    axes.set_title(title)
    return figure


def requests(seconds: Sequence[float], sources: Sequence[str], title: str) -> Figure:
    """One bar a request, in order; colour and hatch tell where the answer came from.

    Args:
        seconds: of each request.
        sources: "cache" or "database", one for each request.
        title: of the picture.

    """
    figure, axes = _canvas(8.0, 3.4)
    kinds = list(dict.fromkeys(sources))
    for number, kind in enumerate(kinds):
        places = [i for i, source in enumerate(sources) if source == kind]
        bars = axes.bar(
            [i + 1 for i in places],
            [seconds[i] * 1e6 for i in places],
            color=COLOURS[number],
            hatch=HATCHES[number],
            edgecolor="white",
            label=f"answered by the {kind} ({len(places)})",
        )
        axes.bar_label(bars, [readable(seconds[i]) for i in places], fontsize=8, padding=2)
    axes.set_xticks(range(1, len(seconds) + 1))
    axes.set_xlabel("request")
    axes.set_ylabel("time until the answer is here (µs)")
    axes.set_title(title)
    axes.margins(y=0.15)
    axes.legend(frameon=False)
    return figure


def bars(
    groups: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    title: str,
    x_label: str,
    y_label: str,
) -> Figure:
    """Bars side by side: one group a label, one colour and hatch a series.

    Args:
        groups: the series by name; each holds one value for each label.
        labels: what stands under the groups.
        title: of the picture.
        x_label, y_label: with units.

    """
    figure, axes = _canvas(8.0, 3.6)
    width = 0.8 / len(groups)
    for number, (name, values) in enumerate(groups.items()):
        places = [i + width * (number - (len(groups) - 1) / 2) for i in range(len(labels))]
        axes.bar(
            places,
            values,
            width,
            label=name,
            color=COLOURS[number % len(COLOURS)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
        )
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    if len(groups) > 1:
        # Below the axis: within it, it would cover bars.
        axes.legend(
            frameon=False, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=9
        )
    return figure


def histogram(values: Sequence[int], title: str, x_label: str, y_label: str) -> Figure:
    """How often each number occurs, or each range of numbers where there are many.

    Args:
        values: whole numbers.
        title: of the picture.
        x_label, y_label: with units.

    """
    figure, axes = _canvas(8.0, 3.6)
    low, high = min(values), max(values)
    step = max(1, -(-(high - low + 1) // 30))
    edges = [low - 0.5 + step * n for n in range((high - low) // step + 2)]
    axes.hist(values, bins=edges, color=COLOURS[0], edgecolor="white")
    axes.xaxis.set_major_locator(MaxNLocator(15, integer=True))
    axes.set_xlabel(x_label if step == 1 else f"{x_label} (in steps of {step})")
    axes.set_ylabel(y_label)
    axes.set_title(title)
    return figure


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    title: str,
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    steps: bool = False,
) -> Figure:
    """Lines over a common axis, told apart by colour and marker.

    Args:
        x: the common values.
        series: by name, one value for each x.
        title: of the picture.
        x_label, y_label: with units.
        log_x: a logarithmic x axis.
        steps: hold each value until the next instead of joining them.

    """
    figure, axes = _canvas(8.0, 3.8)
    for number, (name, values) in enumerate(series.items()):
        axes.plot(
            x,
            values,
            label=name,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)] if len(x) <= 40 else None,
            linestyle=("-", "--", ":", "-.")[number % 4],
            drawstyle="steps-post" if steps else "default",
            markersize=7,
            alpha=0.9,
        )
    if log_x:
        axes.set_xscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    if len(series) > 1:
        axes.legend(frameon=False)
    return figure


def durations(seconds: Mapping[str, float], title: str, limit_s: float | None = None) -> Figure:
    """One horizontal bar a thing that took time; a line marks what is worth a look.

    Args:
        seconds: by name.
        title: of the picture.
        limit_s: where the line is drawn, if it lies within the picture.

    """
    figure, axes = _canvas(8.0, 0.9 + 0.32 * len(seconds))
    values = [value * 1000 for value in seconds.values()]
    drawn = axes.barh(range(len(seconds)), values, color=COLOURS[0], height=0.7)
    axes.bar_label(drawn, [readable(value) for value in seconds.values()], padding=3, fontsize=9)
    axes.set_yticks(range(len(seconds)), list(seconds))
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x", color="#dddddd", linewidth=0.7)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.15)
    if limit_s is not None and limit_s * 1000 < max(values):
        axes.axvline(limit_s * 1000, color="black", linestyle="--", linewidth=1.2)
    axes.set_xlabel("time (ms)")
    axes.set_title(title)
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Any]:
    """An empty picture. No pyplot: its figures would pile up in a long session."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if height < width / 3 else "y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes
