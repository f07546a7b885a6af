"""One worker of a load test: the same handler in a local process and as an AWS Lambda function."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
import psycopg2
from psycopg2 import errors
from psycopg2.extras import execute_values
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
    wait_random_exponential,
)

from workshop_lib.copy_text import to_copy_text
from workshop_lib.database import Database
from workshop_lib.dsql import is_conflict
from workshop_lib.errors import ServiceUnreachableError, WorkshopError
from workshop_lib.load.events import COLUMNS, EventRow, events
from workshop_lib.load.jobs import InsertDone, InsertJob, Ping
from workshop_lib.load.watch import Watch
from workshop_lib.services import DatabaseEndpoint
from workshop_lib.services.named import named_database
from workshop_lib.settings import load_settings

STATEMENT_LIMIT_S = 30.0
PATIENCE_S = 10.0
"""How long a worker tries to reach a database that has gone away, for one statement, seconds."""
ATTEMPTS = 30
CONFLICT_WAIT = wait_random_exponential(multiplier=0.005, max=0.25)
RECONNECT_WAIT = wait_fixed(0.2)
SPARE_S = 1.0
"""A Lambda function stops beginning statements so long before it would be ended."""
FIRST_ERRORS = 5
INSERT = f"INSERT INTO business_events ({', '.join(COLUMNS)}) VALUES %s ON CONFLICT (id) DO NOTHING"  # noqa: S608 -- constants
COPY = f"COPY business_events ({', '.join(COLUMNS)}) FROM STDIN"


class Context(Protocol):
    """What AWS Lambda hands over beside the event; as much of it as is used here."""

    def get_remaining_time_in_millis(self) -> int:
        """Until the function is ended, milliseconds."""


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a worker process is given to work with; it travels through a pipe: it holds passwords.

    Attributes:
        database: where.
        namespace: the schema.
        statement_limit_s: after which a statement counts as lost, seconds.

    """

    database: DatabaseEndpoint
    namespace: str
    statement_limit_s: float = STATEMENT_LIMIT_S


class Worker:
    """What one process or one Lambda execution environment keeps from job to job."""

    def __init__(self, equipment: Equipment) -> None:
        # Two connections: one that broke is replaced before the pool has seen its end.
        self.database = Database(equipment.database, equipment.namespace, pool_min=1, pool_max=2)
        self._watch = Watch(equipment.statement_limit_s)

    def do(self, event: Any, until: float | None = None) -> dict[str, Any]:
        """Do a job.

        Args:
            event: the job, as JSON carries it.
            until: when this worker will be ended, by `time.monotonic()`; None if it will not.

        Raises:
            WorkshopError: the event is no job; the text says why.

        """
        try:
            job = msgspec.convert(event, Ping | InsertJob)
        except msgspec.ValidationError as error:
            raise WorkshopError(f"This is no job for a load worker: {error}.") from None
        answer = self._insert(job, until) if isinstance(job, InsertJob) else self._ping()
        found: dict[str, Any] = msgspec.to_builtins(answer)
        return found

    def close(self) -> None:
        """Let go of everything."""
        self._watch.close()
        self.database.close()

    def _ping(self) -> Any:
        self.database.query("SELECT 1")
        return {"ready": True}

    def _insert(self, job: InsertJob, until: float | None) -> InsertDone:
        end = time.monotonic() + job.time_limit_s
        end = min(end, until - SPARE_S) if until is not None else end
        tally, asked = _Tally(), time.perf_counter()
        with contextlib.suppress(WorkshopError):  # the first statement will try for longer
            self.database.query("SELECT 1")
        started, cpu = time.perf_counter(), time.process_time()
        for number in range(job.iterations * job.statements):
            if tally.unreachable or time.monotonic() >= end:
                break
            self._store(list(_make_rows(job, number)), job.how, end, tally)
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

    def _store(self, rows: list[EventRow], how: str, end: float, tally: _Tally) -> None:
        """Send one statement until it is clear what became of it, and put that into the tally."""
        started = time.perf_counter()
        try:
            for attempt in _again(tally, end):
                with attempt:
                    new = self._send(rows, how)
        except (WorkshopError, psycopg2.Error) as error:
            tally.fail(len(rows), error)
            return
        tally.new += new
        tally.known += len(rows) - new
        tally.latencies_us.append(round((time.perf_counter() - started) * 1e6))

    def _send(self, rows: list[EventRow], how: str) -> int:
        """One statement, one transaction. Returns how many rows are new, as the database says."""
        with (
            self.database.connection() as connection,
            self._watch.over(connection),
            connection.cursor() as cursor,
        ):
            if how == "insert":
                execute_values(cursor, INSERT, rows, page_size=len(rows))
                return cursor.rowcount
            try:
                cursor.copy_expert(COPY, io.StringIO(to_copy_text(rows)))
            except errors.UniqueViolation:
                return 0  # the ids are ours alone: an attempt whose answer was lost stored them
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
            self.errors.append(" ".join(str(error).split()))

    def again(self, state: RetryCallState) -> None:
        """Count one more attempt, by its reason."""
        assert state.outcome is not None  # noqa: S101 -- there is one before a wait
        if is_conflict(state.outcome.exception()):  # type: ignore[arg-type]
            self.conflicts += 1
        else:
            self.reconnects += 1


def is_lost(error: BaseException | None) -> bool:
    """Whether the database was not there, or went away in the middle of a statement."""
    if isinstance(error, ServiceUnreachableError):
        return True
    if not isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return False
    return not error.pgcode or error.pgcode.startswith(("08", "57P"))


def _again(tally: _Tally, end: float) -> Retrying:
    """Try again after a conflict or a lost connection, within the patience and the time left."""
    left = max(0.0, min(PATIENCE_S, end - time.monotonic()))
    return Retrying(
        retry=retry_if_exception(lambda error: is_conflict(error) or is_lost(error)),
        wait=_wait,
        stop=stop_after_attempt(ATTEMPTS) | stop_after_delay(left),
        before_sleep=tally.again,
        reraise=True,
    )


def _wait(state: RetryCallState) -> float:
    assert state.outcome is not None  # noqa: S101 -- there is one before a wait
    lost = is_lost(state.outcome.exception())
    return (RECONNECT_WAIT if lost else CONFLICT_WAIT)(state)


def _make_rows(job: InsertJob, number: int) -> Iterator[EventRow]:
    """The rows of a worker's statement of this number: the same ids whenever it is sent."""
    place = f"{job.run}/{'warm-up-' if job.warm_up else ''}{job.worker:05d}/{number:07d}"
    ids = (f"{place}/{row:04d}" for row in range(job.rows))
    return events(job.event_type, ids, place, datetime.now(UTC))


_worker: Worker | None = None


def equip(equipment: Equipment) -> None:
    """Have this process's worker use these services, rather than what the environment names."""
    global _worker  # noqa: PLW0603 -- one worker a process, as in a Lambda execution environment
    if _worker is not None:
        _worker.close()
    _worker = Worker(equipment)


def handler(event: Any, context: Context | None = None) -> dict[str, Any]:
    """What AWS Lambda calls, and a local worker process as well.

    Args:
        event: a job as `jobs` describes them.
        context: of the Lambda function; None in a local process.

    Raises:
        WorkshopError: the event is no job, or the settings in the environment are not usable.

    """
    if _worker is None:
        settings = load_settings().values
        equip(Equipment(named_database(settings), settings.workshop_namespace))
    assert _worker is not None  # noqa: S101 -- for mypy
    until = None
    if context is not None:
        until = time.monotonic() + context.get_remaining_time_in_millis() / 1e3
    return _worker.do(event, until)
