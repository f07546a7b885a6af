"""One worker of a load test: the same code in a local process and as an AWS Lambda function."""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from multiprocessing.connection import Connection as Pipe
from typing import Any

import msgspec
import psycopg2
from botocore.exceptions import BotoCoreError, ClientError
from psycopg2.extensions import connection as Connection, cursor as Cursor
from psycopg2.extras import execute_values

from workshop_lib.database import Database
from workshop_lib.dsql import is_conflict
from workshop_lib.errors import ServiceUnreachableError, SettingsError, WorkshopError, redact
from workshop_lib.load.events import COLUMNS, EventRow, events
from workshop_lib.load.jobs import Done, InsertJob, Message, Ping
from workshop_lib.load.scenario import MAX_STATEMENTS
from workshop_lib.load.traffic import ACTIONS, STATEMENTS, values_of
from workshop_lib.orphans import exit_with_parent
from workshop_lib.queues import messaging_client
from workshop_lib.services import DatabaseEndpoint, MessagingEndpoint, endpoints
from workshop_lib.settings import Settings, load_settings

log = logging.getLogger(__name__)
ERRORS = (WorkshopError, psycopg2.Error)
SILENCE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
"""Of libpq: a connection over which nothing has come for 30 seconds is lost. (A database that is
there and does not answer is what a job's time limit is for.)"""
SPARE_S = 1.0
"""A Lambda function stops beginning statements so long before it would be ended."""
PATIENCE_S = 10.0
"""How long a worker tries to reach a database that has gone away, for one statement, seconds."""
PAUSE_S, MAX_PAUSE_S = 0.005, 0.25
MAX_VALUES = 150
"""Values of one datum (CloudWatch API Reference, "MetricDatum")."""
INTO = f"INSERT INTO business_events ({', '.join(COLUMNS)}) VALUES %s ON CONFLICT (id) DO NOTHING"  # noqa: S608 -- constants


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What a worker process is given to work with; it travels through a pipe: it holds passwords.

    Attributes:
        database: where to write, and to read unless there is a `reader`.
        namespace: the schema.
        reader: another endpoint of the same data, for reads.
        messaging: where metrics go; None if they go nowhere.

    """

    database: DatabaseEndpoint
    namespace: str
    reader: DatabaseEndpoint | None = None
    messaging: MessagingEndpoint | None = None


class Worker:
    """What one process or one Lambda execution environment keeps from job to job."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._clients: Clients | None = None

    def do(self, event: Any, until: float = math.inf) -> dict[str, Any]:
        """Do a job, or process a batch of messages.

        Args:
            event: the job as JSON carries it, or what SQS hands to a function.
            until: when this worker will be ended, by `time.monotonic()`.

        Raises:
            WorkshopError: the event is neither; the text says why.

        """
        if isinstance(event, dict) and "Records" in event:
            return process_batch(event["Records"], self.clients, until - SPARE_S)
        try:
            job = msgspec.convert(event, Ping | InsertJob)
        except msgspec.ValidationError as error:
            raise WorkshopError(f"This is not a job for a load worker: {error}.") from None
        done = JOBS[type(job)](job, self.clients(job.namespace), until - SPARE_S)
        log.info("%s: %d of %d", type(job).__name__, done.success_count, done.planned)
        found: dict[str, Any] = msgspec.to_builtins(done)
        return found

    def clients(self, namespace: str = "") -> Clients:
        """The clients for a namespace, the worker's own if it is empty; of one at a time.

        A function outlives the runs that used it: those of another namespace are closed.
        """
        name = namespace or self._config.namespace
        if self._clients is None or self._clients.namespace != name:
            self.close()
            self._clients = Clients(replace(self._config, namespace=name))
        return self._clients

    def close(self) -> None:
        """Let go of everything."""
        if self._clients is not None:
            self._clients.close()


class Clients:
    """The clients made of a `ClientConfig`.

    Attributes:
        namespace: the schema.
        writer, reader: a connection for writes, and one for reads; the same where there is no other
            endpoint.

    """

    def __init__(self, config: ClientConfig) -> None:
        self._config, self.namespace = config, config.namespace
        self.writer = self.reader = Session(config.database, config.namespace)
        if config.reader is not None:
            self.reader = Session(config.reader, config.namespace)

    @cached_property
    def cloudwatch(self) -> Any:
        """The client for metrics; None if they go nowhere."""
        messaging = self._config.messaging
        return messaging_client(messaging, "cloudwatch") if messaging else None

    def close(self) -> None:
        """Let go of everything."""
        self.writer.close()
        self.reader.close()
        if client := vars(self).get("cloudwatch"):
            client.close()


class Session:
    """A connection that a worker keeps, opened again when it broke."""

    _cursor: Cursor

    def __init__(self, endpoint: DatabaseEndpoint, namespace: str) -> None:
        arguments = {**SILENCE, **endpoint.arguments}
        self.database = Database(replace(endpoint, arguments=arguments), namespace, pool_min=1)
        self._connection: Connection | None = None

    def connect(self) -> Cursor:
        """The cursor of the connection, which is opened if need be.

        Raises:
            WorkshopError: the database gave none.

        """
        if self._connection is None or self._connection.closed:
            self._connection = self.database.connect()
            self._cursor: Cursor = self._connection.cursor()
        return self._cursor

    def run(self, send: Callable[[Cursor], int], end: float, done: Done) -> int:
        """Send a statement until it is clear what became of it; it may be sent more than once.

        Again after a conflict and after a lost connection, with random pauses that grow.

        Args:
            send: sends it, in a transaction of its own, and returns how many rows are new.
            end: by when to have done, by `time.monotonic()`.
            done: told of each further attempt.

        Raises:
            WorkshopError, psycopg2.Error: it failed in the end.

        """
        give_up, pause_s = min(end, time.monotonic() + PATIENCE_S), PAUSE_S
        while True:
            try:
                return send(self.connect())
            except (WorkshopError, psycopg2.Error) as error:
                lost = is_lost(error)
                if time.monotonic() >= give_up or not (lost or is_conflict(error)):
                    raise
            done.reconnects += lost
            done.conflicts += not lost
            if lost:
                self.close()
            time.sleep(random.uniform(0, pause_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def close(self) -> None:
        """Close the connection; the next statement opens another one."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def is_lost(error: BaseException) -> bool:
    """Whether the database was not there, or went away in the middle of a statement."""
    if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return not error.pgcode or error.pgcode.startswith(("08", "57P"))
    return isinstance(error, ServiceUnreachableError)


def describe(_job: Ping, clients: Clients, _end: float) -> Done:
    """What this worker has.

    Raises:
        WorkshopError: the database gave no answer.

    """
    clients.writer.connect()
    memory = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
    reader = "" if clients.reader is clients.writer else clients.reader.database.endpoint.host
    return Done(memory_mb=int(memory) if memory else None, reader=reader)


def insert(job: InsertJob, clients: Clients, end: float) -> Done:
    """Make rows, store them, and count what became of them.

    Args:
        job: what to insert.
        clients: by which.
        end: when to begin no further statement, by `time.monotonic()`.

    """
    done, load = Done(worker=job.worker, planned=job.planned), job.load
    end = min(end, time.monotonic() + load.time_limit_s)
    place = f"{job.run}/{'warm-up-' if job.warm_up else ''}{job.worker:05d}"
    rng = random.Random(place)
    session = clients.writer
    with suppress(WorkshopError):  # the first statement will try for longer
        session.connect()
    began, cpu = time.perf_counter(), time.process_time()
    for number in range(job.statements):
        # A worker's statement of this number has the same ids whenever it is sent.
        ids = (f"{place}/{number:07d}/{row:04d}" for row in range(load.rows))
        rows = list(events(load.event_type, ids, rng, datetime.now(UTC)))
        if time.monotonic() >= end:
            break
        sent = time.perf_counter()
        try:
            new = session.run(partial(_insert_rows, rows), end, done)
        except ERRORS as error:
            done.note(error, len(rows))
            if is_lost(error):
                break
            continue
        done.success_count += new
        done.already_there += len(rows) - new
        done.time(began, sent, "INSERT")
    done.rows = done.success_count + done.already_there
    done.dropped = done.planned - done.success_count - done.already_there - done.error_count
    return done.finish(began, cpu)


def _insert_rows(rows: list[EventRow], cursor: Cursor) -> int:
    """One statement, one transaction. Returns how many rows are new, as the database says."""
    execute_values(cursor, INTO, rows, page_size=len(rows))
    return cursor.rowcount


def _run_statement(action: str, values: Sequence[Any], cursor: Cursor) -> int:
    """Run one of the statements, and fetch its answer. Returns how many rows it is about."""
    cursor.execute(STATEMENTS[action], values)
    if action != "INSERT":
        cursor.fetchall()
    return cursor.rowcount


JOBS: dict[type, Callable[[Any, Clients, float], Done]] = {
    Ping: describe,
    InsertJob: insert,
}


def process_batch(
    records: Sequence[Any], clients_of: Callable[[str], Clients], end: float
) -> dict[str, Any]:
    """Process a batch of messages, each by itself: one that fails does not affect the others.

    Args:
        records: what SQS hands to a Lambda function: `messageId` and `body` of each.
        clients_of: by which, given a message's namespace.
        end: messages that are not begun by then go back to the queue, by `time.monotonic()`.

    Returns:
        `batchItemFailures`, as Lambda wants it: the messages that the queue shall deliver again.
        Beside it `done`, what became of each that was begun, and `metrics`, why metrics could not
        be sent, empty if they were.

    """
    failures, done = [], []
    published: dict[str, list[Done]] = {}
    for record in records:
        answer = Done()
        try:
            message = msgspec.json.decode(record["body"], type=Message)
        except msgspec.DecodeError as error:
            # After so many receives it goes to the dead-letter queue, where one can look at it.
            log.warning("This is not a message for a load worker: %s", error)
        else:
            if time.monotonic() < end:
                answer = _process(message, clients_of(message.namespace), end)
                done.append(answer)
                published.setdefault(message.namespace, []).append(answer)
        if not answer.success_count:
            failures.append({"itemIdentifier": record["messageId"]})
    said = [publish(clients_of(namespace), worked) for namespace, worked in published.items()]
    return {
        "batchItemFailures": failures,
        "done": msgspec.to_builtins(done),
        "metrics": "; ".join(filter(None, said)),
    }


def _process(message: Message, clients: Clients, end: float) -> Done:
    done = Done(worker=message.number, planned=1)
    rng, began = random.Random(f"{message.run}/{message.number}"), time.perf_counter()
    try:
        session = _session_for(message, clients)
        for step in range(message.statements):
            number = message.number * MAX_STATEMENTS + step
            values = values_of(message.action, rng, message.run, number)
            sent = time.perf_counter()
            session.run(partial(_run_statement, message.action, values), end, done)
            # In autocommit mode the answer is that of the COMMIT: it is part of the duration.
            done.time(began, sent, message.action)
            time.sleep(message.think_ms / 1e3)  # no transaction is open meanwhile
        done.success_count = 1
        done.rows = len(done.calls) if message.action == "INSERT" else 0
    except ERRORS as error:
        done.note(error, 1)
        done.calls.clear()
    return done


def _session_for(message: Message, clients: Clients) -> Session:
    """The connection that a message wants.

    Raises:
        WorkshopError: for reads there is to be another endpoint, and there is none.

    """
    if message.target == "writer":
        return clients.writer
    if clients.reader is clients.writer:
        raise WorkshopError(
            "Reads are to go elsewhere, and this worker is told no other endpoint. Set "
            "DSQL_READ_ENDPOINT in its environment."
        )
    return clients.reader


def publish(clients: Clients, done: Sequence[Done]) -> str:
    """Send DURATION (ms) and COMPLETIONS of a batch to CloudWatch, in one request.

    Returns:
        Why that failed; empty if it did not. A lost metric is no reason to do work again.

    """
    data: list[dict[str, Any]] = []
    for action in ACTIONS:
        found = [us for one in done for _, us, what in one.calls if what == action]
        common = {
            "Dimensions": dimensions(clients.namespace, action),
            "Timestamp": datetime.now(UTC),
            "StorageResolution": 1,
        }
        completed = {"MetricName": "COMPLETIONS", "Value": len(found), "Unit": "Count"}
        data += [completed | common] if found else []
        counted = list(Counter(round(us / 1e3, 1) for us in found).items())
        for at in range(0, len(counted), MAX_VALUES):
            values, counts = map(list, zip(*counted[at : at + MAX_VALUES], strict=True))
            lasted = {"MetricName": "DURATION", "Values": values, "Counts": counts}
            data.append({**lasted, "Unit": "Milliseconds", **common})
    if data and clients.cloudwatch is not None:
        try:
            clients.cloudwatch.put_metric_data(
                Namespace=metrics_namespace(clients.namespace), MetricData=data
            )
        except (BotoCoreError, ClientError) as error:
            return redact(error)
    return ""


def metrics_namespace(namespace: str) -> str:
    """Where the metrics of a workshop's load tests are in CloudWatch."""
    return f"CacheAsideWorkshop/{namespace}"


def dimensions(namespace: str, action: str) -> list[dict[str, str]]:
    """By what a workshop's metrics are told apart there."""
    # The second would do on AWS; the emulation knows metrics by their dimensions only.
    return [{"Name": "DATABASE", "Value": namespace}, {"Name": "ACTION", "Value": action}]


# --- as an AWS Lambda function

_worker: Worker | None = None


def handler(event: Any, context: Any) -> dict[str, Any]:
    """What AWS Lambda calls, with a job as `jobs` describes them, or messages of a queue.

    Raises:
        WorkshopError: the event is no job, or the settings in the environment are not usable.

    """
    global _worker  # noqa: PLW0603 -- one worker a Lambda execution environment
    if _worker is None:
        logging.getLogger().setLevel((os.environ.get("LOG_LEVEL") or "info").upper())
        settings = load_settings().values
        _worker = Worker(
            ClientConfig(
                named_database(settings),
                settings.workshop_namespace,
                reader=endpoints.external_reader(settings),
                messaging=endpoints.external_messaging(settings),
            )
        )
    return _worker.do(event, time.monotonic() + context.get_remaining_time_in_millis() / 1e3)


def named_database(settings: Settings) -> DatabaseEndpoint:
    """The database that a worker on another machine is to use.

    Raises:
        SettingsError: the settings name none, or not in its form.

    """
    found = endpoints.external_database(settings)
    if found is None:
        raise SettingsError(
            "This worker is not told which database to use. On AWS Lambda, set DSQL_ENDPOINT in "
            "the function's environment (AWS_REGION is there already)."
        )
    return found


# --- as a process of LocalWorkers


def main() -> None:
    """Do the jobs that come through the pipe, until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this
    pipe = Pipe(int(sys.argv[1]))
    with suppress(EOFError, OSError):  # the other end was closed
        config, parent = pipe.recv()
        exit_with_parent(parent)
        worker = Worker(config)
        while True:
            pipe.send(_answer(worker, pipe.recv()))


def _answer(worker: Worker, event: Any) -> tuple[dict[str, Any], str]:
    """What came of a job, and why nothing did: in words, as not every error can be sent."""
    try:
        return worker.do(event), ""
    except WorkshopError as error:
        return {}, str(error)
    except Exception as error:  # noqa: BLE001 -- as it says
        return {}, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
