"""What a driver asks of a worker, and what the worker answers: plain data, as JSON carries it."""

from __future__ import annotations

from itertools import count
from time import perf_counter, process_time
from typing import Annotated, Any, Literal

import msgspec

from workshop_lib.errors import redact
from workshop_lib.load.scenario import MAX_STATEMENTS, InsertLoad, MixedScenario
from workshop_lib.load.traffic import ACTIONS, Action
from workshop_lib.settings import NAMESPACE

FIRST_ERRORS = 5
RunName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]
RunNumber = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Namespace = Annotated[str, msgspec.Meta(pattern=rf"\A({NAMESPACE})?\Z")]
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="job"):
    """Anything a worker can be asked to do, other than a batch of queue messages.

    Attributes:
        namespace: whose tables, cache keys and metrics; empty for the worker's own. A function has
            one, and each headless run another.

    """

    namespace: Namespace = ""

    @property
    def planned(self) -> int:
        """Rows or requests to count the job by, as far as they are known before."""
        return 0


class Ping(Job, frozen=True, tag="ping"):
    """Be there, connected, and say what you have."""


class InsertJob(Job, frozen=True, kw_only=True, tag="insert"):
    """One worker's share of an insert load.

    Attributes:
        run: its name; every row's id begins with it.
        worker: which of the run's workers this is.
        load: what each worker does.
        warm_up: not part of the figures: one statement, whose rows are named so.

    """

    run: RunName
    worker: Number
    load: InsertLoad = InsertLoad()
    warm_up: bool = False

    @property
    def statements(self) -> int:
        """INSERTs to send, one after another."""
        return 1 if self.warm_up else self.load.iterations * self.load.statements

    @property
    def planned(self) -> int:
        """Rows to insert."""
        return self.statements * self.load.rows


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

    run: RunNumber
    number: Number
    action: Action
    statements: Annotated[int, msgspec.Meta(ge=1, le=MAX_STATEMENTS)] = 1
    target: Literal["writer", "reader"] = "writer"
    think_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    namespace: Namespace = ""


def messages_of(scenario: MixedScenario, run: int, namespace: str = "") -> list[list[Message]]:
    """The messages of each round.

    Args:
        scenario: what to send.
        run: the number of the run.
        namespace: whose tables they are for; empty for the worker's own.

    """
    numbers = count()
    return [
        [
            Message(
                run=run,
                number=next(numbers),
                action=action,
                statements=scenario.statements_per_message,
                target="reader" if scenario.reads_elsewhere and action != "INSERT" else "writer",
                think_ms=scenario.think_ms,
                namespace=namespace,
            )
            for action in ACTIONS
            for _ in range(scenario.messages_per_batch)
        ]
        for _ in range(scenario.rounds)
    ]


class Done(msgspec.Struct, kw_only=True):
    """What became of a job or a message: the worker counts in it, and the driver adds to it.

    Rows are counted of an insert job, and 1 of a message.

    Attributes:
        worker: as in the job; the number of a message.
        planned: success_count + already_there + error_count + dropped.
        success_count: done; of rows, new in the table, as the database counted them.
        already_there: rows of an earlier attempt whose answer was lost.
        error_count: failed in the end.
        dropped: not begun in time.
        rows: that its INSERTs have in the table.
        calls: of each statement that was answered: when it was sent, from the beginning of the job,
            and how long it took, retries and COMMIT included, microseconds; and SELECT, SELECT2 or
            INSERT.
        duration_ms: from the first statement's beginning to the last one's end.
        inserts_per_second: rows by that duration.
        cpu_ms: processor time that this worker itself used meanwhile: the generator's own cost.
        conflicts, reconnects: statements that had to be sent again, by reason.
        errors: the first few, in words.
        memory_mb: of the Lambda function that this worker is; None if it is a process.
        reader: the host that it reads from, where that is not the writer.
        state: "answered"; "lost" if the worker gave no answer; "interrupted" if an Interrupt was
            why; "not begun" if no worker got the job.
        seconds: from handing it over until its end was known.

    """

    worker: int = 0
    planned: int = 0
    success_count: int = 0
    already_there: int = 0
    error_count: int = 0
    dropped: int = 0
    rows: int = 0
    calls: list[tuple[int, int, str]] = []
    duration_ms: float = 0.0
    inserts_per_second: float = 0.0
    cpu_ms: float = 0.0
    conflicts: int = 0
    reconnects: int = 0
    errors: list[str] = []
    memory_mb: int | None = None
    reader: str = ""
    state: str = "answered"
    seconds: float = 0.0

    def note(self, error: object, failed: int) -> None:
        """Count what failed, and keep the error if it is one of the first."""
        self.error_count += failed
        if len(self.errors) < FIRST_ERRORS:
            self.errors.append(redact(error))

    def time(self, began: float, sent: float, action: str) -> None:
        """Note a statement that is answered now; times by `time.perf_counter()`."""
        at_us, took_us = round((sent - began) * 1e6), round((perf_counter() - sent) * 1e6)
        self.calls.append((at_us, took_us, action))

    def finish(self, began: float, cpu_s: float) -> Done:
        """Note how long it took, given when it began and the processor time until then."""
        seconds = perf_counter() - began
        self.duration_ms, self.inserts_per_second = seconds * 1e3, self.rows / seconds
        self.cpu_ms = (process_time() - cpu_s) * 1e3
        return self


def to_event(job: Job) -> dict[str, Any]:
    """A job as JSON carries it."""
    found: dict[str, Any] = msgspec.to_builtins(job)
    return found
