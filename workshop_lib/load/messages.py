"""What a worker does with messages of the queue: run their statements, and publish metrics."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg2
from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.database import Database
from workshop_lib.errors import WorkshopError, redact
from workshop_lib.load.clients import Clients, attempts
from workshop_lib.load.jobs import MAX_STATEMENTS, Message, MessageDone
from workshop_lib.load.traffic import ACTIONS, STATEMENTS, Action, Values, values_of

MAX_VALUES = 150
"""Values of one datum (CloudWatch API Reference, "MetricDatum")."""


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
        Beside it `done`, what became of each of the others and of those that failed, and
        `metrics`, why metrics could not be sent, empty if they were.

    """
    failures, done = [], []
    to_publish: dict[str, list[MessageDone]] = {}
    for record in records:
        message = _read(str(record["body"]))
        answer = _attend(message, clients_of(message.namespace), end) if message else None
        if answer is None or answer.error:
            failures.append({"itemIdentifier": record["messageId"]})
        if answer is not None:
            done.append(answer)
        if message and answer and not answer.error:
            to_publish.setdefault(message.namespace, []).append(answer)
    said = (publish(clients_of(namespace), worked) for namespace, worked in to_publish.items())
    return {
        "batchItemFailures": failures,
        "done": msgspec.to_builtins(done),
        "metrics": "; ".join(error for error in said if error),
    }


def _read(body: str) -> Message | None:
    """What a message says; None if it is none of ours.

    After so many receives such a one goes to the dead-letter queue, where one can look at it.
    """
    try:
        return msgspec.json.decode(body, type=Message)
    except (msgspec.ValidationError, msgspec.DecodeError):
        return None


def _attend(message: Message, clients: Clients, end: float) -> MessageDone | None:
    """One message; None if there was no time for it."""
    if time.monotonic() >= end:
        return None
    database = clients.reader if message.target == "reader" else clients.database
    rng = random.Random(f"{message.run}/{message.number}")
    done = MessageDone(number=message.number, action=message.action)
    try:
        for step in range(message.statements):
            number = message.number * MAX_STATEMENTS + step
            values = values_of(message.action, rng, message.run, number)
            started = time.perf_counter()
            done.rows += run(database, clients, message.action, values, end)
            # In autocommit mode the answer is that of the COMMIT: it is part of the duration.
            done.durations_us.append(round((time.perf_counter() - started) * 1e6))
            time.sleep(message.think_ms / 1e3)  # no transaction is open meanwhile
    except (WorkshopError, psycopg2.Error) as error:
        done.error = redact(error)
    return done


def run(database: Database, clients: Clients, action: Action, values: Values, end: float) -> int:
    """Run one of the statements until it is clear what became of it.

    Returns:
        Rows that are new: 0 or 1 for an INSERT, 0 for the others.

    Raises:
        WorkshopError, psycopg2.Error: it failed in the end.

    """
    for attempt in attempts(end):
        with (
            attempt,
            database.connection() as connection,
            clients.watch.over(connection),
            connection.cursor() as cursor,
        ):
            cursor.execute(STATEMENTS[action], values)
            if action == "INSERT":
                return cursor.rowcount
            cursor.fetchall()
    return 0


def publish(clients: Clients, done: Sequence[MessageDone]) -> str:
    """Send DURATION (ms) and COMPLETIONS of a batch to CloudWatch, in one request.

    Returns:
        Why that failed; empty if it did not. A lost metric is no reason to do work again.

    """
    data: list[dict[str, Any]] = []
    now = datetime.now(UTC)
    for action in ACTIONS:
        found = [us for one in done if one.action == action for us in one.durations_us]
        common = {
            "Dimensions": dimensions(clients.namespace, action),
            "Timestamp": now,
            "StorageResolution": 1,
        }
        completed = {"MetricName": "COMPLETIONS", "Value": len(found), "Unit": "Count"}
        data += [completed | common] if found else []
        counted = list(Counter(round(us / 1e3, 1) for us in found).items())
        for at in range(0, len(counted), MAX_VALUES):
            values, counts = map(list, zip(*counted[at : at + MAX_VALUES], strict=True))
            lasted = {"MetricName": "DURATION", "Values": values, "Counts": counts}
            data.append({**lasted, "Unit": "Milliseconds", **common})
    if not data or clients.cloudwatch is None:
        return ""
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
