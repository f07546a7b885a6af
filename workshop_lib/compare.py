"""Two runs side by side: a laptop and AWS, or before and after a change."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import jinja2

from workshop_lib.errors import ResultError
from workshop_lib.paths import RESULTS, display_path
from workshop_lib.results import Measurement, Result, format_latency, read_result, read_run

TEXT = Path(__file__).parent / "templates" / "comparison.txt"
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
        known = sum(pair.low is not None for pair in self.pairs)
        apart = [pair for pair in self.pairs if pair.apart]
        if not self.pairs:
            return "Nothing can be compared."
        if not known:
            return "No figure has an interval: these runs cannot tell a change from chance."
        if not apart:
            return f"No difference that these two runs can show, in {known} figures."
        most = max(apart, key=lambda pair: abs(math.log(pair.ratio or 1)))
        return (
            f"{len(apart)} of {known} figures {'differs' if len(apart) == 1 else 'differ'} by more "
            f"than chance, most of all {most.notebook[:2]} {most.name} ({most.ratio:.3g} times the "
            "first)."
        )

    @property
    def telling(self) -> list[Pair]:
        """Pairs with an interval, and counts, texts and truth values that changed."""
        values = [(pair, pair.first.value, pair.second.value) for pair in self.pairs]
        return [
            pair for pair, first, second in values
            if pair.low is not None or (not isinstance(first, float) and first != second)
        ]  # fmt: skip

    def __str__(self) -> str:
        """The summary, then what is telling, in lines of at most 100 characters."""
        language = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # noqa: S701 -- no HTML
        language.filters["fill"] = lambda text: textwrap.fill(text, 100, subsequent_indent="  ")
        return language.from_string(TEXT.read_text(encoding="utf-8")).render(it=self)


def compare_runs(first: str | Path, second: str | Path) -> Comparison:
    """Compare the figures of two runs, where they can be compared.

    They can if the same notebook passed in both, at the same size, with the same parameters and
    the same emulated latencies; a figure has a ratio if it has the same unit in both.

    Runs of the same code differ as well: by chance, and by what else the machine did. A figure
    counts as different only outside of an interval that holds for all figures together (Bonferroni)
    and allows for the spread between the runs. That is estimated from all figures where both runs
    used the same services: most of them stay what they were.

    Args:
        first, second: a folder of results, the name of one below results/, or one result file.

    Raises:
        ResultError: there is no such run, or it holds no results.

    """
    places = [_find(run).resolve() for run in (first, second)]
    one, other = map(_load, places)
    pairs, services, machines = [], [], []
    refused: dict[str, list[str]] = {}
    for name in sorted({*one, *other}):
        if why := _objection(one.get(name), other.get(name)):
            refused.setdefault(why, []).append(name)
            continue
        ours, theirs = one[name], other[name]
        both = ours.measurements | theirs.measurements
        for figure, found in both.items():
            if figure in ours.measurements and figure in theirs.measurements:
                pairs.append(_pair(name, figure, ours.measurements[figure], found))
            else:
                which = "first" if figure in ours.measurements else "second"
                known = found.interval or f"n = {found.n:,}"
                text = f"{name[:2]} {figure}: {found} ({known})"
                refused.setdefault(f"only in the {which} run", []).append(text)
        services += _differences(_services(ours), _services(theirs))
        machines += _differences(_machine(ours), _machine(theirs))
    judged, allowed = _judge(pairs, same_services=not services)
    labels = (display_path(places[0]), display_path(places[1]))
    return Comparison(labels, judged, allowed, refused, list(dict.fromkeys(services + machines)))


def _find(run: str | Path) -> Path:
    for place in (Path(run), RESULTS / run):
        if place.exists():
            return place
    known = sorted((p.name for p in RESULTS.glob("*-*") if p.is_dir()), reverse=True)[:8]
    listed = "".join(f"\n  {name}" for name in known) or " none yet"
    raise ResultError(f"There is no run {str(run)!r}. The newest below results/:{listed}")


def _load(place: Path) -> dict[str, Result]:
    """The results of a run by notebook, also those of notebooks that failed."""
    found = {place.stem: read_result(place)} if place.is_file() else read_run(place)
    if not found:
        raise ResultError(f"{place} holds no results of notebooks.")
    return found


def _objection(one: Result | None, other: Result | None) -> str:
    """Why a notebook's two results cannot be compared; empty if they can."""
    if one is None or other is None:
        return f"only in the {'second' if one is None else 'first'} run"
    for which, result in ("first", one), ("second", other):
        if not result.ok:
            return f"{'interrupted' if result.interrupted else 'failed'} in the {which} run"
    return ", ".join(_differences(_conditions(one), _conditions(other)))


def _conditions(result: Result) -> dict[str, Any]:
    latencies = "; ".join(map(format_latency, result.latencies))
    return {"size": result.size, **result.parameters, "latencies": latencies or "none"}


def _services(result: Result) -> dict[str, Any]:
    return {
        kind: f"{service.get('label')} {service.get('version')}".strip()
        for kind, service in result.services.items()
    }


def _machine(result: Result) -> dict[str, Any]:
    return {"notebooks at a time": result.workers, **result.machine, **result.versions}


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What is not the same in both."""
    every = [
        (name, first.get(name, "none"), second.get(name, "none")) for name in {**first, **second}
    ]
    return [f"{name}: first {a}, second {b}" for name, a, b in every if a != b]


def _pair(notebook: str, name: str, first: Measurement, second: Measurement) -> Pair:
    try:
        return Pair(notebook, name, first, second, (second / first).number)
    except (TypeError, ArithmeticError, ResultError):
        return Pair(notebook, name, first, second)


def _judge(pairs: list[Pair], *, same_services: bool) -> tuple[list[Pair], float]:
    """The pairs with their intervals, and the ratio that is left to the runs."""
    errors = [_error(pair) for pair in pairs]
    logs = [abs(math.log(pair.ratio or 1)) for pair, e in zip(pairs, errors, strict=True) if e]
    spread = USUAL_SPREAD
    if same_services and len(logs) >= MIN_FIGURES:
        spread = median(logs) / NormalDist().inv_cdf(0.75)
    z = NormalDist().inv_cdf(1 - 0.025 / max(len(logs), 1))
    judged = []
    for pair, error in zip(pairs, errors, strict=True):
        times = math.exp(math.hypot(z * error, MAX_SPREADS * spread))
        known = error and pair.ratio
        judged.append(replace(pair, low=known / times, high=known * times) if known else pair)
    return judged, math.exp(MAX_SPREADS * spread)


def _error(pair: Pair) -> float:
    """The standard error of the logarithm of the ratio; 0 if a figure has no interval above 0."""
    ends = [(figure.low or 0, figure.high or 0) for figure in (pair.first, pair.second)]
    if min(min(ends)) <= 0 or not pair.ratio or pair.ratio < 0:
        return 0.0
    return math.hypot(*(math.log(high / low) / (2 * END) for low, high in ends))
