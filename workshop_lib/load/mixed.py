"""A mixed load through a queue: send rounds of messages, have them processed, account for all."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pandas as pd
from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.database import Database
from workshop_lib.errors import ServiceUnreachableError, WorkshopError, redact
from workshop_lib.load.drivers import Driver
from workshop_lib.load.interrupts import interrupt_event
from workshop_lib.load.jobs import MAX_STATEMENTS, Message, MessageDone
from workshop_lib.load.messages import dimensions, metrics_namespace
from workshop_lib.load.rows import count_by_message, count_or_say
from workshop_lib.load.scenario import convert_scenario, read_file
from workshop_lib.load.traffic import ACTIONS
from workshop_lib.measure import Samples

MAX_A_REQUEST = 10
"""Messages of one request to SQS."""
LOOK_S = 0.2
EMPTY_LOOKS = 10
"""So often in a row a queue has to look empty: its numbers are approximate, and 0 for moments."""
LAST_LOOKS = 3
LATE_S = 300.0
"""CloudWatch shows metrics up to some minutes late."""
ASK_AGAIN_S = 5.0
WAIT_S = 1
PAUSE_S = 0.3
FIRST_ERRORS = 10
MESSAGES = (
    *("planned", "succeeded", "failed", "dropped", "unsent", "queued", "unknown", "redelivered"),
)
ROWS = ("rows_reported", "rows_unreported", "in_table")
AS_IT_IS = ("reconciles", "by_others", "seconds", "interrupted", "errors")
NUMBERS = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
FLAGS = {
    "duration_s": "--duration",
    "wait_s": "--wait",
    "messages_per_batch": "--messages",
    "statements_per_message": "--statements",
    "think_ms": "--think",
    "reads_elsewhere": "--reads-elsewhere",
}
"""Options of the command by the names of the values that they give."""


class MixedScenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The knobs of a mixed load. A name that it does not know is refused.

    Attributes:
        duration_s: how long rounds are sent.
        wait_s: from one round to the next.
        messages_per_batch: messages of each action in a round: SELECT, INSERT and SELECT2.
        statements_per_message: how often a message's statement is run.
        think_ms: pause after each statement, in no transaction.
        reads_elsewhere: SELECT and SELECT2 go to the endpoint for reads, where there is one.
        visibility_timeout_s: a message that is not processed by then is delivered again. On AWS at
            least six times the function's time-out.
        max_receives: after so many deliveries in vain a message goes to the dead-letter queue.
        drain_s: how long after the last round to wait for the queue to empty.

    """

    duration_s: Annotated[float, msgspec.Meta(gt=0, le=3_600)] = 10.0
    wait_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 0.5
    messages_per_batch: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 5
    statements_per_message: Annotated[int, msgspec.Meta(ge=1, le=MAX_STATEMENTS)] = 5
    think_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    reads_elsewhere: bool = False
    visibility_timeout_s: Annotated[int, msgspec.Meta(ge=1, le=43_200)] = 30
    max_receives: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 3
    drain_s: Annotated[float, msgspec.Meta(ge=0, le=3_600)] = 30.0

    @property
    def rounds(self) -> int:
        """How many rounds are sent: one at once, the next after `wait_s`, and so on."""
        return max(1, round(self.duration_s / self.wait_s))

    def messages(self, run: int, namespace: str = "") -> list[list[Message]]:
        """The messages of each round.

        Args:
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
                    statements=self.statements_per_message,
                    target="reader" if self.reads_elsewhere and action != "INSERT" else "writer",
                    think_ms=self.think_ms,
                    namespace=namespace,
                )
                for action in ACTIONS
                for _ in range(self.messages_per_batch)
            ]
            for _ in range(self.rounds)
        ]


def read_mixed(path: str | Path | None = None, **options: object) -> MixedScenario:
    """A mixed scenario from a JSON or TOML file, with options that win over it.

    Args:
        path: the file, or the name of one in data/scenarios/; None for the usual values.
        options: attributes of MixedScenario by name; those that are not None count.

    Raises:
        DataError: the file cannot be read, or a name or value is not usable.

    """
    content = read_file(path) if path else {}
    convert_scenario(content, MixedScenario, str(path))
    given = {name: value for name, value in options.items() if value is not None}
    return convert_scenario({**content, **given}, MixedScenario, "the options", FLAGS)


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

    def manners(self) -> tuple[int, int]:
        """For how long it hides a message that was received, seconds; and how often it does."""
        asked = ["VisibilityTimeout", "RedrivePolicy"]
        found = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=asked)
        receives = json.loads(found["Attributes"]["RedrivePolicy"])["maxReceiveCount"]
        return int(found["Attributes"]["VisibilityTimeout"]), int(receives)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedReport:
    """What came of a mixed load. Messages unless said otherwise; times count from its beginning.

    Attributes:
        run: its number; the ids of its rows follow from it.
        scenario: what was asked for.
        planned, succeeded, failed, unsent, queued, unknown: messages asked for; processed; in the
            dead-letter queue; not sent; still in the queue; and those of which it is not known what
            became. The first is the sum of the others. A request that failed is no answer: what
            could not be sent, read or counted for sure is unknown.
        by_others: a function worked the queue off by itself; then the next three are not known.
        redelivered: deliveries beyond the first of a message; None if not known.
        durations: of the statements of each action, COMMIT included.
        executions: when each invocation of a worker began, how long it took, its messages; seconds.
        depth: when, how many messages waited, how many were being processed.
        rows_reported: rows of messages that were processed.
        rows_unreported: rows of others, which the table has as well.
        in_table: rows of this run that the table has; this and the one before are None if they
            could not be counted.
        requests: to the queue: sent, received, deleted, and looked.
        seconds: until all was processed (by_others: for sure), or the time was up.
        errors: the first few, in words.
        interrupted: it was ended early.

    """

    run: int
    scenario: MixedScenario
    planned: int
    succeeded: int
    failed: int
    unsent: int
    queued: int
    unknown: int
    by_others: bool
    redelivered: int | None
    durations: Mapping[str, Samples]
    executions: tuple[tuple[float, float, int], ...]
    depth: tuple[tuple[float, int, int], ...]
    rows_reported: int
    rows_unreported: int | None
    in_table: int | None
    requests: int
    seconds: float
    errors: tuple[str, ...]
    interrupted: bool

    @property
    def dropped(self) -> int:
        """Messages that came to no end: not sent, still in the queue, or unknown."""
        return self.unsent + self.queued + self.unknown

    @property
    def statements(self) -> int:
        """Statements of the messages that were processed."""
        return self.succeeded * self.scenario.statements_per_message

    @property
    def reconciles(self) -> bool:
        """Whether every message is accounted for once, and the table agrees with what was said.

        Not where it could not be counted.
        """
        accounted = self.succeeded + self.failed + self.dropped
        others = (self.failed + self.dropped) * self.scenario.statements_per_message
        unreported = self.rows_unreported
        return self.planned == accounted and unreported is not None and 0 <= unreported <= others

    def describe(self) -> dict[str, Any]:
        """The figures as a results file keeps them; durations in milliseconds."""
        return {
            "run": self.run,
            "scenario": msgspec.to_builtins(self.scenario),
            "messages": {name: getattr(self, name) for name in MESSAGES},
            "rows": {name: getattr(self, name) for name in ROWS},
            "duration_ms": {
                action: {"n": len(found), "avg": found.mean * 1e3, **_percentiles(found, "p{}")}
                for action, found in self.durations.items()
                if len(found)
            },
            "executions": None if self.by_others else len(self.executions),
            "deepest": max((waiting for _, waiting, _ in self.depth), default=0),
            **{name: getattr(self, name) for name in AS_IT_IS},
        }

    def by_action(self) -> pd.DataFrame:
        """The durations of statements: a row an action; empty if others worked the queue off."""
        return pd.DataFrame(
            {
                action: {"statements": f"{len(found):,}"}
                | {name: f"{ms:.2f}" for name, ms in _percentiles(found, "p{} (ms)").items()}
                for action, found in self.durations.items()
                if len(found)
            }
        ).T

    def __str__(self) -> str:
        parts = [f"{self.succeeded:,} of {self.planned:,} messages in {self.seconds:.1f} s."]
        counts = {
            f"{self.failed:,} failed.": self.failed,
            f"{self.queued:,} are still in the queue.": self.queued,
            f"It is not known what became of {self.unknown:,}.": self.unknown,
            "The rows could not be counted.": self.in_table is None,
            f"{self.unsent:,} were not sent.": self.unsent,
            f"{self.redelivered or 0:,} were delivered again.": self.redelivered,
            "It was interrupted.": self.interrupted,
        }
        parts += [said for said, applies in counts.items() if applies]
        if self.errors:
            parts.append(f"The first error: {self.errors[0]}")
        return " ".join(parts)


def _percentiles(found: Samples, name: str) -> dict[str, float]:
    """Three percentiles by these names, milliseconds."""
    return {name.format(q): found.percentile(q) * 1e3 for q in (50, 95, 99)}


def run_mixed(
    database: Database,
    queue: Queue,
    scenario: MixedScenario,
    driver: Driver | None,
    *,
    run: int | None = None,
) -> MixedReport:
    """Send a mixed load through a queue and have it processed.

    Pollers hand messages to a driver's workers and delete those that were worked off, as Lambda's
    event source mapping does for functions; the others are delivered again. So a worker may meet a
    message twice, and INSERTs are made to bear that.

    Without a driver somebody else works the queue off: a Lambda function that it is mapped to. Then
    an INSERT has succeeded when its rows are in the table, and another message when it has left the
    queue and is not in the dead-letter queue. How long statements took is in CloudWatch alone
    (`read_metrics`), and how long batches took in the function's own metrics.

    Args:
        database: where rows are counted; the workers were given the same one.
        queue: an empty one.
        scenario: what to send.
        driver: whose workers work it off; None if others do.
        run: its number; a new one if there is none (`new_run_number`).

    Returns:
        The report; also after an Interrupt, of what had been done by then.

    Raises:
        DataError: a value of the scenario is out of range.
        WorkshopError: the queue holds messages of something else.

    """
    convert_scenario(msgspec.to_builtins(scenario), MixedScenario, "this scenario")
    number = new_run_number() if run is None else run
    return _Run(database, queue, scenario, driver, number).run()


def new_run_number() -> int:
    """A number for a run: the ids of its rows follow from it."""
    return secrets.randbits(31)


def read_metrics(
    cloudwatch: Any,
    namespace: str,
    began: datetime,
    seconds: float,
    *,
    statements: int = 0,
    late_s: float = LATE_S,
    say: Callable[[str], object] = print,
) -> pd.DataFrame:
    """What CloudWatch has of a mixed load: a row a second and action.

    Args:
        cloudwatch: the client.
        namespace: of the workshop whose load it was.
        began: its first second.
        seconds: how long to look.
        statements: wait until so many are shown; 0 takes what there is.
        late_s: but no longer than this.
        say: told that there is a wait, and how it ended.

    Returns:
        Columns: second (from the beginning), action, completions, duration_ms (mean, or NaN).

    Raises:
        ServiceUnreachableError: CloudWatch gave no answer, or refused the question.

    """
    asked, waited = time.monotonic(), False
    while True:
        found = _read_metrics(cloudwatch, namespace, began, seconds)
        shown, gone = int(found.completions.sum()), time.monotonic() - asked
        if shown >= statements or gone > late_s:
            break
        if not waited:
            say(
                f"CloudWatch shows {shown:,} of {statements:,} statements so far. It is some "
                f"minutes late now and then: waiting for the others, at most {late_s:.0f} s …"
            )
        waited = True
        time.sleep(min(ASK_AGAIN_S, late_s))
    if waited or shown < statements:
        say(f"After {gone:.0f} s it shows {shown:,} of {statements:,}.")
    return found


def _read_metrics(cloudwatch: Any, namespace: str, began: datetime, seconds: float) -> pd.DataFrame:
    start = began.replace(microsecond=0)
    series = [
        (action, kind, statistic)
        for action in ACTIONS
        for kind, statistic in (("COMPLETIONS", "Sum"), ("DURATION", "Average"))
    ]
    pages = cloudwatch.get_paginator("get_metric_data").paginate(
        MetricDataQueries=[
            {
                "Id": f"{kind}_{action}".lower(),
                "MetricStat": {
                    "Metric": {
                        "Namespace": metrics_namespace(namespace),
                        "MetricName": kind,
                        "Dimensions": dimensions(namespace, action),
                    },
                    "Period": 1,
                    "Stat": statistic,
                },
            }
            for action, kind, statistic in series
        ],
        StartTime=start,
        EndTime=start + timedelta(seconds=int(seconds) + 2),
        ScanBy="TimestampAscending",
    )
    found: dict[str, dict[int, float]] = {f"{kind}_{a}".lower(): {} for a, kind, _ in series}
    try:
        for one in (one for page in pages for one in page["MetricDataResults"]):
            at = [round((at - start).total_seconds()) for at in one["Timestamps"]]
            found[one["Id"]].update(zip(at, one["Values"], strict=True))
    except (BotoCoreError, ClientError) as error:
        raise ServiceUnreachableError(
            f"CloudWatch gave no metrics: {redact(error)}. The load itself is counted by the "
            "table and the queue; ask for its metrics again later."
        ) from None
    # A second without a statement has no data in CloudWatch; here it is a row, with 0 completions.
    seen = {second for values in found.values() for second in values}
    rows = [
        (
            second,
            action,
            found[f"completions_{action}".lower()].get(second, 0.0),
            found[f"duration_{action}".lower()].get(second, float("nan")),
        )
        for second in range(min(seen, default=0), max(seen, default=-1) + 1)
        for action in ACTIONS
    ]
    return pd.DataFrame(rows, columns=["second", "action", "completions", "duration_ms"])


class _Run:
    """A mixed load under way."""

    def __init__(
        self,
        database: Database,
        queue: Queue,
        scenario: MixedScenario,
        driver: Driver | None,
        run_number: int,
    ) -> None:
        self.database, self.queue = database, queue
        self.scenario, self.driver = scenario, driver
        self.run_number = run_number
        self.rounds = scenario.messages(run_number, database.schema)
        self.planned = {message.number: message for each in self.rounds for message in each}
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.sent_all = threading.Event()
        self.emptied = False
        self.requests = 0
        self.deliveries = Counter[int]()
        self.done: dict[int, MessageDone] = {}
        self.sent: set[int] = set()
        self.doubtful: set[int] = set()  # sent or not: the request failed on its way
        self.undeleted: set[int] = set()
        self.dead: set[int] = set()
        self.executions: list[tuple[float, float, int]] = []
        self.depth: list[tuple[float, int, int]] = []
        self.errors: list[str] = []

    def run(self) -> MixedReport:
        look = self._look()
        if look is None:
            raise WorkshopError(
                f"How many messages the queue holds cannot be found out: {self.errors[0]} Nothing "
                "was sent."
            )
        if any(look):
            raise WorkshopError(
                f"The queue holds {sum(look)} messages already. Are they of another load "
                "test? Wait until it is over, or purge the queue."
            )
        self.started = time.perf_counter()
        pollers = self.driver.at_once if self.driver else 0
        with interrupt_event() as interrupt:
            with ThreadPoolExecutor(pollers + 2, thread_name_prefix="mixed") as threads:
                tasks = [threads.submit(self._send), threads.submit(self._watch)]
                tasks += [threads.submit(self._poll) for _ in range(pollers)]
                while not (self.stop.is_set() or interrupt.wait(LOOK_S)):
                    pass
                interrupted = not self.stop.is_set()
                self.stop.set()
            for task in tasks:
                task.result()
            return self._report(time.perf_counter() - self.started, interrupted)

    def _send(self) -> None:
        """Send each round at its time, whether or not the ones before it have been worked off."""
        for number, messages in enumerate(self.rounds):
            ahead = self.started + number * self.scenario.wait_s - time.perf_counter()
            if self.stop.wait(max(0.0, ahead)):
                break
            for at in range(0, len(messages), MAX_A_REQUEST):
                self._send_some(messages[at : at + MAX_A_REQUEST])
        self.sent_all.set()

    def _send_some(self, messages: Sequence[Message]) -> None:
        entries = [
            {"Id": str(m.number), "MessageBody": msgspec.json.encode(m).decode()} for m in messages
        ]
        numbers = {m.number for m in messages}
        answer = self._ask("send_message_batch", QueueUrl=self.queue.url, Entries=entries)
        sent = {int(one["Id"]) for one in answer.get("Successful", [])}
        refused = {int(one["Id"]) for one in answer.get("Failed", [])}
        self.sent |= sent
        if not answer.get("refused"):
            self.doubtful |= numbers - sent - refused

    def _watch(self) -> None:
        """Note the queue's depth, and find out when all is done, or the time for it is over."""
        end = self.started + self.scenario.duration_s + self.scenario.drain_s
        empty = 0  # how often in a row it was
        while not self.stop.is_set():
            look = self._look()
            if look is not None:
                self.depth.append((time.perf_counter() - self.started, *look))
            empty = empty + 1 if look == (0, 0) else 0  # no answer is no empty queue
            if self.sent_all.is_set() and self._is_done(empty):
                self.emptied = True
                self.stop.set()
            if time.perf_counter() > end:
                self.stop.set()
            self.stop.wait(LOOK_S)

    def _is_done(self, empty: int) -> bool:
        """Whether all is done, the queue having looked empty so often in a row."""
        if empty and self._open:
            self._collect_dead()
        if self.driver:
            # Workers say which messages they have done: the queue's numbers are not needed, but
            # for those that may never have been sent.
            only_doubtful = self._open <= self.doubtful
            return not self.undeleted and (
                not self._open or (only_doubtful and empty >= EMPTY_LOOKS)
            )
        if empty < EMPTY_LOOKS:
            return False
        rows = self._count()
        return rows is not None and not self._inserts(self.sent - self.dead) - self._stored(rows)

    @property
    def _open(self) -> set[int]:
        """Messages that were sent, or may have been, and have come to no end that is known."""
        with self.lock:
            return (self.sent | self.doubtful) - set(self.done) - self.dead

    def _inserts(self, numbers: Iterable[int]) -> set[int]:
        return {number for number in numbers if self.planned[number].action == "INSERT"}

    def _stored(self, rows: Mapping[int, int]) -> set[int]:
        """The messages whose rows are all there."""
        each = self.scenario.statements_per_message
        return {number for number, found in rows.items() if found == each}

    def _count(self) -> dict[int, int] | None:
        """How many rows each message has in the table; None if they cannot be counted."""
        rows, error = count_or_say(count_by_message, self.database, self.run_number)
        if error:
            self._note(error)
        return rows

    def _ask(self, call: str, **asked: Any) -> dict[str, Any]:
        """Make a request to the queue, and note what fails.

        Returns:
            The answer; of a request that failed an empty one, with `refused` if nothing came of it:
            of one that broke, that is not known.

        """
        with self.lock:
            self.requests += 1
        try:
            answer: dict[str, Any] = getattr(self.queue.sqs, call)(**asked)
        except ClientError as error:
            self._note(error)
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return {"refused": 400 <= status < 500}
        except BotoCoreError as error:
            self._note(error)
            return {}
        for one in answer.get("Failed", []):
            self._note(one.get("Message", one))
        return answer

    def _look(self) -> tuple[int, int] | None:
        """How many messages wait, and how many are being worked off; None if it does not say."""
        asked = {"QueueUrl": self.queue.url, "AttributeNames": NUMBERS}
        answer = self._ask("get_queue_attributes", **asked)
        try:
            waiting, flying = (int(answer["Attributes"][name]) for name in NUMBERS)
        except (KeyError, ValueError):
            self._note("The queue did not say how many messages it holds.")
            return None
        return waiting, flying

    def _receive(self, url: str, wait_s: int) -> list[Any] | None:
        """Some messages; None if the request failed."""
        asked = {"QueueUrl": url, "MaxNumberOfMessages": MAX_A_REQUEST, "WaitTimeSeconds": wait_s}
        answer = self._ask("receive_message", **asked)
        return answer.get("Messages", []) if "ResponseMetadata" in answer else None

    def _poll(self) -> None:
        """Receive messages, have a worker process them, delete those that it did."""
        while not self.stop.is_set():
            messages = self._receive(self.queue.url, WAIT_S)
            if messages is None:
                self.stop.wait(PAUSE_S)
            elif messages:
                self._hand_over(messages)

    def _hand_over(self, messages: Sequence[Mapping[str, Any]]) -> None:
        records = [{"messageId": m["MessageId"], "body": m["Body"]} for m in messages]
        with self.lock:
            self.deliveries.update(self._numbers(messages))
        began = time.perf_counter()
        assert self.driver is not None  # noqa: S101 -- there are no pollers without
        try:
            answer = self.driver.start(
                {"Records": records}, self.scenario.visibility_timeout_s
            ).result()
            failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
            done = msgspec.convert(answer["done"], list[MessageDone])
        except Exception as error:  # noqa: BLE001 -- whatever it was, they come again
            self._note(error)
            return
        with self.lock:
            took = time.perf_counter() - began
            self.executions.append((began - self.started, took, len(messages)))
            for one in done:
                if one.error:
                    self._note(one.error)
                else:
                    self.done.setdefault(one.number, one)
            if answer.get("metrics"):
                self._note(answer["metrics"])
        self._delete(self.queue.url, [m for m in messages if m["MessageId"] not in failed])

    def _delete(self, url: str, messages: Sequence[Mapping[str, Any]]) -> None:
        entries = [
            {"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]} for n, m in enumerate(messages)
        ]
        if not entries:
            return
        answer = self._ask("delete_message_batch", QueueUrl=url, Entries=entries)
        done = {int(one["Id"]) for one in answer.get("Successful", [])}
        deleted = [m for n, m in enumerate(messages) if n in done]
        if url == self.queue.url:  # those that were not come again, and are found to be done
            with self.lock:
                self.undeleted |= set(self._numbers(messages))
                self.undeleted -= set(self._numbers(deleted))

    def _collect_dead(self, wait_s: int = 0) -> bool:
        """Read the dead-letter queue out, and empty it of this run's messages.

        Args:
            wait_s: a queue that is asked to wait asks all of its servers, and misses none.

        Returns:
            Whether it could be read to its end.

        """
        while messages := self._receive(self.queue.dead, wait_s):
            # A given queue may hold those of others, which they will want to look at.
            ours = [m for m in messages if self._numbers([m])]
            with self.lock:
                self.dead.update(self._numbers(ours))
            self._delete(self.queue.dead, ours)
        return messages is not None

    def _left(self) -> int | None:
        """How many messages the queue holds in the end; None if it does not say each time."""
        found = []
        for _ in range(LAST_LOOKS):
            found.append(self._look())
            time.sleep(LOOK_S)
        if None in found:
            return None
        return max(0, max(sum(look) for look in found if look) - len(self.undeleted))

    def _worked_off_by_others(
        self, rows: Mapping[int, int], left: int | None, all_dead: bool
    ) -> set[int]:
        """INSERTs whose rows are there; and of the others, as many as are in neither queue."""
        sent = self.sent - self.dead
        stored = self._inserts((self.sent | self.doubtful) - self.dead) & self._stored(rows)
        inserts = self._inserts(sent)
        waiting = len(inserts - stored)
        # A queue that says that it holds fewer than are known to be missing is not to be believed.
        if left is None or left < waiting or not all_dead:
            return stored
        reads = sorted(sent - inserts)
        return stored | set(reads[: max(0, len(reads) - (left - waiting))])

    def _numbers(self, messages: Iterable[Mapping[str, Any]]) -> list[int]:
        """The numbers of messages; those of others are left out."""
        found = []
        for one in messages:
            with suppress(msgspec.ValidationError, msgspec.DecodeError):
                message = msgspec.json.decode(one["Body"], type=Message)
                if message.run == self.run_number and message.number in self.planned:
                    found.append(message.number)
        return found

    def _note(self, error: object) -> None:
        if len(self.errors) < FIRST_ERRORS:
            self.errors.append(redact(error))

    def _report(self, seconds: float, interrupted: bool) -> MixedReport:
        all_dead = not self._open or self._collect_dead(WAIT_S)
        left = 0 if self.emptied or not self._open else self._left()
        rows = self._count()
        succeeded = set(self.done)
        if self.driver is None:
            succeeded = self._worked_off_by_others(rows or {}, left, all_dead)
        failed = self.dead - succeeded
        if not (self.driver or succeeded or interrupted):
            self._note(
                "Nobody worked off a message. Is the queue mapped to the function, and the mapping "
                "enabled (the stack's parameter QueueWorkedOff)? Its log says more."
            )
        reported = len(self._inserts(succeeded)) * self.scenario.statements_per_message
        in_table = None if rows is None else sum(rows.values())
        came_to_no_end = (self.sent | self.doubtful) - succeeded - failed
        queued = min(len(came_to_no_end), left or 0)
        return MixedReport(
            run=self.run_number,
            scenario=self.scenario,
            planned=len(self.planned),
            succeeded=len(succeeded),
            failed=len(failed),
            unsent=len(set(self.planned) - self.sent - self.doubtful - succeeded - failed),
            queued=queued,
            unknown=len(came_to_no_end) - queued,
            by_others=self.driver is None,
            redelivered=sum(n - 1 for n in self.deliveries.values()) if self.driver else None,
            durations=self._durations(),
            executions=tuple(sorted(self.executions)),
            depth=tuple(self.depth),
            rows_reported=reported,
            rows_unreported=None if in_table is None else in_table - reported,
            in_table=in_table,
            requests=self.requests,
            seconds=seconds,
            errors=tuple(self.errors),
            interrupted=interrupted,
        )

    def _durations(self) -> dict[str, Samples]:
        found: dict[str, list[float]] = {action: [] for action in ACTIONS}
        for one in self.done.values():
            found[one.action] += [us / 1e6 for us in one.durations_us]
        return {action: Samples(action, tuple(seconds)) for action, seconds in found.items()}
