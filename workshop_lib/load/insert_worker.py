"""What a worker does in an insert load: make rows, store them, and count what became of them."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg2
from psycopg2 import errors
from psycopg2.extras import execute_values

from workshop_lib.copy_text import to_copy_text
from workshop_lib.errors import WorkshopError, redact
from workshop_lib.load.clients import Clients, attempts, is_lost
from workshop_lib.load.events import COLUMNS, EventRow, events
from workshop_lib.load.jobs import InsertDone, InsertJob

FIRST_ERRORS = 5
INSERT = f"INSERT INTO business_events ({', '.join(COLUMNS)}) VALUES %s ON CONFLICT (id) DO NOTHING"  # noqa: S608 -- constants
COUNT = "SELECT count(*) FROM business_events WHERE id BETWEEN %s AND %s"
COPY = f"COPY business_events ({', '.join(COLUMNS)}) FROM STDIN"


def insert(job: InsertJob, clients: Clients, end: float) -> InsertDone:
    """Do an insert job.

    Args:
        job: what to insert.
        clients: by which.
        end: when to begin no further statement, by `time.monotonic()`.

    """
    done = InsertDone(worker=job.worker, planned=job.planned)
    with contextlib.suppress(WorkshopError):  # the first statement will try for longer
        clients.database.query("SELECT 1")
    started, cpu = time.perf_counter(), time.process_time()
    for number in range(job.iterations * job.statements):
        rows = list(_make_rows(job, number))
        if time.monotonic() >= end or not _store(clients, rows, job.how, end, done):
            break
    seconds = time.perf_counter() - started
    done.dropped = job.planned - done.success_count - done.already_there - done.error_count
    done.duration_ms, done.cpu_ms = seconds * 1e3, (time.process_time() - cpu) * 1e3
    done.inserts_per_second = done.success_count / seconds
    return done


def _store(clients: Clients, rows: list[EventRow], how: str, end: float, done: InsertDone) -> bool:
    """Send one statement until it is clear what became of it. False if the database is away."""
    started = time.perf_counter()
    try:
        for attempt in attempts(end, done):
            with attempt:
                new = _send(clients, rows, how)
    except (WorkshopError, psycopg2.Error) as error:
        done.error_count += len(rows)
        if len(done.errors) < FIRST_ERRORS:
            done.errors.append(redact(error))
        return not is_lost(error)
    done.success_count += new
    done.already_there += len(rows) - new
    done.latencies_us.append(round((time.perf_counter() - started) * 1e6))
    return True


def _send(clients: Clients, rows: list[EventRow], how: str) -> int:
    """One statement, one transaction. Returns how many rows are new, as the database says."""
    with (
        clients.database.connection() as connection,
        clients.watch.over(connection),
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


def _make_rows(job: InsertJob, number: int) -> Iterator[EventRow]:
    """The rows of a worker's statement of this number: the same ids whenever it is sent."""
    place = f"{job.run}/{'warm-up-' if job.warm_up else ''}{job.worker:05d}/{number:07d}"
    ids = (f"{place}/{row:04d}" for row in range(job.rows))
    return events(job.event_type, ids, place, datetime.now(UTC))
