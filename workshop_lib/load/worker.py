"""One worker of a load test: the same code in a local process and as an AWS Lambda function."""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from multiprocessing.connection import Connection as Pipe
from typing import Any

import msgspec
import psycopg2
from botocore.exceptions import BotoCoreError, ClientError
from psycopg2.extensions import connection as Connection, cursor as Cursor

from workshop_lib.database import Database
from workshop_lib.dsql import is_conflict
from workshop_lib.errors import ServiceUnreachableError, SettingsError, WorkshopError, redact
from workshop_lib.load import traffic
from workshop_lib.load.scenario import Job
from workshop_lib.orphans import exit_with_parent
from workshop_lib.queues import messaging_client
from workshop_lib.services import DatabaseEndpoint, MessagingEndpoint, endpoints
from workshop_lib.settings import load_settings

log = logging.getLogger(__name__)
ERRORS = (WorkshopError, psycopg2.Error)
FIRST_ERRORS = 5
# Of libpq: a connection on which nothing has arrived for 30 seconds is lost. (A job's time limit
# covers a database that is there and does not answer.)
KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 10, "tcp_user_timeout": 30_000}
# A Lambda function begins no statement in its last second, in which it might be ended.
SPARE_S = 1.0
# How long a statement is tried again while the database is away, seconds.
PATIENCE_S = 10.0
PAUSE_S, MAX_PAUSE_S = 0.005, 0.25
# Values of one datum (CloudWatch API Reference, "MetricDatum").
MAX_VALUES = 150


class Done(msgspec.Struct, kw_only=True):
    """The record of one job: the worker counts in it, the driver adds how it ended.

    Attributes:
        number: of the job.
        planned: what was asked for: rows, or statements that read.
        success_count: done; of rows, those that were new in the table, as the database counted.
        already_there: rows of an earlier attempt whose answer was lost.
        error_count: failed for good.
        calls: action and microseconds of each answered statement, retries and COMMIT included.
        duration_ms: from the beginning of the first statement to the end of the last.
        inserts_per_second: what succeeded, by that duration.
        cpu_ms: processor time of the worker itself meanwhile.
        retries: how often a statement was sent again, after a conflict or a lost connection.
        errors: the first few, in words.
        memory_mb: of the Lambda function; 0 in a process.
        reader: the host of the endpoint for reads; empty if there is none.
        state: "answered"; "lost" if no answer came; "interrupted" if an Interrupt was the reason;
            "not begun" if no worker got the job.
        seconds: from handing the job over to its end.

    """

    number: int
    planned: int
    success_count: int = 0
    already_there: int = 0
    error_count: int = 0
    calls: list[tuple[str, int]] = []
    duration_ms: float = 0.0
    inserts_per_second: float = 0.0
    cpu_ms: float = 0.0
    retries: int = 0
    errors: list[str] = []
    memory_mb: int = 0
    reader: str = ""
    state: str = "answered"
    seconds: float = 0.0

    @property
    def stored(self) -> int:
        """What succeeded, in this attempt or an earlier one."""
        return self.success_count + self.already_there

    def note(self, error: object, failed: int = 0) -> None:
        """Count what failed, and keep the error if it is one of the first."""
        self.error_count += failed
        if len(self.errors) < FIRST_ERRORS:
            self.errors.append(redact(error))


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What a worker connects to. It holds passwords: it travels through a pipe only.

    Attributes:
        database: for writes, and for reads unless there is a `reader`.
        namespace: the schema.
        reader: another endpoint of the same data, for reads.
        messaging: where metrics go; None for no metrics.

    """

    database: DatabaseEndpoint
    namespace: str
    reader: DatabaseEndpoint | None = None
    messaging: MessagingEndpoint | None = None


class Session:
    """A connection that a worker keeps, opened again when it breaks."""

    _cursor: Cursor

    def __init__(self, endpoint: DatabaseEndpoint, namespace: str) -> None:
        arguments = {**KEEPALIVE, **endpoint.arguments}
        self.database = Database(replace(endpoint, arguments=arguments), namespace, pool_min=1)
        self._connection: Connection | None = None

    def connect(self) -> Cursor:
        """The cursor of the connection, which is opened if need be.

        Raises:
            WorkshopError: the database accepted no connection.

        """
        if self._connection is None or self._connection.closed:
            self._connection = self.database.connect()
            self._cursor = self._connection.cursor()
        return self._cursor

    def run(self, action: str, statement: str, values: Sequence[Any], end: float, to: Done) -> int:
        """Run a statement in a transaction of its own, again after a conflict or a lost connection.

        So it may be sent more than once, with random pauses that grow.

        Args:
            action: under which it is noted.
            statement, values: what to send.
            end: when to stop trying, by `time.monotonic()`.
            to: where its duration and further attempts are noted.

        Returns:
            How many rows it wrote or returned.

        Raises:
            WorkshopError, psycopg2.Error: it failed for good.

        """
        began, pause_s = time.perf_counter(), PAUSE_S
        end = min(end, time.monotonic() + PATIENCE_S)
        while True:
            try:
                cursor = self.connect()
                cursor.execute(statement, values)
                if cursor.description:
                    cursor.fetchall()
                break
            except ERRORS as error:
                lost = is_lost(error)
                if time.monotonic() >= end or not (lost or is_conflict(error)):
                    raise
            if lost:
                self.close()
            to.retries += 1
            time.sleep(random.uniform(0, pause_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
        # In autocommit mode the answer is that of the COMMIT, which so is part of the duration.
        to.calls.append((action, round((time.perf_counter() - began) * 1e6)))
        return cursor.rowcount

    def close(self) -> None:
        """Close the connection; the next statement opens another one."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def is_lost(error: BaseException) -> bool:
    """Whether the database was away, or went away in the middle of a statement."""
    if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return not error.pgcode or error.pgcode.startswith(("08", "57P"))
    return isinstance(error, ServiceUnreachableError)


class Worker:
    """What one process, or one Lambda execution environment, keeps from job to job.

    Attributes:
        namespace: the schema that the connections see.
        writer: the connection for writes.
        reader: the connection for reads; None if there is no other endpoint.

    """

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._open(config.namespace)

    def _open(self, namespace: str) -> None:
        self.namespace = namespace
        self.writer = Session(self._config.database, namespace)
        reader = self._config.reader
        self.reader = Session(reader, namespace) if reader else None

    @cached_property
    def cloudwatch(self) -> Any:
        """The client for metrics; None if they go nowhere."""
        messaging = self._config.messaging
        return messaging_client(messaging, "cloudwatch") if messaging else None

    def do(self, event: Any, until: float = math.inf) -> dict[str, Any]:
        """Do a job, or process a batch of messages.

        Args:
            event: the job as JSON carries it, or what SQS hands to a function.
            until: when this worker will be ended, by `time.monotonic()`.

        Returns:
            The record (`Done`) of the job. Of a batch `batchItemFailures`, the messages that the
            queue is to deliver again, as Lambda wants it; and `done`, the records of the others.

        Raises:
            WorkshopError: the event is neither; or a job without statements finds no database.

        """
        if isinstance(event, dict) and "Records" in event:
            return self._process_batch(event["Records"], until - SPARE_S)
        try:
            job = msgspec.convert(event, Job)
        except msgspec.ValidationError as error:
            raise WorkshopError(f"This is not a job for a load worker: {error}.") from None
        done = self._run(job, until - SPARE_S)
        log.info("%s: %d of %d", job.action, done.stored, done.planned)
        found: dict[str, Any] = msgspec.to_builtins(done)
        return found

    def close(self) -> None:
        """Close all connections."""
        self.writer.close()
        if self.reader:
            self.reader.close()

    def _use(self, namespace: str) -> None:
        """See a namespace, the worker's own if it is empty.

        Connections of another are closed: a function outlives the runs that use it.
        """
        wanted = namespace or self._config.namespace
        if wanted != self.namespace:
            self.close()
            self._open(wanted)

    def _run(self, job: Job, end: float) -> Done:
        """Run a job's statements one after another.

        Raises:
            WorkshopError: it has none, and there is no connection.

        """
        self._use(job.namespace)
        session = self.reader if job.target == "reader" else self.writer
        done = Done(number=job.number, planned=job.planned)
        done.memory_mb = int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "0"))
        if self.reader:
            done.reader = self.reader.database.endpoint.host
        if session is None:
            done.note(
                "Reads are to go elsewhere, and this worker knows no other endpoint. Set "
                "DSQL_READ_ENDPOINT in its environment.",
                job.planned,
            )
            return done
        try:
            session.connect()
        except WorkshopError:  # the first statement will try for longer
            if not job.statements:
                raise
        end, rng = min(end, time.monotonic() + job.time_limit_s), random.Random(job.place)
        statement = traffic.statement_of(job.action, job.rows)
        began, cpu_s = time.perf_counter(), time.process_time()
        for step in range(job.statements):
            values = _values(job, step, rng)
            if time.monotonic() >= end:
                break
            try:
                rows = session.run(job.action, statement, values, end, done)
            except ERRORS as error:
                done.note(error, job.rows)
                if is_lost(error):
                    break
                continue
            new = job.rows if job.action.startswith("SELECT") else rows
            done.success_count += new
            done.already_there += job.rows - new
            time.sleep(job.think_ms / 1e3)  # outside any transaction
        seconds = time.perf_counter() - began
        done.duration_ms, done.inserts_per_second = seconds * 1e3, done.stored / seconds
        done.cpu_ms = (time.process_time() - cpu_s) * 1e3
        return done

    def _process_batch(self, records: Sequence[Any], end: float) -> dict[str, Any]:
        """Process messages each by itself: one that fails does not affect the others."""
        failures, done = [], dict[str, list[Done]]()
        for record in records:
            try:
                job = msgspec.json.decode(record["body"], type=Job)
            except msgspec.DecodeError as error:
                # After its last delivery it goes to the dead-letter queue, to be looked at.
                log.warning("This is not a message for a load worker: %s", error)
                job = None
            if job and time.monotonic() < end:
                processed = self._run(job, end)
                done.setdefault(self.namespace, []).append(processed)
                if processed.stored == processed.planned:
                    continue
                processed.calls.clear()
            failures.append({"itemIdentifier": record["messageId"]})
        for namespace, some in done.items():
            self._publish(namespace, some)
        all_done = [one for some in done.values() for one in some]
        return {"batchItemFailures": failures, "done": msgspec.to_builtins(all_done)}

    def _publish(self, namespace: str, done: Sequence[Done]) -> None:
        """Send DURATION (ms) and COMPLETIONS of a batch to CloudWatch, in one request.

        If that fails, the first record says why: a lost metric is no reason to do work again.
        """
        data: list[dict[str, Any]] = []
        for action in traffic.ACTIONS:
            times = [us / 1e3 for one in done for what, us in one.calls if what == action]
            place = {"Dimensions": dimensions(namespace, action), "Timestamp": datetime.now(UTC)}
            if times:
                completions = {"MetricName": "COMPLETIONS", "Value": len(times), "Unit": "Count"}
                data.append(completions | place)
            for at in range(0, len(times), MAX_VALUES):
                durations = {"MetricName": "DURATION", "Values": times[at : at + MAX_VALUES]}
                data.append({**durations, "Unit": "Milliseconds", **place})
        if data and self.cloudwatch:
            try:
                self.cloudwatch.put_metric_data(
                    Namespace=metrics_namespace(namespace), MetricData=data
                )
            except (BotoCoreError, ClientError) as error:
                done[0].note(error)


def _values(job: Job, step: int, rng: random.Random) -> Sequence[Any]:
    """Values for a statement; the same ids whenever the statement of this number is sent."""
    if job.action != "EVENTS":
        number = job.number * traffic.MAX_STATEMENTS + step
        return traffic.values_of(job.action, rng, job.run, number)
    ids = (f"{job.place}/{step:07d}/{row:04d}" for row in range(job.rows))
    rows = traffic.events(job.event_type, ids, rng, datetime.now(UTC))
    return [value for row in rows for value in row]


def metrics_namespace(namespace: str) -> str:
    """Where the metrics of a workshop's load tests are in CloudWatch."""
    return f"CacheAsideWorkshop/{namespace}"


def dimensions(namespace: str, action: str) -> list[dict[str, str]]:
    """The dimensions of a workshop's metrics there."""
    # The second would do on AWS; the emulation knows metrics by their dimensions only.
    return [{"Name": "DATABASE", "Value": namespace}, {"Name": "ACTION", "Value": action}]


# --- as an AWS Lambda function

_worker: Worker | None = None


def handler(event: Any, context: Any) -> dict[str, Any]:
    """What AWS Lambda calls, with a job or with messages of a queue.

    Raises:
        WorkshopError: the event is neither.
        SettingsError: the environment names no database, or a setting in it is not usable.

    """
    global _worker  # noqa: PLW0603 -- one worker a Lambda execution environment
    if _worker is None:
        logging.getLogger().setLevel((os.environ.get("LOG_LEVEL") or "info").upper())
        settings = load_settings().values
        database = endpoints.external_database(settings)
        if database is None:
            raise SettingsError(
                "This worker is not told which database to use. On AWS Lambda, set DSQL_ENDPOINT "
                "in the function's environment (AWS_REGION is there already)."
            )
        reader = endpoints.external_reader(settings)
        metrics = endpoints.external_messaging(settings)
        _worker = Worker(ClientConfig(database, settings.workshop_namespace, reader, metrics))
    return _worker.do(event, time.monotonic() + context.get_remaining_time_in_millis() / 1e3)


# --- as a process of LocalWorkers


def main() -> None:
    """Do the jobs that come through the pipe, until its other end is closed."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    pipe = Pipe(int(sys.argv[1]))
    with suppress(EOFError, OSError):
        config, parent = pipe.recv()
        exit_with_parent(parent)
        worker = Worker(config)
        while True:
            event = pipe.recv()
            try:
                answer = worker.do(event), ""
            except Exception as error:  # noqa: BLE001 -- in words, as not every error can be sent
                kind = "" if isinstance(error, WorkshopError) else f"{type(error).__name__}: "
                answer = {}, f"{kind}{error}"
            pipe.send(answer)


if __name__ == "__main__":
    main()
