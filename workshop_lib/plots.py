"""The workshop's pictures: colour-blind-safe, markers as well as colours, units on every axis."""

from __future__ import annotations

import base64
import html
import io
import itertools
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from IPython.display import display
from matplotlib import rc_context, rcParamsDefault
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from workshop_lib.compare import Comparison
from workshop_lib.dsql import Step
from workshop_lib.measure import P99_SAMPLES, Moment, Samples, readable
from workshop_lib.published import PublishedFigure

# Okabe and Ito 2008, "Color Universal Design"; black is left for text.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
STEP_WIDTH = 96
"""Characters that fit side by side in a picture of transactions."""
LEGEND_WIDTH = 75
"""Characters of a legend that fit side by side below a picture."""
MARKERS = ("o", "s", "^", "D", "v", "P")
HATCHES = ("", "//", "..", "xx", "--", "++")
LOOKS = {
    "cache": (COLOURS[0], "o"),
    "database": (COLOURS[1], "s"),
    "stale": (COLOURS[2], "^"),
    "dropped": (COLOURS[3], "v"),
    "error": ("#000000", "X"),  # red and orange are one to whoever does not see red
    "store": (COLOURS[4], "D"),
}
"""Colour and marker of an answer, by where it came from."""
FEW = 150
"""So many dots on one line can be told apart."""
ROOMY = {"dpi": 110, "facecolor": "white", "bbox_inches": "tight"}
NOTE = "note"
_notes: dict[object, str] = {}


@contextmanager
def _our_look() -> Iterator[None]:
    """Draw with matplotlib's own defaults, whatever is configured for other pictures."""
    with rc_context({name: value for name, value in rcParamsDefault.items() if name != "backend"}):
        yield


def set_note(owner: object, text: str = "") -> None:
    """Have every picture that is drawn or shown from now on carry a note below it.

    Args:
        owner: whose note; each has one at most.
        text: the note; empty for none any more.

    """
    _notes.pop(owner, None)
    if text:
        _notes[owner] = text


@_our_look()
def show(figure: Figure, alt: str) -> None:
    """Show a figure in the notebook, with a text for those who cannot see it.

    Args:
        figure: a matplotlib figure.
        alt: what the picture shows, in a sentence or two.

    """
    alt = " ".join([alt, *(f"{note[:1].upper()}{note[1:]}." for note in _sign(figure))])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Description": alt}, **ROOMY)  # type: ignore[arg-type]
    display(_Picture(buffer.getvalue(), alt))


@dataclass(frozen=True, slots=True, repr=False)
class _Picture:
    """A PNG with its text, also as a page: of an image alone, JupyterLab does not show the text."""

    png: bytes
    alt: str

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, Any]]:
        png = base64.b64encode(self.png).decode()
        page = f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{png}">'
        return {"image/png": png, "text/html": page}, {"image/png": {"alt": self.alt}}

    def __repr__(self) -> str:
        return self.alt


@_our_look()
def save(figure: Figure, path: Path) -> None:
    """Write a figure into a PNG file."""
    figure.savefig(path, format="png", **ROOMY)  # type: ignore[arg-type]


@_our_look()
def latencies(samples: Mapping[str, Samples], title: str) -> Figure:
    """Every sample as a dot, with p50 (and its 95 % interval), p95 and p99, one line a subject.

    Args:
        samples: by the name that the line gets. What follows the last comma of a name is its kind
            ("by key, cache"); lines of one kind share a colour and a marker.
        title: of the picture.

    """
    figure, axes = _canvas(8.0, 1.1 + 0.85 * len(samples))
    kinds = list(dict.fromkeys(name.rpartition(", ")[2] for name in samples))
    looks = dict(zip(kinds, itertools.cycle(zip(COLOURS, MARKERS, strict=True)), strict=False))
    if LOOKS.keys() >= looks.keys():
        looks = LOOKS
    for line, (name, found) in enumerate(samples.items()):
        colour, marker = looks[name.rpartition(", ")[2]]
        # Many dots lie upon one another; a few have to be seen each by itself.
        size, alpha = (9, 0.35) if len(found) > FEW else (22, 0.8)
        micros = [s * 1e6 for s in found.seconds]
        # Spread the dots over the line's height in a fixed pattern, so that none hides another.
        heights = [line - 0.28 + 0.56 * (i * 0.618 % 1) for i in range(len(micros))]
        axes.scatter(
            micros, heights, s=size, color=colour, marker=marker, alpha=alpha, linewidths=0
        )
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
    axes.margins(x=0.1)  # room for the words at the first and the last dot
    axes.xaxis.set_major_locator(_log_locator(*axes.get_xlim()))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _round(value / 1e6)))
    axes.set_xlabel("response time (log scale)\nbar: p50 and its 95 % interval, "
                    f"dotted: p95, dashed: p99 (of {P99_SAMPLES} or more)", fontsize=9)  # fmt: skip
    axes.set_title(title)
    return figure


@_our_look()
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
            color=LOOKS[kind][0],
            hatch=HATCHES[number],
            edgecolor="white",
            label=f"answered by the {kind} ({len(places)})",
        )
        axes.bar_label(bars, [readable(seconds[i]) for i in places], fontsize=8, padding=2)
    axes.set_xticks(range(1, len(seconds) + 1))
    axes.set_xlabel("request")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set_ylabel("response time (µs)")
    axes.set_title(title)
    axes.margins(y=0.15)
    axes.legend(frameon=False)
    return figure


@_our_look()
def bars(
    groups: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    title: str,
    x_label: str,
    y_label: str,
    *,
    log_y: bool = False,
) -> Figure:
    """Bars side by side: one group a label, one colour and hatch a series.

    Args:
        groups: the series by name; each holds one value for each label.
        labels: what stands under the groups.
        title: of the picture.
        x_label, y_label: with units.
        log_y: a logarithmic y axis, where small bars stand beside large ones.

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
    if log_y:
        _set_log_y(axes)
    else:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    if len(groups) > 1:
        # Below the axis: within it, it would cover bars.
        figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


@_our_look()
def factors(
    found: Mapping[str, tuple[float, float, float]],
    title: str,
    x_label: str,
    *,
    guesses: Mapping[str, float] | None = None,
    published: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Ratios as dots with their intervals, one line a comparison, on a logarithmic axis.

    Args:
        found: by comparison, the ratio and the ends of its interval; both nan if it has none.
        title: of the picture.
        x_label: what is divided by what.
        guesses: of the reader, by comparison; hollow.
        published: by comparison, from and to; grey.

    """
    figure, axes = _canvas(8.0, 1.2 + 0.7 * len(found))
    rows = {name: row for row, name in enumerate(found)}
    for name, (value, low, high) in found.items():
        axes.plot([low, high], [rows[name]] * 2, color="black", linewidth=2)
        axes.plot(value, rows[name], "o", color=COLOURS[0], markersize=9)
        axes.annotate(f"{value:.3g} ×", (value, rows[name] - 0.14), ha="center", va="bottom")
    marks = {name: (guess, guess) for name, guess in (guesses or {}).items()}
    for known, label, offset, look in (
        (published or {}, "published", 0.17, {"color": "#999999", "linewidth": 5}),
        (marks, "your guess", 0.34, {"color": COLOURS[5], "marker": "D", "fillstyle": "none"}),
    ):
        for name, ends in known.items():
            axes.plot(ends, [rows[name] + offset] * 2, **look)
            place = (ends[1], rows[name] + offset)
            axes.annotate(f"   {label}", place, va="center", fontsize=8)
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.45, -0.6)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(_log_locator(*axes.get_xlim()))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x_label)
    axes.set_title(title)
    return figure


@_our_look()
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
    axes.margins(x=0.01)  # with more, an axis that begins at 0 shows a −1
    axes.xaxis.set_major_locator(MaxNLocator(15, integer=True))
    axes.set_xlabel(x_label if step == 1 else f"{x_label} (in steps of {step})")
    axes.set_ylabel(y_label)
    axes.set_title(title)
    return figure


@_our_look()
def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    title: str,
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    steps: bool = False,
    from_zero: bool = True,
) -> Figure:
    """Lines over a common axis, told apart by colour and marker.

    Args:
        x: the common values.
        series: by name, one value for each x.
        title: of the picture.
        x_label, y_label: with units.
        log_x, log_y: a logarithmic axis.
        steps: hold each value until the next instead of joining them.
        from_zero: the y axis begins at 0; if not, a line marks 0, and values may be below it.

    """
    figure, axes = _canvas(8.0, 4.1 if len(series) > 1 else 3.8)
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
        axes.set_xticks(x, [f"{value:,g}" for value in x])
        axes.xaxis.set_minor_locator(NullLocator())
    if log_y:
        _set_log_y(axes)
    else:
        if from_zero:
            axes.set_ylim(bottom=0)
        else:
            axes.axhline(0, color="black", linewidth=1)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    if len(series) > 1:
        # Below the axis: within it, it would cover lines.
        across = len(series) if sum(map(len, series)) < LEGEND_WIDTH else 2
        axes.legend(frameon=False, fontsize=9, ncols=across, loc="upper center",
                    bbox_to_anchor=(0.5, -0.18))  # fmt: skip
    return figure


@_our_look()
def timeline(
    panels: Mapping[str, Sequence[Moment]],
    title: str,
    spans: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Figure:
    """When each request was made and how long it waited: one dot a request, one panel a run.

    Args:
        panels: the requests of each run, by the panel's title.
        title: of the picture.
        spans: by the panel's title, from when to when (Unix seconds) there was trouble; shaded, or
            a line where it took no time.

    """
    figure, all_axes = _panels(8.0, 0.9 + 2.3 * len(panels), rows=len(panels))
    for axes, (name, moments) in zip(all_axes, panels.items(), strict=True):
        start = min(m.at for m in moments)
        for low, high in (spans or {}).get(name, ()):
            axes.axvspan(low - start, high - start, color="#dddddd", zorder=0)
        for source, (colour, marker) in LOOKS.items():
            chosen = [m for m in moments if m.source == source]
            if not chosen:
                continue
            axes.scatter(
                [m.at - start for m in chosen],
                [m.seconds * 1e3 for m in chosen],
                s=16,
                color=colour,
                marker=marker,
                alpha=0.6,
                linewidths=0,
                label=f"{source} ({len(chosen):,})",
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _round(value / 1e3)))
        axes.set_title(name, fontsize=10, loc="left")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1),
                    markerscale=1.6)  # fmt: skip
    all_axes[-1].set_xlabel("time since the first request (s)" + "; grey: trouble" * bool(spans))
    figure.supylabel("wait for the answer (log scale)", fontsize=10)
    figure.suptitle(title)
    return figure


@_our_look()
def dashboard(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    title: str,
    *,
    x_label: str = "time since the beginning (s)",
    log_y: bool = False,
    dots: Collection[str] = (),
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Panels over a common time axis, one below the other, each with a scale of its own.

    Args:
        panels: by the y axis's label, with its unit: the series by name, each as x and y values.
        title: of the picture.
        x_label: with unit.
        log_y: logarithmic y axes.
        dots: labels of panels whose points are not joined.
        marks: what happened when: an upright line with a word to it.

    """
    figure, all_axes = _panels(8.0, 1.6 + 1.8 * len(panels), rows=len(panels), same_y=False)
    for axes, (label, series) in zip(all_axes, panels.items(), strict=True):
        for number, (name, (x, y)) in enumerate(series.items()):
            axes.plot(
                x,
                y,
                label=name,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle="none" if label in dots else ("-", "--", ":", "-.")[number % 4],
                markersize=5,
                alpha=0.9,
            )
        if log_y:
            _set_log_y(axes)
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.set_ylabel(label, fontsize=9)
        for number, (word, at) in enumerate(sorted((marks or {}).items(), key=itemgetter(1)), 1):
            axes.axvline(at, color="#888888", linewidth=1, linestyle=":")
            if axes is all_axes[0]:  # above it, where no curve is; the last one to its right
                side = "left" if number == len(marks or {}) else "right"
                axes.annotate(word, (at, 1.01), xycoords=("data", "axes fraction"), fontsize=8,
                              ha=side, va="bottom")  # fmt: skip
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    all_axes[-1].set_xlabel(x_label)
    all_axes[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    figure.suptitle(title)
    return figure


@_our_look()
def streams(panels: Mapping[str, Sequence[int]], title: str) -> Figure:
    """Which key each request asks for: one dot a request, one panel a stream.

    Args:
        panels: the key numbers of each stream, by the panel's title.
        title: of the picture.

    """
    figure, all_axes = _panels(8.4, 3.4, columns=len(panels))
    for axes, (name, stream) in zip(all_axes, panels.items(), strict=True):
        axes.scatter(range(len(stream)), stream, s=3, color=COLOURS[0], alpha=0.5, linewidths=0)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("request")
    all_axes[0].set_ylabel("key number (0: the hottest at first)")
    figure.suptitle(title)
    return figure


@_our_look()
def waits(runs: Mapping[str, Sequence[Moment]], title: str) -> Figure:
    """From when to when each of many simultaneous requests waited: one line a request.

    Args:
        runs: the requests of each run, by its panel's title.
        title: of the picture.

    """
    figure, all_axes = _panels(8.0, 4.2, columns=len(runs), grid="x")
    for number, (axes, (name, moments)) in enumerate(zip(all_axes, runs.items(), strict=True)):
        start = min(m.at for m in moments)
        ordered = sorted(moments, key=lambda m: m.end)
        for row, one in enumerate(ordered, start=1):
            axes.plot(
                [(one.at - start) * 1e3, (one.end - start) * 1e3],
                [row, row],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markevery=[1],
                markersize=4,
                linewidth=1.2,
            )
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("time since the first asked (ms)")
    all_axes[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    all_axes[0].set_ylabel("readers, by when they were served")
    figure.suptitle(title)
    return figure


@_our_look()
def stages(
    times: Mapping[str, Mapping[str, float]], title: str, label: str = "time (ms)"
) -> Figure:
    """What a call spends its time on: one bar a way of doing it, cut into its stages.

    Args:
        times: by way, the seconds of each stage by its name, in order.
        title: of the picture.
        label: of the time axis.

    """
    names = list(dict.fromkeys(name for way in times.values() for name in way))
    figure, axes = _canvas(8.0, 1.7 + 0.5 * len(times))
    ends = [0.0] * len(times)
    for number, name in enumerate(names):
        widths = [way.get(name, 0.0) * 1e3 for way in times.values()]
        axes.barh(range(len(times)), widths, left=ends, height=0.6, label=name, edgecolor="white",
                  color=COLOURS[number], hatch=HATCHES[number])  # fmt: skip
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for row, end in enumerate(ends):
        axes.annotate(f" {readable(end / 1e3)}", (end, row), va="center", fontsize=9)
    axes.set_yticks(range(len(times)), list(times))
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x", color="#dddddd", linewidth=0.7)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


@_our_look()
def beside_published(
    measured: Mapping[str, Samples], published: Sequence[PublishedFigure], title: str
) -> Figure:
    """One's own figures above, published ones below, apart but with one time axis.

    Args:
        measured: by name; p50 is drawn, with a line from p5 to p95.
        published: all from one document.
        title: of the picture.

    """
    sizes = [len(measured), len(published)]
    figure = Figure(figsize=(8.0, 2.0 + 0.36 * sum(sizes)), layout="constrained")
    _sign(figure)
    own, theirs = figure.subplots(2, 1, sharex=True, height_ratios=[n + 0.6 for n in sizes])
    for row, found in enumerate(measured.values()):
        ends = [found.percentile(5) * 1e3, found.percentile(95) * 1e3]
        own.plot(ends, [row, row], color=COLOURS[0], linewidth=2)
        own.plot(found.median * 1e3, row, "o", color=COLOURS[0], markersize=8)
        own.annotate(f"   {readable(found.median)}", (ends[1], row), va="center", fontsize=9)
    for row, one in enumerate(published):
        ends = [one.low_s * 1e3, one.high_s * 1e3]
        theirs.plot(ends, [row, row], color=COLOURS[1], linewidth=5, marker="|", markersize=14)
        low, high = _round(one.low_s), _round(one.high_s)
        words = high if low == high else f"{low} to {high}"
        theirs.annotate(f"  {words}", (ends[1], row), va="center", fontsize=9)
    own.set_title("measured by you: p50, and from p5 to p95", fontsize=10, loc="left")
    source = textwrap.fill(f"published, not measured here: {published[0].source}", 70)
    theirs.set_title(source, fontsize=10, loc="left")
    counted = [f"{name} (n = {len(found):,})" for name, found in measured.items()]
    labels = (counted, [one.subject for one in published])
    for axes, names, count in zip((own, theirs), labels, sizes, strict=True):
        axes.set_yticks(range(count), names)
        axes.set_ylim(count - 0.4, -0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
    theirs.set_xscale("log")
    low, high = theirs.get_xlim()
    theirs.set_xlim(low, high * 3)  # room for the words
    theirs.xaxis.set_minor_formatter(NullFormatter())
    theirs.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _round(value / 1e3)))
    theirs.set_xlabel("time (log scale)")
    figure.suptitle(title)
    return figure


@_our_look()
def transactions(steps: Sequence[Step], title: str) -> Figure:
    """What each player of `Workshop.play` sent and got: a column a player, time downwards.

    Args:
        steps: in order.
        title: of the picture.

    """
    players = list(dict.fromkeys(step.who for step in steps))
    wrapped = [textwrap.wrap(step.statement, STEP_WIDTH // len(players)) for step in steps]
    answers = [textwrap.wrap(step.outcome, STEP_WIDTH // len(players)) for step in steps]
    heights = [len(said) + len(got) + 1 for said, got in zip(wrapped, answers, strict=True)]
    figure = Figure(figsize=(9.0, 0.8 + 0.165 * sum(heights)), layout="constrained")
    _sign(figure)
    axes = figure.subplots()
    axes.set(xlim=(0, len(players)), ylim=(sum(heights), -2.5))
    axes.axis("off")
    for column, player in enumerate(players):
        axes.text(column + 0.03, -1.2, player, fontsize=11, fontweight="bold", va="center")
        axes.plot([column + 0.02] * 2, [0, sum(heights)], color="#dddddd", linewidth=1)
    top = 0
    for number, (step, said, got, height) in enumerate(
        zip(steps, wrapped, answers, heights, strict=True), start=1
    ):
        column, failed = players.index(step.who), bool(step.code)
        axes.plot(column + 0.02, top + 0.5, "X" if failed else "o", markersize=8 if failed else 5,
                  color=COLOURS[5] if failed else COLOURS[0], clip_on=False)  # fmt: skip
        look: dict[str, Any] = {
            "x": column + 0.05,
            "va": "top",
            "fontsize": 8.5,
            "family": "monospace",
        }
        axes.text(y=top, s=f"{number}. " + "\n   ".join(said), **look)
        axes.text(y=top + len(said), s="   → " + "\n     ".join(got), **look,
                  color=COLOURS[5] if failed else "#555555")  # fmt: skip
        top += height
    figure.suptitle(title)
    return figure


@_our_look()
def dots(
    rows: Sequence[str],
    panels: Mapping[str, Mapping[str, Sequence[float | None]]],
    title: str,
    x_label: str,
    limits: Mapping[str, float] | None = None,
) -> Figure:
    """Values side by side on one line a subject; the first series is filled, the others hollow.

    Args:
        rows: the subjects.
        panels: by panel, the series by name, with one value (or None) for each subject.
        title: of the picture.
        x_label: with its unit.
        limits: by panel, the best value possible; a dashed line.

    """
    figure, all_axes = _panels(8.4, 1.6 + 0.32 * len(rows), columns=len(panels), grid="both")
    for axes, (panel, series) in zip(all_axes, panels.items(), strict=True):
        for number, (name, values) in enumerate(series.items()):
            found = [(value, row) for row, value in enumerate(values) if value is not None]
            axes.scatter(
                [value for value, _ in found],
                [row for _, row in found],
                s=64 if number else 36,
                marker=MARKERS[number % len(MARKERS)],
                facecolors="none" if number else COLOURS[0],
                edgecolors=COLOURS[number % len(COLOURS)],
                linewidths=1.4,
                label=name,
                zorder=3,
            )
        if limits:
            axes.axvline(
                limits[panel], color="black", linestyle="--", lw=1.2, label="best possible"
            )
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(panel, fontsize=10)
        axes.set_xlabel(x_label)
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title)
    return figure


@_our_look()
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
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set_xlabel("time (ms)")
    axes.set_title(title)
    return figure


@_our_look()
def two_runs(comparison: Comparison, title: str) -> Figure:
    """How the second run's figures relate to the first one's: a dot a figure, a colour a notebook.

    Args:
        comparison: of which the figures with an interval are drawn, and all if none has one.
        title: of the picture.

    """
    known = [pair for pair in comparison.pairs if pair.ratio]
    pairs = [pair for pair in known if pair.low] or known
    notebooks = list(dict.fromkeys(pair.notebook for pair in pairs))
    figure, axes = _canvas(8.0, 1.6 + 0.28 * len(pairs))
    for row, pair in enumerate(pairs):
        number = notebooks.index(pair.notebook)
        look = {"color": COLOURS[number % len(COLOURS)]}
        if pair.low and pair.high:
            axes.plot([pair.low, pair.high], [row, row], linewidth=2, **look)
        axes.plot(pair.ratio, row, MARKERS[number % len(MARKERS)], markersize=7, **look)
    axes.axvline(1, color="black", linestyle="--", linewidth=1.2)
    axes.set_yticks(range(len(pairs)), [f"{pair.notebook[:2]} {pair.name}" for pair in pairs])
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, axis="x", color="#dddddd", linewidth=0.7)
    first, second = comparison.labels
    axes.set_xlabel(f"second run by first run (log scale); right of 1: the second is larger\n"
                    f"first: {first}\nsecond: {second}", fontsize=9)  # fmt: skip
    axes.set_title(title)
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Any]:
    """An empty picture with one panel."""
    figure, (axes,) = _panels(width, height, grid="x" if height < width / 3 else "y")
    return figure, axes


def _panels(
    width: float,
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    grid: Literal["x", "y", "both"] = "y",
    same_y: bool = True,
) -> tuple[Figure, Sequence[Any]]:
    """An empty picture. No pyplot: its figures would pile up in a long session."""
    figure = Figure(figsize=(width, height), layout="constrained")
    _sign(figure)
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=same_y, squeeze=False).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis=grid, color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, panels


def _set_log_y(axes: Any) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(_log_locator(*axes.get_ylim()))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _log_locator(low: float, high: float) -> LogLocator:
    """Labels of a logarithmic axis: the longer it is, the fewer in each power of ten."""
    if high / low < 5:
        return LogLocator(subs=range(1, 10))
    return LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,))


def _round(seconds: float) -> str:
    """A round number of seconds, as it stands at an axis: 500 µs, 2 ms."""
    for unit, size in (("µs", 1e-6), ("ms", 1e-3)):
        if seconds < size * 999.5:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _sign(figure: Figure) -> list[str]:
    """Write the notes that are in force below a picture, once. Returns those that it carries."""
    written = next((text for text in figure.texts if text.get_gid() == NOTE), None)
    carried = written.get_text().splitlines() if written else []
    notes = list(dict.fromkeys([*carried, *_notes.values()]))
    if written:
        written.set_text("\n".join(notes))
    elif notes:
        # Below the edge: what is shown or saved is cut to what was drawn, not to the canvas.
        figure.text(0.01, -0.01, "\n".join(notes), va="top", fontsize=8, gid=NOTE)
    return notes
