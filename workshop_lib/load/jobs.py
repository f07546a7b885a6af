"""What a driver asks of a worker, and what the worker answers: plain data, as JSON carries it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION
from workshop_lib.load.events import EventType

RUN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$"
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="job"):
    """Anything a worker can be asked to do, other than a batch of queue messages."""


class Ping(Job, frozen=True, tag="ping"):
    """Be there, and connected."""


class InsertJob(Job, frozen=True, kw_only=True, tag="insert"):
    """One worker's share of an insert storm.

    Attributes:
        run: its name; every row's id begins with it.
        worker: which of the run's workers this is.
        iterations: rounds.
        statements: INSERTs in a round, one after another.
        rows: of each statement.
        how: INSERT … ON CONFLICT DO NOTHING, or COPY.
        event_type: which events.
        warm_up: not part of the figures; its rows are named so.
        time_limit_s: what has not been begun by then is dropped, seconds.

    """

    run: Annotated[str, msgspec.Meta(pattern=RUN)]
    worker: Annotated[int, msgspec.Meta(ge=0)]
    iterations: Count
    statements: Count = 1
    rows: Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS_PER_TRANSACTION)] = 1
    how: Literal["insert", "copy"] = "insert"
    event_type: EventType = "CarCreated"
    warm_up: bool = False
    time_limit_s: Annotated[float, msgspec.Meta(gt=0, le=900)] = 60.0

    @property
    def planned(self) -> int:
        """Rows to insert."""
        return self.iterations * self.statements * self.rows


class InsertDone(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an `InsertJob`. Rows unless said otherwise.

    Attributes:
        worker: as in the job.
        planned: success_count + already_there + error_count + dropped.
        success_count: new in the table, as the database counted them.
        already_there: of an earlier attempt whose answer was lost.
        error_count: of statements that failed in the end.
        dropped: of statements that were not begun in time.
        duration_ms: from the first statement's beginning to the last one's end.
        inserts_per_second: new rows by that duration.
        latencies_us: of each statement that succeeded, retries included, microseconds.
        connect_ms: until the database was connected; almost nothing where it was.
        cpu_ms: processor time that this worker itself used meanwhile: the generator's own cost.
        conflicts, reconnects: statements that had to be sent again, by reason.
        errors: the first few, in words.

    """

    worker: int
    planned: int
    success_count: int
    already_there: int
    error_count: int
    dropped: int
    duration_ms: float
    inserts_per_second: float
    latencies_us: list[int]
    connect_ms: float
    cpu_ms: float
    conflicts: int
    reconnects: int
    errors: list[str]


def to_event(job: Job) -> dict[str, Any]:
    """A job as JSON carries it."""
    found: dict[str, Any] = msgspec.to_builtins(job)
    return found
