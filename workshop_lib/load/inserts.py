"""Run an insert storm, count what the database really has, and report it."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import psutil
import psycopg2

from workshop_lib.costs import Cost
from workshop_lib.database import Database
from workshop_lib.dataset import create_schema, create_table
from workshop_lib.errors import DataError, WorkshopError, redact
from workshop_lib.load.drivers import Driver, Outcome, Outcomes, run_jobs
from workshop_lib.load.jobs import InsertDone, InsertJob
from workshop_lib.load.rows import events_of
from workshop_lib.load.scenario import Storm
from workshop_lib.measure import Samples, percentile
from workshop_lib.progress import progress_bar
from workshop_lib.results import write_json

FIRST_ERRORS = 10
ROWS = ("planned", "succeeded", "failed", "dropped", "unknown", "unreported", "in_table")
SETTLED_S = 0.3
"""A statement of a worker that was ended may be committed shortly after: this long it is waited."""
BUSY_WORKER = 0.8
"""A worker that computes for this share of its time waits for the database hardly at all."""
BUSY_MACHINE = 0.5
"""Workers that use this share of all processors leave too little to a database beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertReport:
    """What came of a storm. Rows unless said otherwise, and `planned` is the sum of the next three.

    Attributes:
        run: its name: ids of its rows begin with it.
        storm: what was asked for.
        driver: who did it.
        at_once: workers at the same time, at most.
        planned, succeeded, failed, dropped: rows asked for; stored; tried in vain; not begun, or
            of workers that an Interrupt ended.
        unknown: of those that failed or were dropped, the rows that may be stored all the same: no
            worker said so, and the table could not be counted.
        unreported: of those that succeeded, rows that no worker reported and the table has: a
            worker ended, or an answer was lost, after the database had stored them.
        in_table: rows of this run that the database counts after it, the warm-up's left out; None
            if they could not be counted.
        workers_succeeded, workers_failed: how many reported that all went well, and all others.
        seconds: from the first worker's beginning to the last one's end.
        statements: those that succeeded: their durations, retries included.
        invocations: from handing a job over until its answer was there, seconds.
        worker_durations_s, worker_throughputs: a worker's own time, and its new rows by it.
        conflicts, reconnects: statements that were sent again, by reason.
        cpu_seconds: processor time of the workers themselves.
        cpu_share: of the time in which they ran: near 1, a worker was never waiting.
        limited_by: "database", or "generator": then the figures are the load test's own limit.
        errors: the first few, in words.
        interrupted: it was ended early, by Ctrl-C or Interrupt.

    """

    run: str
    storm: Storm
    driver: str
    at_once: int
    planned: int
    succeeded: int
    failed: int
    dropped: int
    unknown: int
    unreported: int
    in_table: int | None
    workers_succeeded: int
    workers_failed: int
    seconds: float
    statements: Samples
    invocations: Samples
    worker_durations_s: tuple[float, ...]
    worker_throughputs: tuple[float, ...]
    conflicts: int
    reconnects: int
    cpu_seconds: float
    cpu_share: float
    limited_by: str
    errors: tuple[str, ...] = field(default=())
    interrupted: bool = False

    @property
    def throughput(self) -> float:
        """Rows a second over the whole storm."""
        return self.succeeded / self.seconds if self.seconds else 0.0

    @property
    def reconciles(self) -> bool:
        """Whether every planned row is accounted for once, and the table agrees."""
        accounted = self.succeeded + self.failed + self.dropped
        return self.planned == accounted and self.succeeded == self.in_table

    @property
    def _who(self) -> str:
        """Who did it, with as many as were needed."""
        all_of_them = self.driver.startswith(f"{self.at_once:,} ")
        return self.driver if all_of_them else f"{self.at_once:,} at a time of {self.driver}"

    def describe(self) -> dict[str, Any]:
        """The figures as the results file keeps them; durations in milliseconds."""
        total = self.workers_succeeded + self.workers_failed
        return {
            "run": self.run,
            "driver": self.driver,
            "at_once": self.at_once,
            "storm": msgspec.to_builtins(self.storm),
            "workers": {
                "total": total,
                "successful": self.workers_succeeded,
                "failed": self.workers_failed,
            },
            "success_rate": self.workers_succeeded / total if total else 0.0,
            "total_inserts": self.succeeded,
            "total_errors": self.failed,
            "rows": {name: getattr(self, name) for name in ROWS},
            "reconciles": self.reconciles,
            "duration_s": self.seconds,
            "throughput": self.throughput,
            "statement_ms": _spread([s * 1e3 for s in self.statements.seconds]),
            "latency_ms": _spread([s * 1e3 for s in self.invocations.seconds]),
            "worker_duration_ms": _spread([s * 1e3 for s in self.worker_durations_s]),
            "worker_throughput": _spread(self.worker_throughputs),
            "conflicts": self.conflicts,
            "reconnects": self.reconnects,
            "generator": {
                "cpu_s": self.cpu_seconds,
                "cpu_share": self.cpu_share,
                "limited_by": self.limited_by,
            },
            "interrupted": self.interrupted,
            "errors": list(self.errors),
        }

    def __str__(self) -> str:
        rows = f"{self.succeeded:,} of {self.planned:,} rows in {self.seconds:.2f} s"
        parts = [f"{rows}: {self.throughput:,.0f} rows/s by {self._who}."]
        if self.interrupted:
            failed = f"{self.failed:,} failed, " if self.failed else ""
            left = f"{failed}{self.dropped:,} rows were not finished or not begun"
            parts.append(f"It was interrupted: {left}.")
        elif self.failed or self.dropped:
            parts.append(f"{self.failed:,} failed, {self.dropped:,} were not begun.")
        if self.in_table is None:
            parts.append("The rows in the table could not be counted.")
        if self.unknown:
            parts.append(f"Of {self.unknown:,} of these it is not known what became.")
        if self.errors:
            parts.append(f"The first error: {self.errors[0]}")
        if self.limited_by == "generator":
            processors = self.cpu_seconds / self.seconds
            parts.append(
                f"The workers computed for {self.cpu_share:.0%} of their time and took "
                f"{processors:.1f} processors: the load generator was the limit, not the database."
            )
        return " ".join(parts)


def run_inserts(
    database: Database, storm: Storm, driver: Driver, *, run: str = "", progress: bool = True
) -> InsertReport:
    """Make the table `business_events` if need be, run a storm of inserts into it, and count.

    It is a closed loop: each worker sends its next statement when the one before is answered. That
    finds out how much the database takes; how long answers take at a given rate of arrivals is
    another question, for `run_stream`.

    Args:
        database: where the rows are counted; the workers were given the same one.
        storm: what to do.
        driver: who does it.
        run: its name; a new one if there is none (`new_run`).
        progress: with a progress bar.

    Returns:
        The report; also after an Interrupt, of what had been done by then.

    Raises:
        DataError: a value of the storm is out of range, or there are rows of such a run already.

    """
    storm.check()
    create_schema(database)
    create_table(database, "business_events")
    run = run or new_run()
    if there := events_of(run).count(database):
        raise DataError(
            f"There are {there:,} rows of a run {run} already, which would be counted with this "
            f"one's. Give it another name, or delete them: load.delete_rows(ws.database, {run!r})."
        )
    warm = run_jobs(driver, [_job(run, storm, n, warm=True) for n in range(storm.warm_up)],
                    storm.time_limit_s)  # fmt: skip
    jobs = [_job(run, storm, n) for n in range(storm.workers)]
    with progress_bar(storm.planned, "insert") as bar:
        step = storm.planned // storm.workers
        done: Callable[[int], object] = (lambda _: bar.update(step)) if progress else (lambda _: 0)
        outcomes = run_jobs(driver, jobs, storm.time_limit_s, done, begin=not warm.interrupted)
    counted = _count(database, run, any(one.begun and one.error for one in outcomes.each))
    return _report(run, storm, driver, outcomes, counted)


def new_run() -> str:
    """A name for a run: when it began, and a few digits against another at the same time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def _count(database: Database, run: str, settle: bool) -> tuple[dict[int, int] | None, str]:
    """The rows of each worker, or None and why they could not be counted.

    Args:
        database, run: of which.
        settle: until they stay the same: what a worker had sent when it ended may be under way.

    """
    try:
        found = count_by_worker(database, run)
        while settle:
            before = found
            time.sleep(SETTLED_S)
            found = count_by_worker(database, run)
            settle = found != before
    except (WorkshopError, psycopg2.Error) as error:
        return None, redact(error)
    return found, ""


def count_by_worker(database: Database, run: str) -> dict[int, int]:
    """How many rows of a run each worker has in the table, by worker, without the warm-up's."""
    rows = database.query(
        "SELECT split_part(id, '/', 2) AS worker, count(*) FROM business_events "
        "WHERE id >= %s AND id < %s GROUP BY 1",
        events_of(run).values,
    )
    return {int(str(w)): int(str(n)) for w, n in rows if str(w).isdigit()}


def count_rows(database: Database, run: str) -> int:
    """How many rows of a run are in the table, the warm-up's among them."""
    return events_of(run).count(database)


def delete_rows(database: Database, run: str) -> int:
    """Delete the rows of a run, in transactions that Aurora DSQL accepts. Returns how many."""
    return events_of(run).delete(database)


def who_limits(cpu_s: float, busy_s: float, seconds: float, *, here: bool = True) -> str:
    """Whether a load test measured the database or itself.

    Args:
        cpu_s: processor time of the workers.
        busy_s: time in which they ran, all together.
        seconds: of the clock.
        here: whether they ran on this machine; executions of a function have one each.

    Returns:
        "generator" if the workers computed nearly all the time, or took half of this machine; else
        "database".

    """
    processors = psutil.cpu_count() or 1
    computing = busy_s and cpu_s / busy_s > BUSY_WORKER
    crowding = here and seconds and cpu_s / seconds > BUSY_MACHINE * processors
    return "generator" if computing or crowding else "database"


def compare_storms(reports: dict[str, InsertReport]) -> pd.DataFrame:
    """Storms side by side: a column each; rows a second, and durations in milliseconds."""
    first = next(iter(reports.values()))
    return pd.DataFrame(
        {
            name: {
                "rows": f"{r.succeeded:,}",
                "rows/s": f"{r.throughput:,.0f}",
                "× the first": f"{r.throughput / first.throughput:.1f}" if first.throughput else "",
                "statement, average (ms)": f"{r.statements.mean * 1e3:.2f}",
                "statement, p50 (ms)": f"{r.statements.percentile(50) * 1e3:.2f}",
                "statement, p95 (ms)": f"{r.statements.percentile(95) * 1e3:.2f}",
                "conflicts": f"{r.conflicts}",
                "the workers' own time": f"{r.cpu_share:.0%}",
                "limited by": r.limited_by,
            }
            for name, r in reports.items()
            if len(r.statements)
        }
    )


def save_reports(
    reports: dict[str, InsertReport], folder: Path, costs: Mapping[str, Cost] | None = None
) -> Path:
    """Write reports to `results_YYYYMMDD_HHMMSS.json` in a folder, and say where.

    Args:
        reports, costs: by the names of the scenarios.
        folder: where.

    Raises:
        ResultError: it cannot be written.

    """
    found = {name: report.describe() for name, report in reports.items()}
    for name, cost in (costs or {}).items():
        found[name]["cost_usd"] = cost.total
    return write_report({"scenarios": found}, folder)


def write_report(content: dict[str, Any], folder: Path) -> Path:
    """Write what a load test found to `results_YYYYMMDD_HHMMSS.json` in a folder, and say where.

    Raises:
        ResultError: it cannot be written.

    """
    stamp = time.localtime()
    name = time.strftime("results_%Y%m%d_%H%M%S", stamp)
    path, number = folder / f"{name}.json", 1
    with contextlib.suppress(OSError):  # writing it says what is wrong
        while not _claimed(path):
            number += 1
            path = folder / f"{name}_{number}.json"
    write_json(path, {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%S%z", stamp), **content})
    return path


def _claimed(path: Path) -> bool:
    """Whether no other result has this name; it is ours from here on."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _job(run: str, storm: Storm, worker: int, *, warm: bool = False) -> InsertJob:
    return InsertJob(
        run=run,
        worker=worker,
        iterations=1 if warm else storm.iterations,
        statements=1 if warm else storm.statements,
        rows=storm.rows,
        how=storm.how,
        event_type=storm.event_type,
        warm_up=warm,
        time_limit_s=storm.time_limit_s,
    )


def _report(
    run: str,
    storm: Storm,
    driver: Driver,
    outcomes: Outcomes,
    counted: tuple[dict[int, int] | None, str],
) -> InsertReport:
    found, error = counted
    share = storm.planned // storm.workers
    books = [
        _book(share, outcome, None if found is None else found.get(outcome.number, 0))
        for outcome in outcomes.each
    ]
    answers = [book.answer for book in books if book.answer is not None]
    well = sum(a.success_count + a.already_there == a.planned for a in answers)
    said = [error] if error else []
    said += [o.error for o in outcomes.each if o.error and not o.interrupted]
    busy_s = sum(a.duration_ms for a in answers) / 1e3
    cpu_s = sum(a.cpu_ms for a in answers) / 1e3
    latencies = [us / 1e6 for a in answers for us in a.latencies_us]
    return InsertReport(
        run=run,
        storm=storm,
        driver=driver.label,
        at_once=min(driver.at_once, storm.workers),
        planned=storm.planned,
        succeeded=sum(book.succeeded for book in books),
        failed=sum(book.failed for book in books),
        dropped=sum(book.dropped for book in books),
        unknown=sum(book.unknown for book in books),
        unreported=sum(book.unreported for book in books),
        in_table=None if found is None else sum(found.values()),
        workers_succeeded=well,
        workers_failed=storm.workers - well,
        seconds=outcomes.seconds,
        statements=Samples("statement", tuple(latencies)),
        invocations=Samples("invocation", tuple(o.seconds for o in outcomes.each if o.begun)),
        worker_durations_s=tuple(a.duration_ms / 1e3 for a in answers),
        worker_throughputs=tuple(a.inserts_per_second for a in answers),
        conflicts=sum(a.conflicts for a in answers),
        reconnects=sum(a.reconnects for a in answers),
        cpu_seconds=cpu_s,
        cpu_share=cpu_s / busy_s if busy_s else 0.0,
        limited_by=who_limits(cpu_s, busy_s, outcomes.seconds, here=driver.here),
        errors=tuple([*said, *(e for a in answers for e in a.errors)][:FIRST_ERRORS]),
        interrupted=outcomes.interrupted,
    )


@dataclass(frozen=True, slots=True)
class _Book:
    """What became of one worker's rows: its own report, put right by what the table has."""

    answer: InsertDone | None
    succeeded: int
    failed: int
    dropped: int
    unreported: int
    unknown: int = 0


def _book(share: int, outcome: Outcome, in_table: int | None) -> _Book:
    """The books of a worker, given the rows that the table has of it; None: not counted."""
    answer = outcome.answer
    if not isinstance(answer, InsertDone):
        if not outcome.begun:
            return _Book(None, 0, 0, share, 0)
        known = in_table or 0
        unknown = share if in_table is None else 0
        if outcome.interrupted:
            return _Book(None, known, 0, share - known, known, unknown)
        return _Book(None, known, share - known, 0, known, unknown)
    reported = answer.success_count + answer.already_there
    if in_table is None:
        failed = answer.error_count
        return _Book(answer, reported, failed, answer.dropped, 0, unknown=failed)
    # Of statements that failed because the answer did not come, some had been stored.
    unreported = min(max(in_table - reported, 0), answer.error_count)
    failed = answer.error_count - unreported
    return _Book(answer, reported + unreported, failed, answer.dropped, unreported)


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """How figures of many workers are spread, by nearest rank, in their unit; None of none."""
    if not values:
        return None
    median, p95, p99 = (percentile(values, q) for q in (50, 95, 99))
    return {
        "min": min(values),
        "max": max(values),
        "avg": sum(values) / len(values),
        "median": median,
        "p95": p95,
        "p99": p99,
    }
