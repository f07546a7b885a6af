"""What a worker does in an insert storm: make rows, store them, and count what became of them."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg2
from psycopg2 import errors
from psycopg2.extras import execute_values

from workshop_lib.copy_text import to_copy_text
from workshop_lib.errors import WorkshopError, redact
from workshop_lib.load.attempts import attempts, is_lost
from workshop_lib.load.events import COLUMNS, EventRow, events
from workshop_lib.load.jobs import InsertDone, InsertJob
from workshop_lib.load.means import Means

FIRST_ERRORS = 5
INSERT = f"INSERT INTO business_events ({', '.join(COLUMNS)}) VALUES %s ON CONFLICT (id) DO NOTHING"  # noqa: S608 -- constants
COUNT = "SELECT count(*) FROM business_events WHERE id BETWEEN %s AND %s"
COPY = f"COPY business_events ({', '.join(COLUMNS)}) FROM STDIN"


def insert(job: InsertJob, means: Means, end: float) -> InsertDone:
    """Do an insert job.

    Args:
        job: what to insert.
        means: by which.
        end: when to begin no further statement, by `time.monotonic()`.

    """
    tally, asked = _Tally(), time.perf_counter()
    with contextlib.suppress(WorkshopError):  # the first statement will try for longer
        means.database.query("SELECT 1")
    started, cpu = time.perf_counter(), time.process_time()
    for number in range(job.iterations * job.statements):
        if tally.unreachable or time.monotonic() >= end:
            break
        _store(means, list(_make_rows(job, number)), job.how, end, tally)
    seconds = time.perf_counter() - started
    return InsertDone(
        worker=job.worker,
        planned=job.planned,
        success_count=tally.new,
        already_there=tally.known,
        error_count=tally.failed,
        dropped=job.planned - tally.new - tally.known - tally.failed,
        duration_ms=seconds * 1e3,
        inserts_per_second=tally.new / seconds,
        latencies_us=tally.latencies_us,
        connect_ms=(started - asked) * 1e3,
        cpu_ms=(time.process_time() - cpu) * 1e3,
        conflicts=tally.conflicts,
        reconnects=tally.reconnects,
        errors=tally.errors,
    )


def _store(means: Means, rows: list[EventRow], how: str, end: float, tally: _Tally) -> None:
    """Send one statement until it is clear what became of it, and put that into the tally."""
    started = time.perf_counter()
    try:
        for attempt in attempts(tally, end):
            with attempt:
                new = _send(means, rows, how)
    except (WorkshopError, psycopg2.Error) as error:
        tally.fail(len(rows), error)
        return
    tally.new += new
    tally.known += len(rows) - new
    tally.latencies_us.append(round((time.perf_counter() - started) * 1e6))


def _send(means: Means, rows: list[EventRow], how: str) -> int:
    """One statement, one transaction. Returns how many rows are new, as the database says."""
    with (
        means.database.connection() as connection,
        means.watch.over(connection),
        connection.cursor() as cursor,
    ):
        if how == "insert":
            execute_values(cursor, INSERT, rows, page_size=len(rows))
            return cursor.rowcount
        try:
            cursor.copy_expert(COPY, io.StringIO(to_copy_text(rows)))
        except errors.UniqueViolation:
            # The ids are ours alone: an attempt whose answer was lost stored them, and all of them.
            cursor.execute(COUNT, (rows[0][0], rows[-1][0]))
            if cursor.fetchone() != (len(rows),):
                raise
            return 0
        return len(rows)


@dataclass(slots=True)
class _Tally:
    """What has come of the statements so far."""

    new: int = 0
    known: int = 0
    failed: int = 0
    conflicts: int = 0
    reconnects: int = 0
    unreachable: bool = False
    latencies_us: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def fail(self, rows: int, error: BaseException) -> None:
        """Count rows that could not be stored."""
        self.failed += rows
        self.unreachable = is_lost(error)
        if len(self.errors) < FIRST_ERRORS:
            self.errors.append(redact(error))


def _make_rows(job: InsertJob, number: int) -> Iterator[EventRow]:
    """The rows of a worker's statement of this number: the same ids whenever it is sent."""
    place = f"{job.run}/{'warm-up-' if job.warm_up else ''}{job.worker:05d}/{number:07d}"
    ids = (f"{place}/{row:04d}" for row in range(job.rows))
    return events(job.event_type, ids, place, datetime.now(UTC))
