"""What happens to a message that always fails: delivered again, and in the end set aside."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from workshop_lib.errors import WorkshopError
from workshop_lib.load.drivers import Driver
from workshop_lib.load.mixed import Queue

WAIT_S = 1
SPARE_S = 10.0
HANDLED_S = 30.0


def follow_poison_message(
    queue: Queue,
    driver: Driver,
    message: Mapping[str, Any],
    *,
    patience_s: float = 30.0,
    say: Callable[[str], object] = print,
) -> pd.DataFrame:
    """Send a message that always fails, and follow it into the dead-letter queue.

    Args:
        queue: an empty one.
        driver: whose workers try it.
        message: as JSON carries it.
        patience_s: a queue in which this would take longer is left alone.
        say: told if it is.

    Returns:
        A row for each time that the message was received; columns: seconds (since it was sent),
        received from (which queue), delivery (to a worker: its number). No row where it was not
        tried.

    Raises:
        WorkshopError: a worker did work it off, or it has not arrived in time.

    """
    hidden_s, receives = queue.manners()
    takes_s = hidden_s * receives
    rows: list[tuple[float, str, str]] = []
    if takes_s > patience_s:
        say(
            f"Not tried here: this queue hides a message for {hidden_s:,} s after each delivery, "
            f"and sets it aside after {receives} of them, so it would take {takes_s / 60:.0f} "
            "minutes. (Where a function works a queue off, the time is six times the function's.)"
        )
    else:
        rows = _follow(queue, driver, json.dumps(message), takes_s + SPARE_S)
    return pd.DataFrame(rows, columns=["seconds", "received from", "delivery"]).round(1)


def _follow(queue: Queue, driver: Driver, body: str, limit_s: float) -> list[Any]:
    found: list[Any] = []
    sent = time.perf_counter()
    queue.sqs.send_message(QueueUrl=queue.url, MessageBody=body)
    while time.perf_counter() - sent < limit_s:
        for one in _receive(queue, queue.url, WAIT_S):
            seconds = time.perf_counter() - sent
            records = [{"messageId": one["MessageId"], "body": one["Body"]}]
            future = driver.start({"Records": records}, HANDLED_S)
            # A worker that ended over it has not processed it, either.
            if future.exception() is None and not future.result()["batchItemFailures"]:
                queue.sqs.delete_message(QueueUrl=queue.url, ReceiptHandle=one["ReceiptHandle"])
                raise WorkshopError("This message was processed. Use one that fails.")
            # Not deleted: when its visibility timeout is over, it can be received again.
            found.append((seconds, "the queue", str(len(found) + 1)))
        for one in _receive(queue, queue.dead, 0):
            if one["Body"] == body:  # others are somebody else's, who will want to look at them
                queue.sqs.delete_message(QueueUrl=queue.dead, ReceiptHandle=one["ReceiptHandle"])
                return [*found, (time.perf_counter() - sent, "the dead-letter queue", "")]
    raise WorkshopError(
        f"The message has not arrived in the dead-letter queue after {limit_s:.0f} s. Does "
        "somebody else receive from this queue?"
    )


def _receive(queue: Queue, url: str, wait_s: int) -> list[Any]:
    found = queue.sqs.receive_message(QueueUrl=url, WaitTimeSeconds=wait_s)
    return list(found.get("Messages", []))
