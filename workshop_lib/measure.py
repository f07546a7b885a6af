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
from dataclasses import dataclass, replace
from fractions import Fraction
from statistics import NormalDist
from time import perf_counter, perf_counter_ns, sleep, time
from typing import TypeVar

from workshop_lib.errors import WorkshopError

T = TypeVar("T")

MIN_FOR_INTERVAL = 6
"""Of fewer samples even smallest and largest hold the median less often than 95 times of 100: with
n of them it is 1 - 2 / 2^n."""
P99_SAMPLES = 500
"""Of fewer samples, a 99th percentile is the luck of the largest few."""
BLOCK = 10
"""Calls of one subject in a row: enough to settle, few enough to shuffle."""
BLOCKS = 30
"""So many blocks at least: from fewer, a block bootstrap gives intervals that are too narrow."""
RESAMPLES = 400
MIN_BLOCKS = 3
"""Resamples of fewer blocks are nearly all alike, and their intervals far too narrow."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Durations of one thing, done many times.

    Attributes:
        name: what was timed.
        seconds: each duration, in the order in which they were measured.
        block: how many of them were measured in one go; these are alike, so intervals take them
            together.

    """

    name: str
    seconds: tuple[float, ...]
    block: int = 1

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
        """A 95 % confidence interval of the q-th percentile, seconds.

        Independent samples: by order statistics. Samples in blocks: by resampling whole blocks
        (the block bootstrap of Künsch 1989), seeded and so reproducible. With fewer than three
        blocks there is nothing to resample: they count as independent, and the interval is rather
        too narrow.
        """
        if self._unit == 1:
            return percentile_interval(self.seconds, q)
        rng = random.Random(0)
        found = sorted(percentile(self.resampled(rng), q) for _ in range(RESAMPLES))
        return percentile(found, 2.5), percentile(found, 97.5)

    def resampled(self, rng: random.Random) -> list[float]:
        """As many durations again, drawn by whole blocks with replacement.

        One by one where there are fewer than three blocks.
        """
        size = self._unit
        blocks = [self.seconds[at : at + size] for at in range(0, len(self.seconds), size)]
        return [seconds for block in rng.choices(blocks, k=len(blocks)) for seconds in block]

    @property
    def _unit(self) -> int:
        """How many durations are drawn together."""
        return self.block if len(self.seconds) >= MIN_BLOCKS * self.block else 1


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile by nearest rank.

    Its rank is exact, also for a q such as 86.4: of 750 values, 86.4 / 100 * 750 is a little more
    than 648 in floating point, and rounded up one too many.

    Raises:
        ValueError: q not in (0, 100], or no values.

    """
    if len(values) == 0:
        raise ValueError("there are no values to take a percentile of")
    if not 0 < q <= 100:
        raise ValueError(f"a percentile lies in (0, 100]; {q} does not")
    return sorted(values)[math.ceil(Fraction(str(q)) * len(values) / 100) - 1]


def percentile_interval(values: Sequence[float], q: float = 50) -> tuple[float, float]:
    """An interval that holds the q-th percentile with a confidence of about 95 %.

    Of n samples, the number below the true percentile is binomial; the interval's ends are the
    order statistics that far (in standard deviations, by the normal approximation) from n·q. With
    few samples it is as wide as the data.

    Returns:
        Its ends, in the unit of the values.

    """
    ordered = sorted(values)
    n, p = len(ordered), q / 100
    spread = NormalDist().inv_cdf(0.975) * math.sqrt(n * p * (1 - p))
    low = max(math.floor(n * p - spread), 1)
    high = min(math.ceil(n * p + spread) + 1, n)
    return ordered[low - 1], ordered[high - 1]


def time_shuffled(
    subjects: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warm_up: int = 5,
    seed: int = 0,
    block: int | None = None,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, Samples]:
    """Time several things against each other, each `repeats` times, in shuffled short blocks.

    Shuffling spreads whatever else the machine does over all of them alike. But what ran a moment
    ago matters, too: a fast answer after a slow query meets cold processor caches. So each block
    repeats one subject and begins with a call that is not counted: every counted call follows one
    of its own kind.

    Args:
        subjects: what to call, by name. A call that raises ends the measurement with its error.
        repeats: calls counted for each; rounded up to whole blocks.
        warm_up: calls of each before all blocks.
        seed: of the shuffling.
        block: counted calls in a row; None for as many as leave 30 blocks, but 10 at most.
        before: by name, what to do before each call of a subject, not timed.

    Returns:
        Samples by name, in the order given.

    Raises:
        ValueError: nothing would be measured.

    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it must be 1 or more")
    prepare = before or {}
    for name, call in subjects.items():
        for _ in range(warm_up):
            prepare.get(name, _nothing)()
            call()
    size = min(block or max(1, min(BLOCK, repeats // BLOCKS)), repeats)
    order = list(subjects) * math.ceil(repeats / size)
    random.Random(seed).shuffle(order)
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for name in order:
        timed = [_time(subjects[name], prepare.get(name, _nothing)) for _ in range(size + 1)]
        found[name] += timed[1:]
    return {name: Samples(name, tuple(seconds), size) for name, seconds in found.items()}


def _time(call: Callable[[], object], before: Callable[[], object]) -> float:
    before()
    started = perf_counter_ns()
    call()
    return (perf_counter_ns() - started) / 1e9


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Moment:
    """One call on the time line of an experiment.

    Attributes:
        at: when it was due, Unix seconds, so that several processes share the line; of a call that
            was due at no given time, when it was made.
        seconds: from then until its answer was there.
        source: where the answer came from, such as "cache"; "error" if there was none.

    """

    at: float
    seconds: float
    source: str


def moment(call: Callable[[], str], due: float | None = None) -> Moment:
    """Make a call that says where its answer came from.

    A WorkshopError, such as a database that does not answer, is noted, not raised.

    Args:
        call: returns where its answer came from.
        due: when it should have been made, by `time.perf_counter`; None for now. The wait counts
            from then: a call that was held up before it could be made has waited, too.

    """
    now = perf_counter()
    due = now if due is None else due
    at = time() - (now - due)
    try:
        source = call()
    except WorkshopError:
        source = "error"
    return Moment(at, perf_counter() - due, source)


def moments_on_schedule(times: Sequence[float], call: Callable[[int], str]) -> list[Moment]:
    """Make one call after another as `on_schedule` does, each timed from when it was due.

    If one call hangs, calls that fall due in the meantime are made late. Timed from when they were
    made, they would hide the outage (Tene's "coordinated omission").

    Args:
        times: when, in seconds from now, ascending.
        call: gets the number of the call, from 0; returns where its answer came from.

    """
    began, started = time(), perf_counter()

    def one(number: int) -> Moment:
        made = moment(lambda: call(number), started + times[number])
        return replace(made, at=began + times[number])

    return on_schedule(times, one)


def on_schedule(times: Sequence[float], call: Callable[[int], T]) -> list[T]:
    """Make one call after another, each at its time or, if the one before it took longer, late.

    To time the calls, use `moments_on_schedule`.

    Args:
        times: when, in seconds from now, ascending.
        call: gets the number of the call, from 0.

    Returns:
        What the calls returned, in order.

    """
    answers, started = [], perf_counter()
    for number, planned in enumerate(times):
        ahead = started + planned - perf_counter()
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


def speed_up_interval(slow: Samples, fast: Samples) -> tuple[float, float]:
    """A 95 % interval for `speed_up`.

    With 30 blocks or more on both sides, by resampling whole blocks, seeded and so reproducible.
    With fewer, resampling would give too narrow an interval: then the ends of both medians' own
    intervals are divided, which errs on the wide side.
    """
    if min(len(side) // side.block for side in (slow, fast)) < BLOCKS:
        (slow_low, slow_high), (fast_low, fast_high) = slow.interval(), fast.interval()
        return slow_low / fast_high, slow_high / fast_low
    rng = random.Random(0)
    ratios = sorted(
        percentile(slow.resampled(rng), 50) / percentile(fast.resampled(rng), 50)
        for _ in range(RESAMPLES)
    )
    return percentile(ratios, 2.5), percentile(ratios, 97.5)


def readable(seconds: float) -> str:
    """A duration in the unit that a person would choose.

    >>> readable(0.0000271), readable(0.0042), readable(2.5)
    ('27.1 µs', '4.20 ms', '2.50 s')
    """
    if seconds < 0.001:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
