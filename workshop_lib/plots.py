"""The workshop's pictures: colour-blind-safe, markers as well as colours, units on every axis."""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from IPython.display import display
from matplotlib import rc_context, rcParamsDefault
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from workshop_lib.measure import P99_SAMPLES, Moment, Samples, readable

if TYPE_CHECKING:
    from workshop_lib.dsql import Step

COLOURS = ("#555555", "#AA3377", "#999933", "#332288", "#CC6677", "#888888")
"""Series that are no source of answers: a source's colour would say what it does not mean. (Of Paul
Tol's schemes "bright" and "muted", and grey.)"""
WARNING = "#BF5300"
"""Okabe and Ito's vermilion, darkened: it also colours words."""
STEP_WIDTH = 96
"""Characters that fit side by side in a picture of transactions."""
LEGEND_WIDTH = 75
"""Characters of a legend that fit side by side below a picture."""
MARKERS = ("o", "s", "^", "D", "v", "P")
HATCHES = ("", "//", "..", "xx", "--", "++")
LOOKS = {
    "cache": ("#0072B2", "o"),
    "database": ("#E69F00", "s"),
    "stale": ("#56B4E9", "^"),
    "dropped": ("#CC79A7", "v"),
    "error": ("#000000", "X"),  # to readers who do not see red, red and orange look alike
    "store": ("#009E73", "D"),
}
"""Colour and marker of an answer, by where it came from. (Okabe and Ito 2008, "Color Universal
Design".)"""
SOURCE_OF = {
    "with a cache": "cache",
    "without a cache": "database",
    "no cache": "database",
    "from the cache": "cache",
    "from the database": "database",
    "requests that reach the database": "database",
    "answers out of date": "stale",
}
"""Series that take the looks of a source."""
MAX_DOTS = 60
"""So many dots on one line can be told apart."""
PLAIN = "{x:,g}"
"""Numbers at an axis."""
BESIDE: dict[str, Any] = {
    "frameon": False, "fontsize": 8, "loc": "upper left", "bbox_to_anchor": (1, 1)
}  # fmt: skip
"""A legend to the right of a panel."""
DARK = """<style>
[data-jp-theme-light="false"] .workshop-picture, [data-theme="dark"] .workshop-picture {
  filter: invert(0.93) hue-rotate(180deg) !important }
[data-theme="dark"] .text_html:has(.workshop-picture) { background: none !important }
</style>"""
"""JupyterLab's dark theme, and that of the site, show a picture light on dark; hues stay."""
NOTE = "note"
Grid = Literal["x", "y", "both"]
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
    about = {"Description": alt}
    figure.savefig(buffer, dpi=110, facecolor="white", bbox_inches="tight", metadata=about)
    display(_Picture(buffer.getvalue(), alt))


@dataclass(frozen=True, slots=True, repr=False)
class _Picture:
    """A PNG with its text, also as a page: of an image alone, JupyterLab does not show the text."""

    png: bytes
    alt: str

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, Any]]:
        png = base64.b64encode(self.png).decode()
        image = f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{png}"'
        page = f'{DARK}{image} class="workshop-picture">'
        return {"image/png": png, "text/html": page}, {"image/png": {"alt": self.alt}}

    def __repr__(self) -> str:
        return self.alt


@_our_look()
def latencies(samples: Mapping[str, Samples], title: str) -> Figure:
    """p50 with its 95 % interval, p95 and p99, one line a subject; dots for some of the samples.

    Args:
        samples: by the name that the line gets. What follows the last comma of a name is its kind
            ("by key, cache"); lines of one kind share a colour and a marker.
        title: of the picture.

    """
    figure, axes = _canvas(1.1 + 0.85 * len(samples), title, grid="x")
    kinds = list(dict.fromkeys(name.rpartition(", ")[2] for name in samples))
    for line, (name, found) in enumerate(samples.items()):
        kind = name.rpartition(", ")[2]
        colour, marker = _look(kinds.index(kind), kind)
        dots = found.seconds[:: math.ceil(len(found) / MAX_DOTS)]
        # Spread over the line's height in a fixed pattern, so that none hides another.
        heights = [line - 0.28 + 0.56 * (i * 0.618 % 1) for i in range(len(dots))]
        axes.scatter(dots, heights, 22, colour, marker=marker, alpha=0.8, lw=0)
        axes.plot(found.interval(50), [line, line], color="black", linewidth=3, zorder=3)
        axes.plot(found.median, line, "k|", markersize=20, markeredgewidth=2.5, zorder=4)
        for q, style in ((95, ":"), (99, "--")) if len(found) >= P99_SAMPLES else ((95, ":"),):
            axes.vlines(found.percentile(q), line - 0.36, line + 0.36, "black", style, lw=1.2)
        place = (found.median, line - 0.42)
        axes.annotate(f"p50 {readable(found.median)}", place, ha="center", va="bottom", fontsize=9)
    _name_rows(axes, [f"{name}\n(n = {len(found):,})" for name, found in samples.items()])
    axes.set_xscale("log")
    axes.margins(x=0.1)  # room for the words at the first and the last dot
    _label_log(axes.xaxis, EngFormatter("s"))
    axes.set_xlabel(
        "response time (log scale)\nbar: p50 and its 95 % interval, dotted: p95, dashed: p99 (of "
        f"{P99_SAMPLES} or more); dots: {MAX_DOTS} samples at most",
        fontsize=9,
    )
    return figure


@_our_look()
def requests(seconds: Sequence[float], sources: Sequence[str], title: str) -> Figure:
    """One bar a request, in order; colour and hatch tell where the answer came from.

    Args:
        seconds: of each request.
        sources: "database", "cache" or "store", one for each request.
            Named on the axis if each occurs once.
        title: of the picture.

    """
    figure, axes = _canvas(3.4, title, "request", "response time (ms)")
    for number, kind in enumerate(dict.fromkeys(sources)):
        places = [i for i, source in enumerate(sources, 1) if source == kind]
        found = [seconds[i - 1] * 1e3 for i in places]
        look = _filling(number, f"answered by the {kind} ({len(found)})")
        drawn = axes.bar(places, found, **look | {"color": LOOKS[kind][0]})
        axes.bar_label(drawn, fmt="{:.3g}", fontsize=8, padding=2)
    each_once = len(set(sources)) == len(sources)
    axes.set_xticks(range(1, len(seconds) + 1), sources if each_once else None)
    axes.yaxis.set_major_formatter(PLAIN)
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
) -> Figure:
    """Bars side by side: one group a label, one colour and hatch a series.

    Args:
        groups: the series by name; each holds one value for each label.
        labels: what stands under the groups.
        title: of the picture.
        x_label, y_label: with units.

    """
    figure, axes = _canvas(3.6, title, x_label, y_label)
    width = 0.8 / len(groups)
    for number, (name, values) in enumerate(groups.items()):
        places = [i + width * (number - (len(groups) - 1) / 2) for i in range(len(labels))]
        axes.bar(places, values, width, **_filling(number, name))
    axes.set_xticks(range(len(labels)), labels)
    axes.yaxis.set_major_formatter(PLAIN)
    if len(groups) > 1:  # below the axis: within it, it would cover bars
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
    figure, axes = _canvas(1.2 + 0.7 * len(found), title, x_label)
    rows = {name: row for row, name in enumerate(found)}
    for name, (value, low, high) in found.items():
        axes.plot([low, high], [rows[name]] * 2, color="black", linewidth=2)
        axes.plot(value, rows[name], "o", color=COLOURS[0], markersize=9)
        axes.annotate(f"{value:.3g} ×", (value, rows[name] - 0.14), ha="center", va="bottom")
    marks = {name: (guess, guess) for name, guess in (guesses or {}).items()}
    for known, label, offset, look in (
        (published or {}, "published", 0.17, {"color": "#999999", "linewidth": 5}),
        (marks, "your guess", 0.34, {"color": WARNING, "marker": "D", "fillstyle": "none"}),
    ):
        for name, ends in known.items():
            axes.plot(ends, [rows[name] + offset] * 2, **look)
            place = (ends[1], rows[name] + offset)
            axes.annotate(f"   {label}", place, va="center", fontsize=8)
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    _name_rows(axes, list(found))
    axes.set_xscale("log")
    axes.margins(x=0.15)
    _label_log(axes.xaxis, PLAIN)
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
    from_zero: bool = True,
) -> Figure:
    """Lines over a common axis, told apart by colour and marker; hollow what is not measured.

    Args:
        x: the common values.
        series: by name, one value for each x.
        title: of the picture.
        x_label, y_label: with units.
        log_x, log_y: a logarithmic axis.
        from_zero: the y axis begins at 0; if not, a line marks 0, and values may be below it.

    """
    figure, axes = _canvas(4.1 if len(series) > 1 else 3.8, title, x_label, y_label)
    for number, (name, values) in enumerate(series.items()):
        look = _stroke(number, name, marked=len(x) <= 40)
        on_paper = {"markerfacecolor": "white"} if re.search("model|formula", name) else {}
        axes.plot(x, values, **look, **on_paper, markersize=7)
    if log_x:
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{value:,g}" for value in x])
        axes.xaxis.set_minor_locator(NullLocator())
    _scale_y(axes, log=log_y, from_zero=from_zero)
    if not from_zero:
        axes.axhline(0, color="black", linewidth=1)
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
    figure, all_axes = _panels(0.9 + 2.3 * len(panels), title, rows=len(panels))
    for axes, (name, moments) in zip(all_axes, panels.items(), strict=True):
        start = min(m.at for m in moments)
        for low, high in (spans or {}).get(name, ()):
            axes.axvspan(low - start, high - start, color="#dddddd", zorder=0)
        for source, (colour, marker) in LOOKS.items():
            if chosen := [m for m in moments if m.source == source]:
                x, y = [m.at - start for m in chosen], [m.seconds for m in chosen]
                axes.scatter(x, y, 16, colour, marker=marker, alpha=0.6, lw=0,
                             label=f"{source} ({len(chosen):,})")  # fmt: skip
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(EngFormatter("s"))
        axes.set_title(name, fontsize=10, loc="left")
        axes.legend(**BESIDE, markerscale=1.6)
    all_axes[-1].set_xlabel(
        "when a request was due (s after the first)" + "; grey: trouble" * bool(spans)
    )
    figure.supylabel("wait for the answer (log scale)", fontsize=10)
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
        marks: what happened when, in order: an upright line with a word to it.

    """
    figure, all_axes = _panels(1.6 + 1.8 * len(panels), title, rows=len(panels), same_y=False)
    marks = marks or {}
    for axes, (label, series) in zip(all_axes, panels.items(), strict=True):
        for number, (name, (x, y)) in enumerate(series.items()):
            look = _stroke(number, name) | ({"linestyle": "none"} if label in dots else {})
            axes.plot(x, y, **look, markersize=5)
        _scale_y(axes, log=log_y)
        axes.set_ylabel(label, fontsize=9)
        for at in marks.values():
            axes.axvline(at, color="#888888", linewidth=1, linestyle=":")
        if len(series) > 1:
            axes.legend(**BESIDE)
    for word, at in marks.items():  # above, where no curve is; the last one to its right
        side = "left" if at == max(marks.values()) else "right"
        all_axes[0].annotate(word, (at, 1.01), xycoords=("data", "axes fraction"), fontsize=8,
                             ha=side, va="bottom")  # fmt: skip
    all_axes[-1].set_xlabel(x_label)
    all_axes[-1].xaxis.set_major_formatter(PLAIN)
    return figure


@_our_look()
def waits(runs: Mapping[str, Sequence[float]], title: str) -> Figure:
    """How long each of many simultaneous requests waited: one line a request, shortest first.

    Args:
        runs: the waits of each run in seconds, by its panel's title.
        title: of the picture.

    """
    figure, all_axes = _panels(4.2, title, columns=len(runs), grid="x")
    for number, (axes, (name, seconds)) in enumerate(zip(all_axes, runs.items(), strict=True)):
        rows = range(1, len(seconds) + 1)
        ended = [wait * 1e3 for wait in sorted(seconds)]
        axes.hlines(rows, 0, ended, color=COLOURS[number], linewidth=1.2)
        axes.plot(ended, rows, MARKERS[number], color=COLOURS[number], markersize=4)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("time since all asked (ms)")
        axes.set_xlim(left=0)
    all_axes[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    all_axes[0].set_ylabel("readers, by when they were served")
    return figure


@_our_look()
def transactions(steps: Sequence[Step], title: str) -> Figure:
    """What each session of `Workshop.run_interleaved` sent and got: a column each, time downwards.

    Args:
        steps: in order.
        title: of the picture.

    """
    sessions = list(dict.fromkeys(step.session for step in steps))
    width = STEP_WIDTH // len(sessions)
    said = [textwrap.wrap(f"{n}. {step.statement}", width) for n, step in enumerate(steps, 1)]
    got = [textwrap.wrap(f"→ {step.outcome}", width) for step in steps]
    heights = [len(a) + len(b) + 1 for a, b in zip(said, got, strict=True)]
    tops = list(itertools.accumulate(heights, initial=0))
    figure, axes = _canvas(0.8 + 0.165 * tops[-1], title)
    axes.set(xlim=(0, len(sessions)), ylim=(tops[-1], -2.5))
    axes.axis("off")
    for column, session in enumerate(sessions):
        axes.text(column + 0.03, -1.2, session, fontsize=11, fontweight="bold", va="center")
        axes.axvline(column + 0.02, color="#dddddd", linewidth=1)
    for step, top, statement, answer in zip(steps, tops, said, got, strict=False):
        column, failed = sessions.index(step.session), bool(step.code)
        marker, size, colour = ("X", 8, WARNING) if failed else ("o", 5, COLOURS[0])
        axes.plot(column + 0.02, top + 0.5, marker, markersize=size, color=colour, clip_on=False)
        look = {"va": "top", "fontsize": 8.5, "family": "monospace"}
        axes.text(column + 0.05, top, "\n   ".join(statement), **look)
        axes.text(column + 0.05, top + len(statement), "   " + "\n     ".join(answer), **look,
                  color=colour if failed else "#555555")  # fmt: skip
    return figure


@_our_look()
def dots(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str, x_label: str) -> Figure:
    """One dot for each repeat, one line a subject; an upright bar marks the median.

    Args:
        panels: by panel, the values of each subject; the subjects are the same in all panels.
        title: of the picture.
        x_label: with its unit.

    """
    lines = max(map(len, panels.values()))
    figure, all_axes = _panels(1.3 + 0.32 * lines, title, columns=len(panels), grid="both")
    for axes, (panel, found) in zip(all_axes, panels.items(), strict=True):
        for row, values in enumerate(found.values()):
            axes.plot(values, [row] * len(values), "o", color=COLOURS[0], alpha=0.5, markersize=6)
            axes.plot(median(values), row, "k|", markersize=18, markeredgewidth=2.5)
        _name_rows(axes, list(found))
        axes.set_title(panel, fontsize=10)
        axes.set_xlabel(x_label)
    return figure


def _canvas(
    height: float, title: str, x_label: str = "", y_label: str = "", grid: Grid = "y"
) -> tuple[Figure, Any]:
    """An empty picture with one panel."""
    figure, (axes,) = _panels(height, "", grid=grid)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def _panels(
    height: float,
    title: str,
    *,
    rows: int = 1,
    columns: int = 1,
    grid: Grid = "y",
    same_y: bool = True,
) -> tuple[Figure, Sequence[Any]]:
    """An empty picture. No pyplot: its figures would pile up in a long session."""
    figure = Figure(figsize=(8.2, height), layout="constrained")
    _sign(figure)
    panels = figure.subplots(rows, columns, sharex=True, sharey=same_y, squeeze=False)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis=grid, color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
    if title:
        figure.suptitle(title)
    return figure, list(panels.flat)


def _filling(number: int, name: str) -> dict[str, Any]:
    """The looks of the bars of one series."""
    colour, _ = _look(number, name)
    hatch = HATCHES[number % len(HATCHES)]
    return {"color": colour, "hatch": hatch, "edgecolor": "white", "label": name}


def _stroke(number: int, name: str, *, marked: bool = True) -> dict[str, Any]:
    """The looks of the line of one series."""
    colour, marker = _look(number, name)
    return {
        "color": colour,
        "marker": marker if marked else None,
        "linestyle": ("-", "--", ":", "-.")[number % 4],
        "alpha": 0.9,
        "label": name,
    }


def _look(number: int, name: str) -> tuple[str, str]:
    """Colour and marker of a series: those of the source that it is named after, if it is."""
    source = name.rpartition(", ")[2]
    source = SOURCE_OF.get(source, source)
    own = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    return LOOKS.get(source, own)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    """Name what stands on each line, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _scale_y(axes: Any, *, log: bool, from_zero: bool = True) -> None:
    if log:
        axes.set_yscale("log")
        _label_log(axes.yaxis, PLAIN)
    else:
        axes.yaxis.set_major_formatter(PLAIN)
        if from_zero:
            axes.set_ylim(bottom=0)


def _label_log(axis: Any, formatter: EngFormatter | str) -> None:
    """Label a logarithmic axis: the longer it is, the fewer labels in each power of ten."""
    low, high = axis.get_view_interval()
    subs = range(1, 10) if high / low < 5 else (1, 2, 5) if high / low < 200 else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(NullFormatter())


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
