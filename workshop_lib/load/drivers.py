"""Who does a load test's jobs: processes on this machine, or AWS Lambda functions."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from botocore.exceptions import BotoCoreError, ClientError
from pebble import ProcessExpired, ProcessPool

from workshop_lib.dsql import CONNECTION_BURST, CONNECTIONS_PER_SECOND, Rate
from workshop_lib.errors import WorkshopError
from workshop_lib.load import worker
from workshop_lib.load.interrupts import deaf, out_of_hearing
from workshop_lib.load.jobs import Job, Ping, to_event
from workshop_lib.load.means import Equipment
from workshop_lib.orphans import end_with
from workshop_lib.services.explain import explain, sentence

READY_S = 60.0
"""How long all local processes may take to start, seconds."""
GRACE_S = 30.0
"""How much longer than its time limit a job may take before it is given up, seconds."""
MOST_PROCESSES = 64
_gate: Any = None


class Driver(Protocol):
    """Whoever does jobs.

    Attributes:
        label: what a learner sees.
        at_once: how many jobs it does at the same time.

    """

    label: str
    at_once: int

    def start(self, event: Mapping[str, Any], limit_s: float) -> Future[dict[str, Any]]:
        """Begin a job; it is given up after `limit_s` seconds."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job.

    Attributes:
        number: of the job, in the order given.
        answer: the worker's; None if there is none.
        error: why there is none; empty if there is one.
        begun: whether it was handed to a worker at all.
        seconds: from handing it over until its end was known.
        interrupted: an Interrupt ended it, or the waiting for it.

    """

    number: int
    answer: dict[str, Any] | None
    error: str
    begun: bool
    seconds: float
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of all jobs.

    Attributes:
        each: in the order of the jobs.
        seconds: from the first hand-over to the last end.
        interrupted: Ctrl-C or Interrupt ended it early.

    """

    each: list[Outcome]
    seconds: float
    interrupted: bool


def run_jobs(
    driver: Driver,
    jobs: Iterable[Job],
    limit_s: float,
    done: Callable[[int], object] = lambda _: None,
    *,
    begin: bool = True,
) -> Outcomes:
    """Have all jobs done, as many at once as the driver takes.

    New workers begin no faster than Aurora DSQL accepts connections. Each job is begun once: one
    that fails is not tried again, as its rows might count twice.

    Args:
        driver: by whom.
        jobs: what.
        limit_s: a job's own time limit; it is given up 30 seconds after that.
        done: called with a job's number at its end.
        begin: if not, say of each that it was not begun: an Interrupt came before.

    """
    events = [to_event(job) for job in jobs]
    slots = threading.Semaphore(driver.at_once)
    rate = Rate(CONNECTIONS_PER_SECOND, CONNECTION_BURST)
    found: dict[int, Outcome] = {}
    pending: list[Future[dict[str, Any]]] = []
    first = time.perf_counter()

    def ended(number: int, begun: float, future: Future[dict[str, Any]]) -> None:
        found[number] = _outcome(number, future, time.perf_counter() - begun)
        slots.release()
        done(number)

    interrupted = not begin
    try:
        for number, event in enumerate(events if begin else []):
            slots.acquire()
            time.sleep(rate.reserve(limit_s)[1])
            future = driver.start(event, limit_s + GRACE_S)
            begun = time.perf_counter()
            pending.append(future)
            future.add_done_callback(lambda f, n=number, b=begun: ended(n, b, f))  # type: ignore[misc]
        wait(pending)
    except KeyboardInterrupt:
        interrupted = True
        with deaf():  # an impatient second one would lose the report
            for future in pending:
                future.cancel()
            wait(pending, timeout=limit_s + GRACE_S)  # a Lambda function cannot be stopped
    seconds = time.perf_counter() - first
    each = [found.get(n) or _unanswered(n, n < len(pending), seconds) for n in range(len(events))]
    return Outcomes(each, seconds, interrupted)


def _unanswered(number: int, begun: bool, seconds: float) -> Outcome:
    """A job of which nothing was heard before an Interrupt ended the run."""
    said = "no answer after the Interrupt" if begun else "not begun"
    took = seconds if begun else 0.0
    return Outcome(number, None, said, begun=begun, seconds=took, interrupted=True)


def _outcome(number: int, future: Future[dict[str, Any]], seconds: float) -> Outcome:
    if future.cancelled():
        said = "interrupted"
        return Outcome(number, None, said, begun=True, seconds=seconds, interrupted=True)
    error = future.exception()
    if error is None:
        return Outcome(number, future.result(), "", begun=True, seconds=seconds)
    if isinstance(error, ProcessExpired):
        said = f"the worker process ended with code {error.exitcode}: killed, or out of memory?"
    elif isinstance(error, TimeoutError):
        said = "no answer within the time limit; it was given up"
    else:
        said = f"{type(error).__name__}: {error}"
    return Outcome(number, None, said, begun=True, seconds=seconds)


class _Closing(ABC):
    """Workers that are closed at the end of a with block."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass
class LocalWorkers(_Closing):
    """Worker processes on this machine, started once and used for many runs.

    Args:
        equipment: what they work with.
        at_once: how many processes, 1 to 64.

    Raises:
        WorkshopError: the number is out of range, or they did not all start.

    """

    equipment: Equipment = field(repr=False)
    at_once: int = 4
    label: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.at_once, int) or not 1 <= self.at_once <= MOST_PROCESSES:
            raise WorkshopError(
                f"{self.at_once!r} worker processes; a whole number from 1 to {MOST_PROCESSES} "
                "can run on one machine. A run may have more workers than that: they take turns."
            )
        processes = "process" if self.at_once == 1 else "processes"
        self.label = self.label or f"{self.at_once} {processes} on this machine"
        # Not forked: a forked process would share the notebook's sockets and locks.
        context = multiprocessing.get_context("spawn")
        gate = context.Barrier(self.at_once)
        with out_of_hearing():
            self._pool = ProcessPool(
                max_workers=self.at_once,
                initializer=_prepare,
                initargs=(self.equipment, gate, os.getpid()),
                context=context,
            )
            # Each waits at the gate for all others: then none of them starts in mid-measurement.
            ready = [self._pool.schedule(_be_there, timeout=READY_S) for _ in range(self.at_once)]
        try:
            for one in ready:
                one.result()
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            raise WorkshopError(
                f"Not all of {self.at_once} worker processes were ready within {READY_S:.0f} s: "
                f"{error}. Is the machine out of memory? Try fewer."
            ) from None

    def start(self, event: Mapping[str, Any], limit_s: float) -> Future[dict[str, Any]]:
        """Begin a job in a free process."""
        future: Future[dict[str, Any]] = self._pool.schedule(
            worker.handler, args=(dict(event),), timeout=limit_s
        )
        return future

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.stop()
        self._pool.join()


class LambdaWorkers(_Closing):
    """A Lambda function, called directly and many times at once.

    Args:
        client: a boto3 client for Lambda that neither retries nor gives up before the function's
            own time-out (`lambda_client` makes one): a second attempt would run the job twice.
        function_name: or its ARN.
        at_once: invocations at the same time; an account has 1,000 per Region unless raised.

    """

    def __init__(self, client: Any, function_name: str, at_once: int = 1_000) -> None:
        self.label = f"Lambda function {function_name}"
        self.at_once = at_once
        self._client, self._function = client, function_name
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="invoke")

    def start(self, event: Mapping[str, Any], limit_s: float) -> Future[dict[str, Any]]:
        """Invoke the function; its own time-out is what ends it, not `limit_s`."""
        del limit_s
        return self._threads.submit(self._invoke, dict(event))

    def close(self) -> None:
        """Wait for no further answers; what runs on AWS runs to its end there."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._client.invoke(
                FunctionName=self._function,
                InvocationType="RequestResponse",
                Payload=json.dumps(event).encode(),
            )
            said = json.loads(answer["Payload"].read())
        except (BotoCoreError, ClientError, ValueError) as error:
            raise WorkshopError(
                f"The function {self._function} gave no answer: {sentence(error)} {explain(error)}"
            ) from None
        # The status is 200 also where the function failed.
        if answer.get("FunctionError"):
            message = said.get("errorMessage", said) if isinstance(said, dict) else said
            raise WorkshopError(f"The function {self._function} failed: {message}")
        found: dict[str, Any] = said
        return found


def _prepare(equipment: Equipment, gate: Any, parent: int) -> None:
    """What a worker process does first."""
    global _gate  # noqa: PLW0603 -- one a process, set once
    _gate = gate
    # Ctrl-C goes to the whole process group: who started this one decides what it means. Until
    # here it was held back.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
    worker.equip(equipment)


def _be_there() -> None:
    worker.handler(to_event(Ping()))
    _gate.wait(READY_S)
