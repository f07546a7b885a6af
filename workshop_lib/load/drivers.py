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
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self
from weakref import WeakSet

from botocore.exceptions import BotoCoreError, ClientError
from pebble import ProcessExpired, ProcessPool
from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    wait_random_exponential,
)

from workshop_lib.dsql import CONNECTION_BURST, CONNECTIONS_PER_SECOND, Rate
from workshop_lib.errors import WorkshopError
from workshop_lib.load import worker
from workshop_lib.load.interrupts import deaf, out_of_hearing
from workshop_lib.load.jobs import Job, Ping, to_event
from workshop_lib.load.means import Equipment
from workshop_lib.orphans import end_with
from workshop_lib.services.explain import code_of, explain, sentence
from workshop_lib.services.functions import LambdaClients

READY_S = 60.0
"""How long all local processes may take to start, seconds."""
GRACE_S = 30.0
"""How much longer than its time limit a job may take before it is given up, seconds."""
MOST_PROCESSES = 64
MOST_EXECUTIONS = 1_000
"""At the same time, of all functions of an account in a Region, unless AWS has raised it."""
THROTTLED = "TooManyRequestsException"
THROTTLED_WAIT = wait_random_exponential(multiplier=0.2, max=5.0)
_gate: Any = None


class Driver(Protocol):
    """Whoever does jobs.

    Attributes:
        label: what a learner sees.
        at_once: how many jobs it does at the same time.
        here: whether on this machine, whose processors it takes.

    """

    label: str
    at_once: int
    here: bool

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
    error = CancelledError() if future.cancelled() else future.exception()
    if isinstance(error, CancelledError):
        said = "interrupted"
        return Outcome(number, None, said, begun=True, seconds=seconds, interrupted=True)
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
    here: bool = True

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


class _Call(Future[dict[str, Any]]):
    """An invocation. Cancelling it ends the wait for a free execution; what runs, runs on."""

    def __init__(self) -> None:
        super().__init__()
        self.unwanted = threading.Event()
        self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Begin it no more, if it has not begun on AWS."""
        self.unwanted.set()
        return super().cancel()


class LambdaWorkers(_Closing):
    """Executions of an AWS Lambda function, called directly and many times at once.

    An invocation that Lambda refuses because too many run has not begun: it is tried again, later
    and later, for as long as its job may take. No other is: it might run twice.

    Args:
        clients: by which it is called.
        function_name: or its ARN.
        at_once: invocations at the same time, 1 to 1,000.
        namespace: whose tables, keys and metrics jobs are for that do not say so themselves; empty
            for the function's own.

    Raises:
        WorkshopError: the number is out of range.

    """

    here = False

    def __init__(
        self,
        clients: LambdaClients,
        function_name: str,
        at_once: int = MOST_EXECUTIONS,
        namespace: str = "",
    ) -> None:
        if not isinstance(at_once, int) or not 1 <= at_once <= MOST_EXECUTIONS:
            raise WorkshopError(
                f"{at_once!r} executions at once; a whole number from 1 to {MOST_EXECUTIONS:,}. "
                "A run may have more workers than that: they take turns."
            )
        executions = "execution" if at_once == 1 else "executions"
        self.label = f"{at_once:,} {executions} of the AWS Lambda function {function_name}"
        self.at_once = at_once
        self._clients, self._function = clients, function_name
        self._namespace = namespace
        self._slots = threading.Semaphore(at_once)
        self._calls = WeakSet[_Call]()

    def wake(self) -> None:
        """Have as many executions started as will run at once, so that no run waits for that.

        Raises:
            WorkshopError: the function does not answer, or not all of them could start.

        """
        found = run_jobs(self, [Ping()] * self.at_once, READY_S)
        if found.interrupted:
            raise KeyboardInterrupt
        said = [outcome.error for outcome in found.each if outcome.error]
        if said:
            raise WorkshopError(f"{len(said)} of {self.label} did not get ready. {said[0]}")

    def start(self, event: Mapping[str, Any], limit_s: float) -> Future[dict[str, Any]]:
        """Invoke the function; where it hangs, its own time-out is what ends it there."""
        call = _Call()
        self._calls.add(call)
        job = dict(event)
        if "job" in job and not job.get("namespace"):
            job["namespace"] = self._namespace
        # A daemon: an interpreter that ends would wait for the threads of an executor.
        threading.Thread(
            target=self._do, args=(call, job, limit_s), name="invoke", daemon=True
        ).start()
        return call

    def close(self) -> None:
        """Wait for no further answers; what runs on AWS runs to its end there."""
        for call in list(self._calls):
            call.cancel()
        self._clients.close()

    def _do(self, call: _Call, event: dict[str, Any], limit_s: float) -> None:
        try:
            with self._slots:
                call.set_result(self._invoke(call, json.dumps(event).encode(), limit_s))
        except Exception as error:  # noqa: BLE001 -- whoever waits for the answer gets it
            call.set_exception(error)

    def _invoke(self, call: _Call, payload: bytes, limit_s: float) -> dict[str, Any]:
        client = self._clients.patient(limit_s)

        def once() -> Any:
            if call.unwanted.is_set():
                raise CancelledError
            return client.invoke(
                FunctionName=self._function, InvocationType="RequestResponse", Payload=payload
            )

        retrying = Retrying(
            retry=retry_if_exception(_was_throttled),
            wait=THROTTLED_WAIT,
            stop=stop_after_delay(limit_s),
            sleep=sleep_using_event(call.unwanted),
            reraise=True,
        )
        try:
            answer = retrying(once)
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


def _was_throttled(error: BaseException) -> bool:
    """Whether Lambda refused an invocation because too many run: it has not begun."""
    return code_of(error) == THROTTLED


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
