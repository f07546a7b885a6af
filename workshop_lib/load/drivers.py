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
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait as readable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Protocol, Self
from weakref import WeakSet

import msgspec
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    wait_random_exponential,
)

from workshop_lib import forks
from workshop_lib.dsql import CONNECTION_BURST, CONNECTIONS_PER_SECOND, Rate
from workshop_lib.errors import WorkshopError
from workshop_lib.load import worker
from workshop_lib.load.interrupts import deaf, out_of_hearing
from workshop_lib.load.jobs import Job, Ping, Ready, to_event
from workshop_lib.load.means import Equipment
from workshop_lib.orphans import end_with
from workshop_lib.services.error_help import error_code, error_help
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
LOOK_S = 0.1
"""How often it is looked whether a job in a process is still wanted, seconds."""


class Driver(Protocol):
    """What does jobs: processes here, or a Lambda function.

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

    def checked(self, kind: type[msgspec.Struct]) -> Outcome:
        """Without the answer if it is none of this kind: then something else was called."""
        try:
            if self.answer is not None:
                msgspec.convert(self.answer, kind)
        except msgspec.ValidationError as error:
            said = f"This is no answer of a load worker: {error}. Is another function called?"
            return replace(self, answer=None, error=said)
        return self


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
    begun: list[tuple[Future[dict[str, Any]], float]] = []
    ends: dict[int, float] = {}
    turn, stop = threading.Lock(), threading.Event()
    first = time.perf_counter()

    def ended(number: int) -> None:
        ends[number] = time.perf_counter()
        try:
            done(number)
        finally:
            slots.release()

    def begin_all() -> None:
        for number, event in enumerate(events):
            slots.acquire()
            stop.wait(rate.reserve(limit_s)[1])
            with turn:
                if stop.is_set():
                    return
                now = time.perf_counter()
                begun.append((_begin(driver, event, limit_s + GRACE_S), now))
            begun[-1][0].add_done_callback(lambda _, n=number: ended(n))  # type: ignore[misc]

    interrupted = not begin
    # In a thread of its own: an Interrupt, which the main thread gets, cannot fall between the
    # beginning of a job and its entry in the books.
    with ThreadPoolExecutor(1, thread_name_prefix="jobs") as thread:
        try:
            if begin:
                thread.submit(begin_all).result()
                for _ in range(driver.at_once):  # a job that has ended gives its slot back
                    slots.acquire()
        except KeyboardInterrupt:
            interrupted = True
            with deaf():  # an impatient second one would lose the report
                with turn:
                    stop.set()  # no further job is begun
                slots.release()
                for future, _ in begun:
                    future.cancel()
                # A Lambda function cannot be stopped.
                wait([future for future, _ in begun], timeout=limit_s + GRACE_S)
    now = time.perf_counter()
    each = [_outcome(n, *job, ends.get(n, now)) for n, job in enumerate(begun)]
    not_begun = range(len(each), len(events))
    each += [Outcome(n, None, "not begun", False, 0.0, interrupted) for n in not_begun]
    return Outcomes(each, now - first, interrupted)


def _begin(driver: Driver, event: Mapping[str, Any], limit_s: float) -> Future[dict[str, Any]]:
    try:
        return driver.start(event, limit_s)
    except Exception as error:  # noqa: BLE001 -- it is this job's, and the others go on
        failed = Future[dict[str, Any]]()
        failed.set_exception(error)
        return failed


def _outcome(number: int, future: Future[dict[str, Any]], begun: float, ended: float) -> Outcome:
    seconds = ended - begun
    if not future.done():
        said = "no answer after the Interrupt"
        return Outcome(number, None, said, begun=True, seconds=seconds, interrupted=True)
    error = CancelledError() if future.cancelled() else future.exception()
    if isinstance(error, CancelledError):
        said = "interrupted"
        return Outcome(number, None, said, begun=True, seconds=seconds, interrupted=True)
    if error is None:
        return Outcome(number, future.result(), "", begun=True, seconds=seconds)
    said = str(error) if isinstance(error, _NoAnswerError) else f"{type(error).__name__}: {error}"
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
        self._waiting = SimpleQueue[_Call | None]()
        self._calls = WeakSet[_Call]()
        self._closed = self._inherited = False
        ready = [self._call(to_event(Ping()), READY_S) for _ in range(self.at_once)]
        self._threads = [
            threading.Thread(target=self._keep, args=(call,), name="worker", daemon=True)
            for call in ready
        ]
        try:
            with out_of_hearing():  # a Ctrl-C meanwhile arrives at its end
                for thread in self._threads:
                    thread.start()
            for call in ready:  # all of them: then none starts in mid-measurement
                call.result()
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            raise WorkshopError(
                f"Not all of {self.at_once} worker processes were ready within {READY_S:.0f} s: "
                f"{error}. Is the machine out of memory? Try fewer."
            ) from None
        forks.tell_child(self)

    def _after_fork(self) -> None:
        """In a forked process: the workers are the parent's, and this process's end is not theirs.

        multiprocessing would end what it takes for children of this process.
        """
        self._inherited, self._threads, self._calls = True, [], WeakSet[_Call]()
        multiprocessing.process._children.clear()  # type: ignore[attr-defined]

    def start(self, event: Mapping[str, Any], limit_s: float) -> Future[dict[str, Any]]:
        """Begin a job in a free process.

        Raises:
            WorkshopError: this process was forked since they were started.

        """
        if self._inherited:
            raise WorkshopError(
                "These workers were started before this process was forked, and are the parent's. "
                "Start others here: ws.load_workers()."
            )
        call = self._call(dict(event), limit_s)
        self._waiting.put(call)
        return call

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._closed = True
        for call in list(self._calls):
            call.cancel()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _call(self, event: dict[str, Any], limit_s: float) -> _Call:
        call = _Call(event, limit_s)
        self._calls.add(call)
        return call

    def _keep(self, call: _Call | None) -> None:
        """Have one job after the other done by one process, or by its successors."""
        process = _Process(self.equipment)
        while call is not None:
            try:
                call.set_result(process.do(call))
            except Exception as error:  # noqa: BLE001 -- whoever waits for the answer gets it
                call.set_exception(error)
                if not self._closed:
                    with suppress(Exception):  # then the next job says so
                        # Ready before the next job, whose time limit its start would use up.
                        process.do(self._call(to_event(Ping()), READY_S))
            call = self._waiting.get()
        process.end()


class _NoAnswerError(WorkshopError):
    """Why a process gave no answer, in words that need no name of a class before them."""


class _Process:
    """A worker process, and another in its place when it has ended.

    Its pipe is its own. Processes that take their jobs from one queue share its lock, and one that
    is killed at the wrong moment takes the lock with it: the others wait for minutes.
    """

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        # Not forked: a forked process would share the notebook's sockets and locks.
        self._context = multiprocessing.get_context("spawn")
        self._process = self._context.Process()
        self._pipe: Connection[Any, Any] | None = None

    def be_there(self) -> Connection[Any, Any]:
        """Start it, if it does not run. Returns the pipe to it.

        Raises:
            OSError: there is no memory, or no room, for another process.

        """
        # It says nothing unasked: something to read is the end of the pipe, and of the process.
        if self._pipe is not None and not readable([self._pipe], 0):
            return self._pipe
        self.end()
        here, there = self._context.Pipe()
        arguments = (there, self._equipment, os.getpid())
        # A daemon is ended with the interpreter; others are waited for.
        self._process = self._context.Process(target=_work, args=arguments, daemon=True)
        try:
            self._process.start()
        except OSError:
            here.close()
            raise
        finally:
            there.close()  # the process's own is the only one: its end is the end of the pipe
        self._pipe = here
        return here

    def do(self, call: _Call) -> dict[str, Any]:
        """Have a job done.

        Raises:
            CancelledError: it is not wanted any more.
            _NoAnswerError: it failed, took too long, or the process ended.
            OSError: no process could be started.

        """
        if call.unwanted.is_set():
            raise CancelledError
        pipe, late = self.be_there(), time.monotonic() + call.limit_s
        try:
            pipe.send(call.event)
            while not readable([pipe], LOOK_S):
                if call.unwanted.is_set():
                    raise CancelledError
                if time.monotonic() > late:
                    raise _NoAnswerError("no answer within the time limit; it was given up")
            answer, error = pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            raise _NoAnswerError(
                f"the worker process ended with code {code}: killed, or out of memory?"
            ) from None
        except (CancelledError, _NoAnswerError):
            self.end()
            raise
        if error:
            raise _NoAnswerError(error)
        found: dict[str, Any] = answer
        return found

    def end(self) -> None:
        """End it, whatever it does."""
        if self._pipe is None:
            return
        self._process.kill()
        self._process.join()
        with suppress(ValueError):  # somebody else in this process has waited for it
            self._process.close()
        self._pipe.close()
        self._pipe = None


def _work(pipe: Connection[Any, Any], equipment: Equipment, parent: int) -> None:
    """What a worker process does."""
    # Ctrl-C goes to the whole process group: who started this one decides what it means. Until
    # here it was held back.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
    worker.equip(equipment)
    with suppress(EOFError, OSError):  # nobody is there any more
        while True:
            event = pipe.recv()
            try:
                said = worker.handler(event), ""
            except Exception as error:  # noqa: BLE001 -- in words: not every error can be sent
                said = {}, f"{type(error).__name__}: {error}"
            pipe.send(said)


class _Call(Future[dict[str, Any]]):
    """A job to be done within a time limit.

    Cancelling it ends the process that does it, or the wait for a free one. What runs on AWS, runs
    on.
    """

    def __init__(self, event: dict[str, Any], limit_s: float) -> None:
        super().__init__()
        self.event = event
        self.limit_s = limit_s
        self.unwanted = threading.Event()
        self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Want it no more."""
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
        self._after_fork()
        forks.tell_child(self)

    def _after_fork(self) -> None:
        """Nothing is under way from here."""
        self._slots = threading.Semaphore(self.at_once)
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

    def ask(self) -> Ready:
        """What one execution says of itself: its memory, and where it reads.

        Raises:
            WorkshopError: there is no such function, it does not answer, or is no load worker.

        """
        (found,) = run_jobs(self, [Ping()], READY_S).each
        if found.interrupted:
            raise KeyboardInterrupt
        found = found.checked(Ready)
        if found.answer is None:
            raise WorkshopError(found.error)
        return msgspec.convert(found.answer, Ready)

    def start(self, event: Mapping[str, Any], limit_s: float) -> Future[dict[str, Any]]:
        """Invoke the function; where it hangs, its own time-out is what ends it there."""
        job = dict(event)
        if "job" in job and not job.get("namespace"):
            job["namespace"] = self._namespace
        call = _Call(job, limit_s)
        self._calls.add(call)
        # A daemon: an interpreter that ends would wait for the threads of an executor.
        threading.Thread(target=self._do, args=(call,), name="invoke", daemon=True).start()
        return call

    def close(self) -> None:
        """Wait for no further answers; what runs on AWS runs to its end there."""
        for call in list(self._calls):
            call.cancel()
        self._clients.close()

    def _do(self, call: _Call) -> None:
        try:
            with self._slots:
                call.set_result(self._invoke(call))
        except Exception as error:  # noqa: BLE001 -- whoever waits for the answer gets it
            call.set_exception(error)

    def _invoke(self, call: _Call) -> dict[str, Any]:
        client, payload = self._clients.patient(call.limit_s), json.dumps(call.event).encode()

        def once() -> Any:
            if call.unwanted.is_set():
                raise CancelledError
            return client.invoke(
                FunctionName=self._function, InvocationType="RequestResponse", Payload=payload
            )

        retrying = Retrying(
            retry=retry_if_exception(_was_throttled),
            wait=THROTTLED_WAIT,
            stop=stop_after_delay(call.limit_s),
            sleep=sleep_using_event(call.unwanted),
            reraise=True,
        )
        try:
            answer = retrying(once)
            said = json.loads(answer["Payload"].read())
        except (BotoCoreError, ClientError, ValueError) as error:
            raise WorkshopError(
                f"The function {self._function} gave no answer: {error_help(error)}"
            ) from None
        # The status is 200 also where the function failed.
        if answer.get("FunctionError"):
            message = said.get("errorMessage", said) if isinstance(said, dict) else said
            raise WorkshopError(f"The function {self._function} failed: {message}")
        found: dict[str, Any] = said
        return found


def _was_throttled(error: BaseException) -> bool:
    """Whether Lambda refused an invocation because too many run: it has not begun."""
    return error_code(error) == THROTTLED
