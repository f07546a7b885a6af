"""A mixed load through a queue: send rounds of messages, have them processed, account for all."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pandas as pd
import psycopg2
from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.database import Database
from workshop_lib.errors import WorkshopError, redact
from workshop_lib.load.drivers import Driver
from workshop_lib.load.interrupts import one_interrupt
from workshop_lib.load.jobs import Done, Message, messages_of
from workshop_lib.load.report import FIRST_ERRORS, LoadReport
from workshop_lib.load.rows import count_by_message
from workshop_lib.load.scenario import MixedScenario

MAX_A_REQUEST = 10
"""Messages of one request to SQS."""
LOOK_S = 0.2
EMPTY_LOOKS = 10
"""So often in a row a queue has to look empty: its numbers are approximate, and 0 for moments."""
WAIT_S = 1
PAUSE_S = 0.3
NUMBERS = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue and its dead-letter queue, as `Workshop.open_queue` finds them, and a client.

    Attributes:
        sqs: the client.
        url, dead: the queues.

    """

    sqs: Any = field(repr=False)
    url: str = field(repr=False)
    dead: str = field(repr=False)


def run_mixed(
    database: Database,
    queue: Queue,
    scenario: MixedScenario,
    driver: Driver | None,
    *,
    run: int | None = None,
) -> LoadReport:
    """Send a mixed load through a queue and have it processed.

    Pollers hand messages to a driver's workers and delete those that were processed, as Lambda's
    event source mapping does for functions; the others are delivered again. So a worker may meet a
    message twice, and INSERTs are made to bear that.

    Without a driver somebody else processes the queue: a Lambda function that it is mapped to. Then
    an INSERT has succeeded when its rows are in the table, and the other messages when both queues
    are empty. How long statements took is in CloudWatch alone, and how long batches took in the
    function's own metrics.

    A request to the queue that failed is no answer: what could not be sent, read or counted for
    sure is unknown.

    Args:
        database: where rows are counted; the workers were given the same one.
        queue: an empty one.
        scenario: what to send.
        driver: whose workers process it; None if others do.
        run: its number; a new one if there is none.

    Returns:
        The report; also after an Interrupt, of what had been done by then.

    Raises:
        DataError: a value of the scenario is out of range.
        WorkshopError: the queue holds messages of something else, or does not say.

    """
    scenario.check()
    return _Run(database, queue, scenario, driver, new_number() if run is None else run).run()


def new_number() -> int:
    """A number for a run: the ids of its rows follow from it."""
    return secrets.randbits(31)


class _Run:
    """A mixed load under way: sets of messages, by their numbers, and what was seen of the queue.

    Attributes:
        given: sent, for sure or perhaps: the request broke on its way.
        done: what workers reported of those that they processed.
        deleted: processed, and out of the queue.
        dead: in the dead-letter queue.
        emptied: the queue looked empty for so long that nothing can be in it.

    """

    def __init__(
        self,
        database: Database,
        queue: Queue,
        scenario: MixedScenario,
        driver: Driver | None,
        number: int,
    ) -> None:
        self.database, self.queue, self.number = database, queue, number
        self.scenario, self.driver = scenario, driver
        self.rounds = messages_of(scenario, number, database.schema)
        self.planned = {message.number: message for each in self.rounds for message in each}
        self.lock = threading.Lock()
        self.stop, self.sent_all = threading.Event(), threading.Event()
        self.given, self.deleted, self.dead = set[int](), set[int](), set[int]()
        self.done: dict[int, Done] = {}
        self.emptied = False
        self.requests, self.deliveries = 0, Counter[int]()
        self.executions: list[tuple[float, float, int]] = []
        self.depth: list[tuple[float, int, int]] = []
        self.errors: list[str] = []

    def run(self) -> LoadReport:
        look = self._look()
        if look is None or any(look):
            what = f"holds {sum(look)} messages already" if look else f"gave {self.errors[0]}"
            raise WorkshopError(
                f"The queue {what}, so nothing was sent. Are they of another load test? Wait until "
                "it is over, or purge the queue."
            )
        self.started, interrupted = time.perf_counter(), False
        pollers = self.driver.at_once if self.driver else 0
        with one_interrupt(last=False):
            with ThreadPoolExecutor(pollers + 1, thread_name_prefix="mixed") as threads:
                try:
                    tasks = [threads.submit(self._send)]
                    tasks += [threads.submit(self._poll) for _ in range(pollers)]
                    self._watch()
                except KeyboardInterrupt:
                    interrupted = True
                finally:
                    self.stop.set()
            for task in tasks:
                task.result()
            return self._report(time.perf_counter() - self.started, interrupted=interrupted)

    def _send(self) -> None:
        """Send each round at its time, whether or not the ones before it have been processed."""
        for number, messages in enumerate(self.rounds):
            ahead = self.started + number * self.scenario.wait_s - time.perf_counter()
            if self.stop.wait(max(0.0, ahead)):
                return
            for at in range(0, len(messages), MAX_A_REQUEST):
                batch = messages[at : at + MAX_A_REQUEST]
                entries = [
                    {"Id": str(m.number), "MessageBody": msgspec.json.encode(m).decode()}
                    for m in batch
                ]
                answer = self._ask("send_message_batch", QueueUrl=self.queue.url, Entries=entries)
                refused = {int(one["Id"]) for one in answer.get("Failed", [])}
                self.given |= {m.number for m in batch} - refused
        self.sent_all.set()

    def _watch(self) -> None:
        """Note the queue's depth until all is done, or the time for it is over."""
        end = self.started + self.scenario.duration_s + self.scenario.drain_s
        empty = 0  # how often in a row it was
        while not self.emptied and time.perf_counter() < end:
            self.stop.wait(LOOK_S)
            look = self._look()
            if look is not None:
                self.depth.append((time.perf_counter() - self.started, *look))
            empty = empty + 1 if look == (0, 0) else 0  # no answer is no empty queue
            if empty and self._open:
                self._collect_dead()
            self.emptied = self.sent_all.is_set() and (
                not self._open if self.driver else empty >= EMPTY_LOOKS and self._all_stored()
            )

    @property
    def _open(self) -> set[int]:
        """Messages that may be in the queue."""
        with self.lock:
            return self.given - self.deleted - self.dead

    def _all_stored(self) -> bool:
        """Whether every INSERT has its rows: a queue that looks empty may not be so."""
        return self._inserts(self.given - self.dead) <= self._stored(self._count())

    def _poll(self) -> None:
        """Receive messages, have a worker process them, delete those that it did."""
        while not self.stop.is_set():
            messages = self._receive(self.queue.url)
            if messages:
                self._hand_over(messages)
            elif messages is None:
                self.stop.wait(PAUSE_S)

    def _hand_over(self, messages: Sequence[Mapping[str, Any]]) -> None:
        records = [{"messageId": m["MessageId"], "body": m["Body"]} for m in messages]
        with self.lock:
            self.deliveries.update(self._numbers(messages))
        began = time.perf_counter()
        assert self.driver is not None  # noqa: S101 -- there are no pollers without
        try:
            answer = self.driver.do({"Records": records}, self.scenario.visibility_timeout_s)
            failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
            done = msgspec.convert(answer["done"], list[Done])
        except Exception as error:  # noqa: BLE001 -- whatever it was, they come again
            self._note(error)
            return
        took = time.perf_counter() - began
        with self.lock:
            self.executions.append((began - self.started, took, len(messages)))
            self.done |= {one.worker: one for one in done if not one.error_count} | self.done
        for said in filter(None, [*(e for one in done for e in one.errors), answer["metrics"]]):
            self._note(said)
        gone = self._delete(self.queue.url, [m for m in messages if m["MessageId"] not in failed])
        with self.lock:
            self.deleted.update(gone)

    def _collect_dead(self) -> None:
        """Read the dead-letter queue out, and empty it of this run's messages."""
        while messages := self._receive(self.queue.dead):
            # A given queue may hold those of others, which they will want to look at.
            ours = [m for m in messages if self._numbers([m])]
            with self.lock:
                self.dead.update(self._numbers(ours))
            self._delete(self.queue.dead, ours)

    def _receive(self, url: str) -> list[Any] | None:
        """Some messages; None if the request failed."""
        asked = {"QueueUrl": url, "MaxNumberOfMessages": MAX_A_REQUEST, "WaitTimeSeconds": WAIT_S}
        answer = self._ask("receive_message", **asked)
        return answer.get("Messages", []) if answer else None

    def _delete(self, url: str, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Delete messages. Returns the numbers of those that are gone."""
        handles = enumerate(message["ReceiptHandle"] for message in messages)
        entries = [{"Id": str(n), "ReceiptHandle": handle} for n, handle in handles]
        if not entries:
            return []
        answer = self._ask("delete_message_batch", QueueUrl=url, Entries=entries)
        return self._numbers(messages[int(one["Id"])] for one in answer.get("Successful", []))

    def _look(self) -> tuple[int, int] | None:
        """How many messages wait, and how many are being processed; None if it does not say."""
        answer = self._ask("get_queue_attributes", QueueUrl=self.queue.url, AttributeNames=NUMBERS)
        try:
            waiting, processed = (int(answer["Attributes"][name]) for name in NUMBERS)
        except (KeyError, ValueError):
            self._note("no number of the messages that it holds")
            return None
        return waiting, processed

    def _ask(self, call: str, **asked: Any) -> dict[str, Any]:
        """The answer to a request to the queue; empty if it failed, which is noted."""
        with self.lock:
            self.requests += 1
        try:
            answer: dict[str, Any] = getattr(self.queue.sqs, call)(**asked)
        except (ClientError, BotoCoreError) as error:
            self._note(error)
            return {}
        for one in answer.get("Failed", []):
            self._note(one.get("Message", one))
        return answer

    def _numbers(self, messages: Iterable[Mapping[str, Any]]) -> list[int]:
        """The numbers of messages; those of others are left out."""
        found = []
        for one in messages:
            with suppress(msgspec.ValidationError, msgspec.DecodeError):
                message = msgspec.json.decode(one["Body"], type=Message)
                if message.run == self.number and message.number in self.planned:
                    found.append(message.number)
        return found

    def _inserts(self, numbers: Iterable[int]) -> set[int]:
        return {number for number in numbers if self.planned[number].action == "INSERT"}

    def _count(self) -> dict[int, int] | None:
        """How many rows each message has in the table; None if they cannot be counted."""
        try:
            return count_by_message(self.database, self.number)
        except (WorkshopError, psycopg2.Error) as error:
            self._note(error)
            return None

    def _stored(self, rows: Mapping[int, int] | None) -> set[int]:
        """The messages whose rows are all there."""
        each = self.scenario.statements_per_message
        return {number for number, found in (rows or {}).items() if found == each}

    def _note(self, error: object) -> None:
        if len(self.errors) < FIRST_ERRORS:
            self.errors.append(redact(error))

    def _report(self, seconds: float, *, interrupted: bool) -> LoadReport:
        if self._open and not self.emptied:
            self._collect_dead()
        rows, each = self._count(), self.scenario.statements_per_message
        if self.driver is None:
            inserts = self._inserts(self.given)
            reads = self.given - inserts if self.emptied else set()
            for number in (inserts & self._stored(rows) | reads) - self.dead:
                stored = each if number in inserts else 0
                self.done[number] = Done(worker=number, planned=1, success_count=1, rows=stored)
            if not (self.done or interrupted):
                self._note(
                    "Nobody processed a message. Is the queue mapped to the function, and the "
                    "mapping enabled (the stack's parameter QueueProcessed)? Its log says more."
                )
        return LoadReport.of(
            self.driver,
            [self._end_of(number, interrupted=interrupted) for number in self.planned],
            None if rows is None else sum(rows.values()),
            self.errors,
            unit="messages",
            rows_each=each,
            run=self.number,
            load=self.scenario,
            by_others=self.driver is None,
            redelivered=sum(n - 1 for n in self.deliveries.values()) if self.driver else None,
            requests=self.requests,
            seconds=seconds,
            executions=pd.DataFrame(sorted(self.executions), columns=["at", "seconds", "messages"]),
            depth=pd.DataFrame(self.depth, columns=["at", "waiting", "processed"]),
            interrupted=interrupted,
        )

    def _end_of(self, number: int, *, interrupted: bool) -> Done:
        """What became of a message."""
        if number in self.done:
            return self.done[number]
        if number in self.dead:
            return Done(worker=number, planned=1, error_count=1)
        if number in self.given:
            state = "interrupted" if interrupted else "lost"
            return Done(worker=number, planned=1, state=state)
        return Done(worker=number, planned=1, dropped=1, state="not begun")
