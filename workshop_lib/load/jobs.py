"""What a driver asks of a worker, and what the worker answers: plain data, as JSON carries it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION
from workshop_lib.load.events import EventType
from workshop_lib.load.traffic import Action
from workshop_lib.settings import NAMESPACE

RUN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$"
MOST_STATEMENTS = 1_000
"""Of one message: more take longer than a message should."""
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Namespace = Annotated[str, msgspec.Meta(pattern=rf"\A({NAMESPACE})?\Z")]


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="job"):
    """Anything a worker can be asked to do, other than a batch of queue messages.

    Attributes:
        namespace: whose tables, cache keys and metrics; empty for the worker's own. A function has
            one, and each headless run another.

    """

    namespace: Namespace = ""


class Ping(Job, frozen=True, tag="ping"):
    """Be there, and connected."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to a `Ping`.

    Attributes:
        ready: it is connected.
        memory_mb: of the Lambda function that this worker is; None if it is a process.
        reader: the host that its environment names for reads; empty if it reads from the writer.

    """

    ready: bool
    memory_mb: int | None = None
    reader: str = ""


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


class StreamJob(Job, frozen=True, kw_only=True, tag="stream"):
    """One worker's share of a stream of requests: every `of`-th of them.

    Attributes:
        run: its number, for the ids of rows.
        worker, of: which share, of how many.
        begins_at: when the stream begins, Unix seconds: the same for all workers.
        rate, seconds, seed: of the whole stream.
        threads: how many requests this worker can have under way.
        ttl_s: of cached answers; 0 for no cache.
        give_up_s: a request that has waited so long unserved is dropped: its client has left.
        closed: not when requests arrive, but each thread the next one when it has its answer.

    """

    run: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    worker: Annotated[int, msgspec.Meta(ge=0)]
    of: Annotated[int, msgspec.Meta(ge=1)]
    begins_at: float
    rate: Annotated[float, msgspec.Meta(gt=0, le=100_000)]
    seconds: Annotated[float, msgspec.Meta(gt=0, le=800)]
    seed: int = 0
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    ttl_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    give_up_s: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    closed: bool = False


class WarmJob(Job, frozen=True, kw_only=True, tag="warm"):
    """Bring every answer that a stream asks for into the cache.

    Attributes:
        ttl_s: of the entries.

    """

    ttl_s: Annotated[float, msgspec.Meta(gt=0)]


class Warmed(msgspec.Struct, frozen=True, kw_only=True):
    """How many answers a `WarmJob` has brought into the cache."""

    answers: int


class StreamDone(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a `StreamJob`: lists of the same length, one item a request.

    Attributes:
        worker: as in the job.
        at_us: when each request arrived (closed: was sent), from the stream's beginning.
        wait_us: from then until its answer was there.
        source: "cache", "database", "error", or "dropped".
        action: SELECT, SELECT2 or INSERT.
        rows: new ones, of INSERTs.
        cpu_ms: processor time of this worker meanwhile.
        lasted_ms: from the stream's beginning until all was answered.
        errors: the first few, in words.

    """

    worker: int
    at_us: list[int]
    wait_us: list[int]
    source: list[str]
    action: list[str]
    rows: int
    cpu_ms: float
    lasted_ms: float
    errors: list[str]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message of the queue: which action, how often, and where.

    Attributes:
        run: its number, for the ids of rows.
        number: of the message in its run.
        action: SELECT, INSERT or SELECT2.
        statements: how often, each a transaction of its own.
        target: the endpoint for writes, or the one for reads where there is another.
        think_ms: pause after each statement, in no transaction.
        namespace: whose tables and metrics; empty for the worker's own.

    """

    run: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    number: Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]
    action: Action
    statements: Annotated[int, msgspec.Meta(ge=1, le=MOST_STATEMENTS)] = 1
    target: Literal["writer", "reader"] = "writer"
    think_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    namespace: Namespace = ""


class MessageDone(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a message.

    Attributes:
        number, action: as in the message.
        rows: new ones, as the database counted them.
        durations_us: of each statement that succeeded, its COMMIT included.
        error: why the message failed; empty if it did not.

    """

    number: int
    action: str
    rows: int
    durations_us: list[int]
    error: str = ""


Answer: TypeAlias = Ready | InsertDone | StreamDone | Warmed
ANSWERS: dict[type[Job], type[Answer]] = {
    Ping: Ready,
    InsertJob: InsertDone,
    StreamJob: StreamDone,
    WarmJob: Warmed,
}


def to_event(job: Job) -> dict[str, Any]:
    """A job as JSON carries it."""
    found: dict[str, Any] = msgspec.to_builtins(job)
    return found
