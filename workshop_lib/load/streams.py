"""Have workers serve a stream of requests together, and report what clients met."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import psycopg2

from workshop_lib.database import Database
from workshop_lib.errors import DataError, WorkshopError, redact
from workshop_lib.load.drivers import Driver, run_jobs
from workshop_lib.load.inserts import who_limits
from workshop_lib.load.jobs import StreamDone, StreamJob, Warmed, WarmJob
from workshop_lib.load.rows import count_transactions
from workshop_lib.load.traffic import requests
from workshop_lib.measure import Moment, Samples, percentile

AHEAD_S = 0.3
"""How long before a stream begins all workers have their jobs, seconds."""
WARM_S = 60.0
KEPT_UP_S = 0.1
"""Whose last answer comes no later than so long after the last arrival had no line waiting."""
SERVED = ("cache", "database")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReport:
    """What came of a stream; `planned` is the sum of the next three.

    Attributes:
        run: its number; the ids of its rows follow from it.
        closed: whether requests waited for answers to be sent (closed loop), or not.
        rate, seconds: what was asked for; of a closed loop only the seconds.
        planned, succeeded, failed, dropped: requests; dropped ones had waited too long unserved.
        moments: one a request, on a time line from 0: when it arrived (closed: was sent), and how
            long until its answer was there; the source is "cache", "database", "error", "dropped".
        rows: of the INSERTs that were answered.
        in_table: rows of this run that the table has; None if they could not be counted.
        cpu_share: processor time of the workers by the time that they had: near 1, they compute.
        limited_by: "arrivals" if more would have been served; else "database", or "generator":
            then the figures are the load test's own limit.
        errors: the first few, in words.
        interrupted: it was ended early.
        unknown: of those that failed (after an Interrupt: were dropped), the requests of workers
            that ended without a report. How many they were in a closed loop, only those knew.

    """

    run: int
    closed: bool
    rate: float
    seconds: float
    planned: int
    succeeded: int
    failed: int
    dropped: int
    moments: tuple[Moment, ...]
    rows: int
    in_table: int | None
    cpu_share: float
    limited_by: str
    errors: tuple[str, ...]
    interrupted: bool
    unknown: int = 0

    @property
    def answered(self) -> Samples:
        """How long the answered requests waited."""
        return Samples("wait", tuple(m.seconds for m in self.moments if m.source in SERVED))

    @property
    def throughput(self) -> float:
        """Answers a second, until the last one."""
        if not self.succeeded:
            return 0.0
        last = max(m.end for m in self.moments if m.source in SERVED)
        return self.succeeded / max(last, self.seconds)

    @property
    def hit_ratio(self) -> float:
        """Share of the answers that came from the cache."""
        sources = Counter(m.source for m in self.moments)
        return sources["cache"] / self.succeeded if self.succeeded else 0.0

    @property
    def reconciles(self) -> bool:
        """Whether every request is accounted for once, and the table has the rows reported.

        It may have more of those that failed, or are unknown: their answers were lost.
        """
        accounted = self.succeeded + self.failed + self.dropped
        if self.in_table is None or self.planned != accounted:
            return False
        return 0 <= self.in_table - self.rows <= max(self.failed, self.unknown)

    def percentile(self, q: float) -> float:
        """The q-th percentile of the waits of all requests, seconds.

        Those that were dropped or failed count with the time until their end: leaving them out
        would make a service that drops look fast.

        Raises:
            ValueError: there were no requests.

        """
        return percentile([m.seconds for m in self.moments], q)

    def over_time(self, q: float, step_s: float) -> tuple[list[float], list[float]]:
        """The q-th percentile of the waits of requests that arrived in each step of time.

        Returns:
            The middles of the steps, and the percentiles, both seconds; without empty steps.

        """
        found = _in_steps([(m.at, m.seconds) for m in self.moments], step_s)
        middles = [(step + 0.5) * step_s for step in found]
        return middles, [percentile(waits, q) for waits in found.values()]

    def queries_per_second(self, step_s: float) -> tuple[list[float], list[float]]:
        """How many answers a second came from the database, by the time when they came.

        Returns:
            The middles of the steps, seconds, and the rates.

        """
        ends = [(m.end, 1.0) for m in self.moments if m.source == "database"]
        found = _in_steps(ends, step_s)
        steps = range(max(found, default=0) + 1)
        middles = [(step + 0.5) * step_s for step in steps]
        return middles, [len(found.get(step, ())) / step_s for step in steps]

    def __str__(self) -> str:
        kind = "closed loop" if self.closed else f"{self.rate:,.0f} arrivals/s"
        answered = f"{self.succeeded:,} of {self.planned:,} answered"
        rate = f"{self.throughput:,.0f}/s, {self.hit_ratio:.0%} from the cache"
        parts = [f"{kind}: {answered}, {rate}."]
        if self.failed or self.dropped:
            late = "were not finished or not begun" if self.interrupted else "had waited too long"
            parts.append(f"{self.failed:,} failed, {self.dropped:,} {late}.")
        if self.unknown:
            parts.append(f"Of {self.unknown:,} of these it is not known what became.")
        if self.limited_by == "generator":
            parts.append("The load generator was the limit, not the database.")
        return " ".join(parts)


def run_stream(
    database: Database,
    driver: Driver,
    *,
    seconds: float,
    rate: float = 0.0,
    ttl_s: float = 0.0,
    threads: int = 8,
    seed: int = 0,
    give_up_s: float = 2.0,
    closed: bool = False,
    half_way: Callable[[], object] | None = None,
) -> StreamReport:
    """Have all workers of a driver serve one stream of requests together.

    Args:
        database: where rows are counted; the workers were given the same one.
        driver: who serves.
        seconds: how long requests arrive.
        rate: arrivals a second, mean; not of a closed loop.
        ttl_s: time to live of cached answers, seconds; 0 for no cache.
        threads: requests that each worker can have under way.
        seed: the same seed gives the same stream.
        give_up_s: a request that has waited so long unserved is dropped, seconds.
        closed: a closed loop instead: no arrivals, each thread asks again when it is answered.
        half_way: what to do when half of the seconds are over, such as stopping a cache.

    Raises:
        DataError: a value is out of range.

    """
    run = secrets.randbits(31)
    workers = driver.at_once
    begins_at = time.time() + AHEAD_S
    jobs = [
        StreamJob(
            run=run,
            worker=number,
            of=workers,
            begins_at=begins_at,
            rate=rate or 1.0,
            seconds=seconds,
            seed=seed,
            threads=threads,
            ttl_s=ttl_s,
            give_up_s=give_up_s,
            closed=closed,
        )
        for number in range(workers)
    ]
    _check(jobs[0], rate, closed)
    timer = threading.Timer(begins_at + seconds / 2 - time.time(), half_way or _nothing)
    timer.start()
    try:
        outcomes = run_jobs(driver, jobs, seconds + 2 * give_up_s)
    finally:
        timer.cancel()  # after an Interrupt or an error its time may not have come
        timer.join()
    answers = [o.answer for o in outcomes.each if isinstance(o.answer, StreamDone)]
    sources = Counter(source for answer in answers for source in answer.source)
    seen = sum(sources.values())
    planned = seen if closed else sum(1 for _ in requests(rate, seconds, seed, run))
    succeeded, unknown = sum(sources[name] for name in SERVED), planned - seen
    dropped = sources["dropped"] + (unknown if outcomes.interrupted else 0)
    cpu_s = sum(answer.cpu_ms for answer in answers) / 1e3
    lasted = max((answer.lasted_ms for answer in answers), default=0.0) / 1e3
    said = [o.error for o in outcomes.each if o.error]
    in_table, error = _count(database, run)
    kept_up = not closed and succeeded == planned and lasted < seconds + KEPT_UP_S
    return StreamReport(
        run=run,
        closed=closed,
        rate=rate,
        seconds=seconds,
        planned=planned,
        succeeded=succeeded,
        failed=planned - succeeded - dropped,
        dropped=dropped,
        moments=_moments(answers),
        rows=sum(
            action == "INSERT" and source == "database"
            for answer in answers
            for action, source in zip(answer.action, answer.source, strict=True)
        ),
        in_table=in_table,
        cpu_share=cpu_s / (lasted * workers) if lasted else 0.0,
        limited_by="arrivals"
        if kept_up
        else who_limits(cpu_s, lasted * workers, lasted, here=driver.here),
        errors=tuple([*error, *said, *(e for a in answers for e in a.errors)][:10]),
        interrupted=outcomes.interrupted,
        unknown=unknown,
    )


def warm_cache(driver: Driver, ttl_s: float) -> int:
    """Bring every answer that a stream asks for into the workers' cache.

    Returns:
        How many answers there are.

    Raises:
        WorkshopError: they could not be had.

    """
    (outcome,) = run_jobs(driver, [WarmJob(ttl_s=ttl_s)], WARM_S).each
    if not isinstance(outcome.answer, Warmed):
        raise WorkshopError(f"The cache was not warmed: {outcome.error}.")
    return outcome.answer.answers


def saturation(reports: Mapping[float, StreamReport], limit_s: float) -> float | None:
    """The highest rate of arrivals up to which every one was served well.

    Args:
        reports: by rate of arrivals.
        limit_s: what p95 may be at most, seconds, for a service to count as good.

    Returns:
        The rate; None if not even the lowest was.

    """
    best = None
    for rate in sorted(reports):
        if (
            reports[rate].percentile(95) > limit_s
            or reports[rate].succeeded < reports[rate].planned
        ):
            break
        best = rate
    return best


def _count(database: Database, run: int) -> tuple[int | None, list[str]]:
    """The rows of a run, or None and why they could not be counted."""
    try:
        return count_transactions(database, run), []
    except (WorkshopError, psycopg2.Error) as error:
        return None, [redact(error)]


def _nothing() -> None:
    pass


def _check(job: StreamJob, rate: float, closed: bool) -> None:
    try:
        msgspec.convert(msgspec.to_builtins(job), StreamJob)
    except msgspec.ValidationError as error:
        raise DataError(f"No stream like this: {str(error).replace('`$.', '`')}.") from None
    if not closed and rate <= 0:
        raise DataError(
            f"rate is {rate!r}; an open loop needs arrivals: a number above 0 a second."
        )


def _moments(answers: Sequence[StreamDone]) -> tuple[Moment, ...]:
    found = [
        Moment(at / 1e6, wait / 1e6, source)
        for answer in answers
        for at, wait, source in zip(answer.at_us, answer.wait_us, answer.source, strict=True)
    ]
    return tuple(sorted(found, key=lambda m: m.at))


def _in_steps(pairs: Sequence[tuple[float, float]], step_s: float) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for at, value in pairs:
        found.setdefault(int(at // step_s), []).append(value)
    return {step: found[step] for step in sorted(found)}
