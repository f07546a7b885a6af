"""Two runs side by side: a laptop and AWS, or before and after a change."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

from markupsafe import escape

from workshop_lib.errors import ResultError
from workshop_lib.paths import CHECKOUT, display_path
from workshop_lib.results import (
    Measurement,
    Result,
    format_latency,
    format_value,
    read_result,
    read_run,
)

RESULTS = CHECKOUT / "results"
MAX_LISTED = 8
WIDTH = 100
LINE = "{:<40.40} {:>12.12} {:>12.12} {:>7.7} {:>17.17} {}"
END = NormalDist().inv_cdf(0.975)
"""Standard errors from the middle of a 95 % interval to its end."""
MIN_FIGURES = 5
"""Fewer figures cannot tell how far apart two runs of the same code lie."""
USUAL_SPREAD = 0.2
"""How far they usually do, as a standard deviation of the logarithm of a ratio."""
MAX_SPREADS = 5
"""What differs lies outside of so many spreads. In simulated comparisons of the same code, by 20
figures with normal errors, the farthest of them does in fewer than 1 of 100."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure in both runs.

    Attributes:
        notebook, name: which figure.
        first, second: it in each run.
        ratio: second by first; None for texts, truth values, and where the first is 0.
        low, high: ends of an interval of the ratio that holds for all figures together and allows
            for the spread between runs; None unless both figures have an interval of their own.

    """

    notebook: str
    name: str
    first: Measurement
    second: Measurement
    ratio: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def apart(self) -> bool:
        """Whether the two differ by more than these runs explain."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high

    @property
    def telling(self) -> bool:
        """Whether it has an interval, or is a count, a text or a truth value that changed."""
        first, second = self.first.value, self.second.value
        return self.low is not None or (not isinstance(first, float) and first != second)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two runs have in common, and what they have not.

    Attributes:
        labels: where they are.
        pairs: the figures that can be compared, by notebook.
        allowed: the ratio, either way, that is put down to the runs and not to the code.
        refused: what cannot be compared, by why.
        notes: differences that do not stand in the way, such as another machine: to know.

    """

    labels: tuple[str, str]
    pairs: list[Pair]
    allowed: float
    refused: dict[str, list[str]]
    notes: list[str]

    @property
    def summary(self) -> str:
        """What can be said of all of it, in one line."""
        known, apart = self._known, sum(pair.apart for pair in self.pairs)
        if not self.pairs:
            return "Nothing can be compared."
        if apart:
            return f"{apart} of {known} figures with an interval differ by more than chance."
        return f"No difference that these runs can show, in {known} figures with an interval."

    @property
    def _known(self) -> int:
        return sum(pair.low is not None for pair in self.pairs)

    def __str__(self) -> str:
        """The summary, then what is telling, in lines of at most 100 characters."""
        how = (
            f"One by one, {format_value(self._known / 20)} of them would seem to differ by chance. "
            "The intervals below hold for all together, and leave a factor of "
            f"{format_value(self.allowed)} to what differs from run to run."
        )
        texts = [self.summary] + [how] * bool(self._known)
        texts += [f"first: {self.labels[0]}", f"second: {self.labels[1]}"]
        texts += [f"note: {note}" for note in self.notes]
        texts += [f"not compared, {why}: {', '.join(what)}" for why, what in self.refused.items()]
        lines = [textwrap.fill(text, WIDTH, subsequent_indent="  ") for text in texts]
        if self.pairs:
            lines.append(LINE.format("figure", "first", "second", "ratio", "interval", "").rstrip())
            lines += [_line(pair) for pair in self.pairs if pair.telling]
            rest = sum(not pair.telling for pair in self.pairs)
            lines.append(f"{rest} more figures, without an interval or unchanged: --json has them")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        pairs = [{**asdict(pair), "apart": pair.apart} for pair in self.pairs]
        return {"summary": self.summary, **asdict(self), "pairs": pairs}


def compare_runs(first: str | Path, second: str | Path) -> Comparison:
    """Compare the figures of two runs, where they can be compared.

    They can if the same notebook passed in both, at the same size, with the same parameters and
    the same emulated latencies; a figure has a ratio if it has the same unit in both.

    Two runs of the same code differ, too: by chance, and by what else the machine did. So a figure
    counts as different only outside of an interval that holds for all figures together (Bonferroni)
    and allows for the spread between the runs. That is estimated from all figures where both runs
    used the same services: most of them stay what they were.

    Args:
        first, second: a folder of results, the name of one below results/, or one result file.

    Raises:
        ResultError: there is no such run, it holds no results, or it is the same one twice.

    """
    places = [_find(run).resolve() for run in (first, second)]
    if places[0] == places[1]:
        raise ResultError(f"{first} and {second} are the same run: there is nothing to compare.")
    one, other = (_load(place) for place in places)
    pairs, services, machines = [], [], []
    refused: dict[str, list[str]] = {}
    for name in sorted({*one, *other}):
        if why := _objection(one.get(name), other.get(name)):
            refused.setdefault(why, []).append(name)
            continue
        both = (one[name], other[name])
        ours, theirs = (result.measurements for result in both)
        pairs += [Pair(name, n, ours[n], theirs[n]) for n in ours if n in theirs]
        for figure in ours.keys() ^ theirs.keys():
            refused.setdefault("in one run only", []).append(f"{name[:2]} {figure}")
        services += _differences(*({k: _label(s) for k, s in r.services.items()} for r in both))
        machines += _differences(
            *({"notebooks at a time": r.workers, **r.machine, **r.versions} for r in both)
        )
    judged, allowed = _judge(pairs, same_services=not services)
    labels = (display_path(places[0]), display_path(places[1]))
    return Comparison(labels, judged, allowed, refused, list(dict.fromkeys(services + machines)))


def _find(run: str | Path) -> Path:
    for place in (Path(run), RESULTS / run):
        if place.exists():
            return place
    known = sorted((p.name for p in RESULTS.glob("*") if p.is_dir()), reverse=True)[:MAX_LISTED]
    listed = "".join(f"\n  {name}" for name in known) or " none yet"
    raise ResultError(f"There is no run {str(run)!r}. The newest below results/:{listed}")


def _load(place: Path) -> dict[str, Result]:
    """The results of a run by notebook, also those of notebooks that failed."""
    if place.is_file():
        return {place.stem: read_result(place)}
    if found := read_run(place):
        return found
    raise ResultError(f"{place} holds no results of notebooks.")


def _objection(one: Result | None, other: Result | None) -> str:
    """Why a notebook's two results cannot be compared; empty if they can."""
    if one is None or other is None:
        return f"only in the {'second' if one is None else 'first'} run"
    if not (one.ok and other.ok):
        return f"failed in the {'second' if one.ok else 'first'} run"
    how = [
        {"size": r.size, **r.parameters, "latencies": "; ".join(map(format_latency, r.latencies))}
        for r in (one, other)
    ]
    return ", ".join(_differences(*how))


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What is not the same in both."""
    return [
        f"{name}: first {_shown(ours.get(name))}, second {_shown(theirs.get(name))}"
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]


def _shown(value: Any) -> str:
    """A parameter or another condition of a run; 0 is one, an empty text is not."""
    return "none" if value is None or value == "" else str(value)


def _label(service: Mapping[str, Any]) -> str:
    emulated = " (emulated)" if service.get("emulated") else ""
    return f"{service.get('label')} {service.get('version')}".strip() + emulated


def _judge(pairs: list[Pair], *, same_services: bool) -> tuple[list[Pair], float]:
    """The pairs with their ratios and intervals, and the ratio that is left to the runs."""
    pairs = [replace(pair, ratio=_ratio(pair)) for pair in pairs]
    known = [(n, math.log(p.ratio or 1), e) for n, p in enumerate(pairs) if (e := _error(p))]
    spread = USUAL_SPREAD
    if same_services and len(known) >= MIN_FIGURES:
        spread = median(abs(log) for _, log, _ in known) / NormalDist().inv_cdf(0.75)
    z = NormalDist().inv_cdf(1 - 0.025 / max(len(known), 1))
    for n, log, error in known:
        half = math.hypot(z * error, MAX_SPREADS * spread)
        pairs[n] = replace(pairs[n], low=math.exp(log - half), high=math.exp(log + half))
    return pairs, math.exp(MAX_SPREADS * spread)


def _ratio(pair: Pair) -> float | None:
    try:
        return (pair.second / pair.first).number
    except (TypeError, ArithmeticError):
        return None


def _error(pair: Pair) -> float:
    """The standard error of the logarithm of the ratio; 0 if a figure has no interval above 0."""
    ends = [(figure.low or 0, figure.high or 0) for figure in (pair.first, pair.second)]
    if min(min(ends)) <= 0 or not pair.ratio or pair.ratio < 0:
        return 0.0
    return math.hypot(*(math.log(high / low) / (2 * END) for low, high in ends))


def _line(pair: Pair) -> str:
    """A line of the table; what is too long for its column is cut."""
    name, mark = f"{pair.notebook[:2]} {pair.name}", "differs" if pair.apart else ""
    ratio = "" if pair.ratio is None else f"{pair.ratio:.3g}"
    interval = "" if pair.low is None else f"{pair.low:.2g} – {pair.high:.2g}"
    return LINE.format(name, str(pair.first), str(pair.second), ratio, interval, mark).rstrip()
