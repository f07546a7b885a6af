"""Two runs side by side: a laptop and AWS, or before and after a change."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import jinja2

from workshop_lib.errors import ResultError
from workshop_lib.paths import RESULTS, display_path
from workshop_lib.results import Measurement, Result, read_result, read_run

TEXT = Path(__file__).parent / "templates" / "comparison.txt"
END = NormalDist().inv_cdf(0.975)
"""Standard errors from the middle of a 95 % interval to its end."""
MIN_FIGURES = 5
"""Fewer figures cannot tell how far apart two runs of the same code lie."""
USUAL_SPREAD = 0.2
"""How far they usually do, as a standard deviation of the logarithm of a ratio."""
MAX_LOG = 700.0
"""No ratio is larger than its exponential, about 1e304: more is no number."""
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
    ratio: float | None
    low: float | None
    high: float | None

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

    def __str__(self) -> str:
        """A verdict, then what is telling, in lines of at most 100 characters."""
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
    (here, one), (there, other) = _load(first), _load(second)
    refused, notes = defaultdict(list), list[str]()
    figures, same_services = [], True
    for why, name in _only_in_one(one, other):
        refused[why].append(name)
    for name in sorted(one.keys() & other.keys()):
        ours, theirs = one[name], other[name]
        if why := _objection(ours, theirs):
            refused[why].append(name)
            continue
        for why, figure in _only_in_one(ours.measurements, theirs.measurements):
            refused[why].append(f"{name[:2]} {figure}")
        for figure, measured in ours.measurements.items():
            if figure in theirs.measurements:
                figures.append((name, figure, measured, theirs.measurements[figure]))
        same_services &= ours.services == theirs.services
        notes += _differences(_surroundings(ours), _surroundings(theirs))
    pairs, allowed = _judge(figures, same_services=same_services)
    return Comparison((here, there), pairs, allowed, refused, list(dict.fromkeys(notes)))


def _load(run: str | Path) -> tuple[str, dict[str, Result]]:
    """Where a run is, and its results by notebook, also those of notebooks that failed."""
    place = next((place for place in (Path(run), RESULTS / run) if place.exists()), None)
    if place is None:
        known = sorted((p.name for p in RESULTS.glob("*-*") if p.is_dir()), reverse=True)[:8]
        listed = "".join(f"\n  {name}" for name in known) or " none yet"
        raise ResultError(f"There is no run {str(run)!r}. The newest below results/:{listed}")
    found = {place.stem: read_result(place)} if place.is_file() else read_run(place)
    if not found:
        raise ResultError(f"{place} holds no results of notebooks.")
    return display_path(place.resolve()), found


def _only_in_one(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What only one of both has: why it cannot be compared, and its name."""
    for which, ours, theirs in (("first", first, second), ("second", second, first)):
        yield from ((f"only in the {which} run", name) for name in ours if name not in theirs)


def _objection(first: Result, second: Result) -> str:
    """Why a notebook's two results cannot be compared; empty if they can."""
    for which, result in ("first", first), ("second", second):
        if not result.ok:
            return f"{'interrupted' if result.interrupted else 'failed'} in the {which} run"
    return ", ".join(_differences(_conditions(first), _conditions(second)))


def _conditions(result: Result) -> dict[str, Any]:
    latencies = result.emulated or "none"
    return {"size": result.size, **result.parameters, "latencies": latencies}


def _surroundings(result: Result) -> dict[str, Any]:
    services = {
        kind: f"{service.get('label')} {service.get('version')}".strip()
        for kind, service in result.services.items()
    }
    at_once = {"notebooks at a time": result.workers}
    return services | at_once | result.machine | result.versions


def _differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What is not the same in both."""
    every = [(name, first.get(name, "none"), second.get(name, "none")) for name in first | second]
    return [f"{name}: first {a}, second {b}" for name, a, b in every if a != b]


def _judge(
    figures: list[tuple[str, str, Measurement, Measurement]], *, same_services: bool
) -> tuple[list[Pair], float]:
    """The pairs with their intervals, and the ratio that is left to the runs."""
    ratios = [_ratio(first, second) for *_, first, second in figures]
    logs = [abs(math.log(ratio)) for ratio, error in ratios if ratio and error]
    spread = USUAL_SPREAD
    if same_services and len(logs) >= MIN_FIGURES:
        spread = median(logs) / NormalDist().inv_cdf(0.75)
    z = NormalDist().inv_cdf(1 - 0.025 / max(len(logs), 1))
    pairs = []
    for figure, (ratio, error) in zip(figures, ratios, strict=True):
        low = high = None
        if ratio and error:
            times = _exp(math.hypot(z * error, MAX_SPREADS * spread))
            low, high = ratio / times, ratio * times
        pairs.append(Pair(*figure, ratio, low, high))
    return pairs, _exp(MAX_SPREADS * spread)


def _exp(logarithm: float) -> float:
    return math.exp(min(logarithm, MAX_LOG))


def _ratio(first: Measurement, second: Measurement) -> tuple[float | None, float]:
    """Second by first, and the standard error of its logarithm.

    None where they cannot be divided; 0 where a figure has no interval above 0.
    """
    try:
        ratio = (second / first).number
    except (TypeError, ArithmeticError, ResultError):
        return None, 0.0
    ends = [(figure.low or 0, figure.high or 0) for figure in (first, second)]
    if ratio <= 0 or min(map(min, ends)) <= 0:
        return ratio, 0.0
    return ratio, math.hypot(*(math.log(high / low) / (2 * END) for low, high in ends))
