"""Timing done fairly: warm-up apart, order shuffled, percentiles with intervals (pure arithmetic).

Percentiles are nearest-rank: p99 is the smallest measured value that at least 99 % of the samples
do not exceed (Hyndman and Fan 1996, definition 1). Their intervals come from order statistics and
assume nothing about the distribution (Hahn, Meeker and Escobar, "Statistical Intervals", 2017,
section 5.2).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from time import perf_counter, perf_counter_ns, sleep
from typing import TypeVar

T = TypeVar("T")

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Samples:
    """Durations of one thing, done many times.

    Attributes:
        name: what was timed.
        seconds: each duration, in the order in which they were measured.

    """

    name: str
    seconds: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.seconds)

    def percentile(self, q: float) -> float:
        """The q-th percentile in seconds, for 0 < q <= 100.

        >>> Samples("ten", tuple(range(1, 11))).percentile(90)
        9
        """
        return percentile(self.seconds, q)

    @property
    def median(self) -> float:
        """p50, seconds."""
        return self.percentile(50)

    @property
    def mean(self) -> float:
        """The arithmetic mean, seconds."""
        return math.fsum(self.seconds) / len(self.seconds)

    def interval(self, q: float = 50) -> tuple[float, float]:
        """A 95 % confidence interval of the q-th percentile, seconds."""
        return percentile_interval(self.seconds, q)


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile by nearest rank.

    Raises:
        ValueError: no values, or q not in (0, 100].

    """
    if not values:
        raise ValueError("a percentile of no values does not exist: measure at least one")
    if not 0 < q <= 100:
        raise ValueError(f"a percentile lies in (0, 100]; {q} does not")
    return sorted(values)[math.ceil(q / 100 * len(values)) - 1]


def percentile_interval(
    values: Sequence[float], q: float = 50, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """An interval that holds the q-th percentile with about this confidence.

    Of n samples, the number below the true percentile is binomial; the interval's ends are the
    order statistics that far (in standard deviations, by the normal approximation) from n·q. With
    few samples it is as wide as the data.

    Returns:
        Its ends, in the unit of the values.

    """
    ordered = sorted(values)
    n, p = len(ordered), q / 100
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    spread = z * math.sqrt(n * p * (1 - p))
    low = max(math.floor(n * p - spread), 1)
    high = min(math.ceil(n * p + spread) + 1, n)
    return ordered[low - 1], ordered[high - 1]


def time_shuffled(
    subjects: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warm_up: int = 5,
    seed: int = 0,
) -> dict[str, Samples]:
    """Time several things against each other, each `repeats` times, in a shuffled order.

    Shuffling spreads whatever else the machine does over all of them alike. The first `warm_up`
    calls of each are made but not counted.

    Args:
        subjects: what to call, by name. A call that raises ends the measurement with its error.
        repeats: calls counted for each.
        warm_up: calls before that.
        seed: of the shuffling.

    Returns:
        Samples by name, in the order given.

    """
    for call in subjects.values():
        for _ in range(warm_up):
            call()
    order = list(subjects) * repeats
    random.Random(seed).shuffle(order)
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for name in order:
        call = subjects[name]
        started = perf_counter_ns()
        call()
        found[name].append((perf_counter_ns() - started) / 1e9)
    return {name: Samples(name, tuple(seconds)) for name, seconds in found.items()}


def on_schedule(times: Sequence[float], call: Callable[[int], T]) -> list[T]:
    """Make one call after another, each at its time or, if the one before it took longer, late.

    Args:
        times: when, in seconds from now, ascending.
        call: gets the number of the call, from 0.

    Returns:
        What the calls returned, in order.

    """
    answers, started = [], perf_counter()
    for number, planned in enumerate(times):
        ahead = planned - (perf_counter() - started)
        if ahead > 0:
            sleep(ahead)
        answers.append(call(number))
    return answers


def speed_up(slow: Samples, fast: Samples) -> float:
    """How many times shorter the fast one's median is.

    >>> speed_up(Samples("slow", (4.0,)), Samples("fast", (2.0,)))
    2.0
    """
    return slow.median / fast.median


def speed_up_interval(slow: Samples, fast: Samples, resamples: int = 500) -> tuple[float, float]:
    """A 95 % interval for `speed_up`, by the percentile bootstrap (Efron and Tibshirani 1993).

    Returns:
        Its ends; deterministic, because the resampling is seeded.

    """
    rng = random.Random(0)
    ratios = sorted(
        percentile(rng.choices(slow.seconds, k=len(slow)), 50)
        / percentile(rng.choices(fast.seconds, k=len(fast)), 50)
        for _ in range(resamples)
    )
    return percentile(ratios, 2.5), percentile(ratios, 97.5)


def improvement(slow: Samples, fast: Samples) -> float:
    """The share of the slow one's median that is saved, as a fraction; negative if it got slower.

    >>> improvement(Samples("slow", (4.0,)), Samples("fast", (1.0,)))
    0.75
    """
    return 1 - fast.median / slow.median


def readable(seconds: float) -> str:
    """A duration in the unit that a person would choose.

    >>> readable(0.0000271), readable(0.0042), readable(2.5)
    ('27.1 µs', '4.20 ms', '2.50 s')
    """
    if seconds < 0.001:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
