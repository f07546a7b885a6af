"""Run a load test: inserts by a driver's workers, or mixed traffic through a queue."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pandas as pd
import psycopg2
from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.database import Database
from workshop_lib.dataset import create_table
from workshop_lib.errors import WorkshopError, redact
from workshop_lib.interrupts import one_interrupt
from workshop_lib.load.drivers import Driver, run_jobs
from workshop_lib.load.report import BATCH, FIRST_ERRORS, LoadReport, make_report
from workshop_lib.load.rows import count_by_message, delete_rows, measured_rows
from workshop_lib.load.scenario import InsertLoad, Job, MixedScenario, insert_jobs, mixed_jobs
from workshop_lib.load.worker import Done
from workshop_lib.progress import progress_bar

# A statement of a worker that was ended may be committed shortly after: so long is waited.
SETTLED_S = 0.3
LOOK_S = 0.2
# So often in a row a queue has to look empty: its numbers are approximate, and 0 for moments.
EMPTY_LOOKS = 10
WAIT_S = 1
PAUSE_S = 0.3
NUMBERS = (
    *("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"),
    "VisibilityTimeout",
)


def run_inserts(database: Database, load: InsertLoad, driver: Driver) -> LoadReport:
    """Make the table `business_events` if need be, insert into it, and count.

    It is a closed loop: each worker sends its next statement when the one before is answered. That
    finds out how much the database takes; how long answers take at a given rate of arrivals is
    another question, which notebook 14 asks.

    Args:
        database: where the rows are counted; the workers were given the same one.
        load: what to do.
        driver: who does it.

    Returns:
        The report; also after an Interrupt, of what had been done by then.

    Raises:
        DataError: a value of the load is out of range.
        KeyboardInterrupt: it came during the warm-up.

    """
    load.check()
    database.create_schema()
    create_table(database, "business_events")
    with _new_run(database) as run:
        warm_up = insert_jobs(load, run, database.schema, warm_up=True)
        if warm_up and run_jobs(driver, warm_up)[1]:
            raise KeyboardInterrupt
        jobs = insert_jobs(load, run, database.schema)
        began = time.perf_counter()
        with progress_bar(load.planned, "insert") as bar:
            share = jobs[0].planned
            done, interrupted = run_jobs(driver, jobs, lambda: bar.update(share))
        seconds = time.perf_counter() - began
        in_table, said = _count_settled(database, run, done)
        return make_report(
            driver, load, done, in_table, said, run=run, seconds=seconds, interrupted=interrupted
        )


@contextmanager
def _new_run(database: Database) -> Iterator[str]:
    """A name for a run: when it began, and a few digits against another at that time.

    Without a report nobody would know the name, so then the rows are deleted.
    """
    run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    try:
        yield run
    except BaseException:
        delete_rows(database, run)
        raise


def _count_settled(
    database: Database, run: str, done: Sequence[Done]
) -> tuple[int | None, list[str]]:
    """The rows of a run without its warm-up's; or None, and why they cannot be counted.

    A worker that ended may have left a statement under way: then until their number stays the same.
    """
    rows, before = measured_rows(run), -1
    settled = all(one.state in {"answered", "not begun"} for one in done)
    try:
        while (found := rows.count(database)) != before and not settled:
            before = found
            time.sleep(SETTLED_S)
    except (WorkshopError, psycopg2.Error) as error:
        return None, [redact(error)]
    return found, []


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
) -> LoadReport:
    """Send a mixed load through a queue and have it processed.

    Pollers hand messages to a driver's workers and delete those that were processed, as Lambda's
    event source mapping does for functions; the others are delivered again. So a worker may meet a
    message twice, and INSERTs are made to bear that.

    Without a driver, a Lambda function that the queue is mapped to processes it. Then an INSERT has
    succeeded when its rows are in the table, and the other messages when the queue is empty. How
    long statements took is in CloudWatch alone.

    A request to the queue that failed is no answer: what could not be sent, read or counted for
    sure is unknown.

    Args:
        database: where rows are counted; the workers were given the same one.
        queue: an empty one.
        scenario: what to send.
        driver: whose workers process it; None if a function does.

    Returns:
        The report; also after an Interrupt, of what had been done by then.

    Raises:
        DataError: a value of the scenario is out of range.
        WorkshopError: the queue holds other messages, or does not answer.

    """
    scenario.check()
    with _new_run(database) as name:
        return _MixedRun(database, queue, scenario, driver, name).run()


@dataclass
class _MixedRun:
    """A mixed load under way. Threads share it: each only adds to it, or replaces a value.

    Attributes:
        database, queue, scenario, driver: as in `run_mixed`.
        name: of the run.
        state: of each message: "not begun", "sent" (for sure, or perhaps: the request broke),
            "deleted" (processed, and out of the queue) or "dead" (in the dead-letter queue).
        done: the records of messages that were processed.
        delivered: the number of a message for each of its deliveries.

    """

    database: Database
    queue: Queue
    scenario: MixedScenario
    driver: Driver | None
    name: str

    def __post_init__(self) -> None:
        self.each = self.scenario.statements_per_message
        self.rounds = mixed_jobs(self.scenario, self.name, self.database.schema)
        self.jobs = {job.number: job for jobs in self.rounds for job in jobs}
        self.inserts = {number for number, job in self.jobs.items() if job.action == "INSERT"}
        self.state = dict.fromkeys(self.jobs, "not begun")
        self.done: dict[int, Done] = {}
        self.delivered: list[int] = []
        self.depth: list[tuple[float, int, int]] = []
        self.errors: list[str] = []
        self.stop = threading.Event()

    def run(self) -> LoadReport:
        look = self._look()
        if not look or any(look[:2]):
            what = f"holds {sum(look[:2])} messages already" if look else f"gave {self.errors[0]}"
            raise WorkshopError(
                f"The queue {what}, so nothing was sent. If another load test is running, wait "
                "until it is over; else purge the queue."
            )
        *_, self.limit_s = look  # a message that is processed for longer is delivered again
        self.started, interrupted = time.perf_counter(), False
        pollers = self.driver.at_once if self.driver else 0
        with one_interrupt(last=False):
            with ThreadPoolExecutor(pollers + 1, thread_name_prefix="mixed") as threads:
                try:
                    sender = threads.submit(self._send)
                    tasks = [sender, *(threads.submit(self._poll) for _ in range(pollers))]
                    self._watch(sender.done)
                except KeyboardInterrupt:
                    interrupted = True
                finally:
                    self.stop.set()
            for task in tasks:
                task.result()
            return self._report(time.perf_counter() - self.started, interrupted=interrupted)

    def _send(self) -> None:
        """Send each round at its time, whether or not the ones before it have been processed."""
        for number, jobs in enumerate(self.rounds):
            ahead = self.started + number * self.scenario.wait_s - time.perf_counter()
            if self.stop.wait(max(0.0, ahead)):
                return
            for at in range(0, len(jobs), BATCH):
                entries = [
                    {"Id": str(job.number), "MessageBody": msgspec.json.encode(job).decode()}
                    for job in jobs[at : at + BATCH]
                ]
                answer = self._ask("send_message_batch", QueueUrl=self.queue.url, Entries=entries)
                refused = {one["Id"] for one in answer.get("Failed", [])}
                for sent in {one["Id"] for one in entries} - refused:
                    if self.state[int(sent)] == "not begun":  # else it is processed already
                        self.state[int(sent)] = "sent"

    def _watch(self, all_sent: Callable[[], bool]) -> None:
        """Note the queue's depth until all is done, or the time for it is over."""
        end = self.started + self.scenario.duration_s + self.scenario.drain_s
        empty = 0  # how often in a row it was
        while time.perf_counter() < end and not (all_sent() and not self._open()):
            self.stop.wait(LOOK_S)
            if look := self._look():
                self.depth.append((time.perf_counter() - self.started, look[0], look[1]))
            empty = empty + 1 if look and not any(look[:2]) else 0  # no answer is no empty queue
            if empty and self._open():
                self._collect_dead()
            if empty >= EMPTY_LOOKS and self.driver is None:
                self._find_done(emptied=True)

    def _poll(self) -> None:
        """Receive messages, have a worker process them, delete those that it did."""
        while not self.stop.is_set():
            if messages := self._receive(self.queue.url):
                self._hand_over(messages)
            else:  # there are none, or the request failed
                self.stop.wait(PAUSE_S)

    def _hand_over(self, messages: Sequence[Mapping[str, Any]]) -> None:
        assert self.driver is not None  # noqa: S101 -- there are no pollers without
        records = [{"messageId": m["MessageId"], "body": m["Body"]} for m in messages]
        self.delivered.extend(self._ours(messages))
        try:
            answer = self.driver.do({"Records": records}, self.limit_s)
            failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
            done = msgspec.convert(answer["done"], list[Done])
        except Exception as error:  # noqa: BLE001 -- whatever it was, they come again
            self._note(error)
            return
        for one in done:
            for said in one.errors:
                self._note(said)
            if one.stored == one.planned:
                self.done.setdefault(one.number, one)
        gone = self._delete(self.queue.url, [m for m in messages if m["MessageId"] not in failed])
        self.state.update(dict.fromkeys(self._ours(gone), "deleted"))

    def _collect_dead(self) -> None:
        """Empty the dead-letter queue of this run's messages; those of others stay."""
        while messages := self._receive(self.queue.dead):
            ours = [message for message in messages if self._ours([message])]
            self.state.update(dict.fromkeys(self._ours(ours), "dead"))
            self._delete(self.queue.dead, ours)

    def _find_done(self, *, emptied: bool) -> None:
        """See in the table, and by the empty queue, what a function has processed by itself."""
        done = self.inserts & {n for n, rows in (self._count() or {}).items() if rows == self.each}
        if emptied and self.inserts & self._open() <= done:
            done |= self._open()  # nothing tells of reads, but the queue is empty
        for number in done & self._open():
            self.done[number] = Done(number=number, planned=self.each, success_count=self.each)
            self.state[number] = "deleted"

    def _receive(self, url: str) -> list[Any]:
        asked = {"QueueUrl": url, "MaxNumberOfMessages": BATCH, "WaitTimeSeconds": WAIT_S}
        found: list[Any] = self._ask("receive_message", **asked).get("Messages", [])
        return found

    def _delete(self, url: str, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Delete messages. Returns those that are gone."""
        entries = [
            {"Id": str(n), "ReceiptHandle": one["ReceiptHandle"]} for n, one in enumerate(messages)
        ]
        answer = self._ask("delete_message_batch", QueueUrl=url, Entries=entries) if entries else {}
        return [messages[int(one["Id"])] for one in answer.get("Successful", [])]

    def _look(self) -> list[int]:
        """Messages that wait, and that are being processed, and the queue's visibility timeout.

        Empty if it does not say.
        """
        asked = {"QueueUrl": self.queue.url, "AttributeNames": NUMBERS}
        answer = self._ask("get_queue_attributes", **asked)
        return [int(answer["Attributes"][name]) for name in NUMBERS] if answer else []

    def _ask(self, call: str, **asked: Any) -> dict[str, Any]:
        """The answer to a request to the queue; empty if it failed, which is noted."""
        try:
            answer: dict[str, Any] = getattr(self.queue.sqs, call)(**asked)
        except (ClientError, BotoCoreError) as error:
            self._note(error)
            return {}
        for one in answer.get("Failed", []):
            self._note(one.get("Message", one))
        return answer

    def _ours(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The numbers of messages; those of others are left out."""
        found = []
        for one in messages:
            with suppress(msgspec.DecodeError):
                job = msgspec.json.decode(one["Body"], type=Job)
                if job == self.jobs.get(job.number):
                    found.append(job.number)
        return found

    def _open(self) -> set[int]:
        """Messages that may be in the queue."""
        return {number for number, state in self.state.items() if state == "sent"}

    def _count(self) -> dict[int, int] | None:
        """How many rows each message has in the table; None if they cannot be counted."""
        try:
            return count_by_message(self.database, self.name)
        except (WorkshopError, psycopg2.Error) as error:
            self._note(error)
            return None

    def _note(self, error: object) -> None:
        if len(self.errors) < FIRST_ERRORS:
            self.errors.append(redact(error))

    def _report(self, seconds: float, *, interrupted: bool) -> LoadReport:
        if self._open():
            self._collect_dead()
        if self.driver is None:
            self._find_done(emptied=False)
        if self.driver is None and not (self.done or interrupted):
            self._note(
                "Nothing processed a message. Is the queue mapped to the function, and the mapping "
                "enabled (the stack's parameter QueueProcessed)? Its log says more."
            )
        for number in self.jobs.keys() - self.done.keys():
            one = self.done[number] = Done(number=number, planned=self.each, state="not begun")
            if self.state[number] == "dead":
                one.state, one.error_count = "answered", self.each
            elif self.state[number] != "not begun":
                one.state = "interrupted" if interrupted else "lost"
        rows = self._count()
        return make_report(
            self.driver,
            self.scenario,
            [self.done[number] for number in self.jobs],
            None if rows is None else sum(rows.values()),
            self.errors,
            each=self.each,
            rows=sum(self.done[number].stored for number in self.inserts),
            run=self.name,
            redelivered=len(self.delivered) - len(set(self.delivered)) if self.driver else None,
            seconds=seconds,
            depth=pd.DataFrame(self.depth, columns=["at", "waiting", "processed"]),
            interrupted=interrupted,
        )
