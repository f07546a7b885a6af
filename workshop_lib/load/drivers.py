"""Who does a load test's jobs: processes on this machine, or AWS Lambda functions."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Self
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

from workshop_lib.dsql import CONNECTION_BURST, CONNECTIONS_PER_SECOND, Rate
from workshop_lib.errors import WorkshopError
from workshop_lib.load.clients import ClientConfig
from workshop_lib.load.interrupts import interrupt_event
from workshop_lib.load.jobs import ANSWERS, Answer, Job, Ping, Ready, to_event
from workshop_lib.services.error_help import error_code, error_help
from workshop_lib.services.functions import LambdaClients

READY_S = 60.0
"""How long all local processes may take to start, seconds."""
GRACE_S = 30.0
"""How much longer than its time limit a job may take before it is given up, seconds."""
MAX_PROCESSES = 64
MAX_EXECUTIONS = 1_000
"""At the same time, of all functions of an account in a Region, unless AWS has raised it."""
THROTTLED = "TooManyRequestsException"
THROTTLED_WAIT = wait_random_exponential(multiplier=0.2, max=5.0)
LOOK_S = 0.1
PROGRAM = "from workshop_lib.load.worker import serve_parent; serve_parent()"


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
    answer: Answer | None
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


class Driver(ABC):
    """What does jobs: processes here, or a Lambda function. Used in a `with` block, it closes.

    Attributes:
        label: what a learner sees.
        at_once: how many jobs it does at the same time.
        here: whether on this machine, whose processors it takes.

    """

    label: str
    here = True

    def __init__(self, at_once: int, most: int, what: str) -> None:
        """Refuse a number that is out of range.

        Raises:
            WorkshopError: it is.

        """
        if not isinstance(at_once, int) or not 1 <= at_once <= most:
            raise WorkshopError(
                f"{at_once!r} {what} at once; a whole number from 1 to {most:,} can run. A run "
                "may have more workers than that: they take turns."
            )
        self.at_once = at_once
        self._calls = WeakSet[_Call]()

    def start(self, event: Mapping[str, Any], limit_s: float) -> Future[dict[str, Any]]:
        """Begin a job; it is given up after `limit_s` seconds, or when its future is cancelled."""
        call = _Call(dict(event), limit_s)
        self._calls.add(call)
        # A daemon: an interpreter that ends would wait for the threads of an executor.
        thread = threading.Thread(target=self._run, args=(call,), name="load job", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # too many: it is this job's, and the others go on
            call.set_exception(error)
        return call

    def close(self) -> None:
        """Wait for no further answers, and let go of the workers."""
        for call in list(self._calls):
            call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: _Call) -> None:
        try:
            call.set_result(self._do(call))
        except Exception as error:  # noqa: BLE001 -- whoever waits for the answer gets it
            call.set_exception(error)

    @abstractmethod
    def _do(self, call: _Call) -> dict[str, Any]:
        """Have a job done."""


class _Call(Future[dict[str, Any]]):
    """A job to be done within a time limit; cancelling it ends the process that does it.

    What runs on AWS, runs on.
    """

    def __init__(self, event: dict[str, Any], limit_s: float) -> None:
        super().__init__()
        self.event = event
        self.limit_s = limit_s
        self.unwanted = threading.Event()
        self.end: Callable[[], object] = lambda: None
        self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Want it no more."""
        self.unwanted.set()
        self.end()
        return super().cancel()


def run_jobs(
    driver: Driver,
    jobs: Iterable[Job],
    limit_s: float,
    done: Callable[[int], object] = lambda _: None,
    *,
    begin: bool = True,
) -> Outcomes:
    """Have all jobs done, as many at once as the driver takes; Ctrl-C ends it early.

    New workers begin no faster than Aurora DSQL accepts connections. Each job is begun once: one
    that fails is not tried again, as its rows might count twice.

    Args:
        driver: by whom.
        jobs: what.
        limit_s: a job's own time limit; it is given up 30 seconds after that.
        done: called with a job's number at its end.
        begin: if not, say of each that it was not begun: an Interrupt came before.

    """
    jobs = list(jobs)
    slots = threading.Semaphore(driver.at_once)
    rate = Rate(CONNECTIONS_PER_SECOND, CONNECTION_BURST)
    begun: list[tuple[Future[dict[str, Any]], float]] = []
    ends: dict[int, float] = {}
    first = time.perf_counter()

    def ended(number: int) -> None:
        ends[number] = time.perf_counter()
        try:
            done(number)
        finally:
            slots.release()

    with interrupt_event() as stop:
        if not begin:
            stop.set()
        for number, job in enumerate(jobs):
            _acquire(slots, stop)
            if stop.wait(rate.reserve(limit_s)[1]):
                break
            now = time.perf_counter()
            begun.append((driver.start(to_event(job), limit_s + GRACE_S), now))
            begun[-1][0].add_done_callback(lambda _, n=number: ended(n))  # type: ignore[misc]
        for _ in range(driver.at_once):  # a job that has ended gives its slot back
            _acquire(slots, stop)
        if stop.is_set():
            for future, _ in begun:
                future.cancel()
            # A Lambda function cannot be stopped.
            wait([future for future, _ in begun], timeout=limit_s + GRACE_S)
        interrupted = stop.is_set()
    now = time.perf_counter()
    each = [_outcome(n, ANSWERS[type(jobs[n])], *one, ends.get(n, now))
            for n, one in enumerate(begun)]  # fmt: skip
    not_begun = range(len(each), len(jobs))
    each += [Outcome(n, None, "not begun", False, 0.0, interrupted) for n in not_begun]
    return Outcomes(each, now - first, interrupted)


def _acquire(slots: threading.Semaphore, stop: threading.Event) -> None:
    """Wait for a slot, unless it shall stop."""
    while not stop.is_set() and not slots.acquire(timeout=LOOK_S):
        pass


def _outcome(
    number: int, kind: type[Answer], future: Future[dict[str, Any]], begun: float, ended: float
) -> Outcome:
    answer, said, interrupted = None, "interrupted", True
    if future.done() and not future.cancelled():
        error = future.exception()
        interrupted = isinstance(error, CancelledError)
        if error is None:
            try:
                answer, said = msgspec.convert(future.result(), kind), ""
            except msgspec.ValidationError as wrong:
                said = f"This is no answer of a load worker: {wrong}. Is another function called?"
        elif not interrupted:
            told = isinstance(error, _NoAnswerError)
            said = str(error) if told else f"{type(error).__name__}: {error}"
    return Outcome(number, answer, said, True, ended - begun, interrupted)


class LocalWorkers(Driver):
    """Worker processes on this machine, started once and used for many runs.

    Args:
        config: what they work with.
        at_once: how many processes, 1 to 64.

    Raises:
        WorkshopError: the number is out of range, or they did not all start.

    """

    def __init__(self, config: ClientConfig, at_once: int = 4) -> None:
        super().__init__(at_once, MAX_PROCESSES, "worker processes")
        processes = "process" if at_once == 1 else "processes"
        self.label = f"{at_once} {processes} on this machine"
        self.config = config
        self._idle = SimpleQueue[_Process]()
        self._parent, self._processes = os.getpid(), list[_Process]()
        with ThreadPoolExecutor(at_once) as threads:
            try:
                for _ in range(at_once):
                    self._processes.append(_Process(config))
                # All of them: then none starts in mid-measurement.
                list(threads.map(_Process.get_ready, self._processes))
            except BaseException as error:
                self.close()
                if not isinstance(error, OSError | WorkshopError):
                    raise
                raise WorkshopError(
                    f"Not all of {at_once} worker processes were ready within {READY_S:.0f} s: "
                    f"{error}. Is the machine out of memory? Try fewer."
                ) from None
        for process in self._processes:
            self._idle.put(process)

    def start(self, event: Mapping[str, Any], limit_s: float) -> Future[dict[str, Any]]:
        """Begin a job in a free process.

        Raises:
            WorkshopError: this process was forked since they were started.

        """
        if os.getpid() != self._parent:
            raise WorkshopError(
                "These workers were started before this process was forked, and are the parent's. "
                "Start others here: ws.load_workers()."
            )
        return super().start(event, limit_s)

    def close(self) -> None:
        """End the processes, whatever they do; in a forked process they are the parent's."""
        if os.getpid() == self._parent:
            super().close()
            for process in self._processes:
                process.close()

    def _do(self, call: _Call) -> dict[str, Any]:
        process = self._idle.get()
        try:
            call.end = process.kill
            if call.unwanted.is_set():
                raise CancelledError
            return process.ask(call.event, call.limit_s)
        except _NoAnswerError:
            if call.unwanted.is_set():
                raise CancelledError from None
            raise
        finally:
            call.end = lambda: None
            self._idle.put(process)


class _NoAnswerError(WorkshopError):
    """Why a process gave no answer, in words that need no name of a class before them."""


class _Process:
    """A worker process, and another in its place when it has ended.

    Jobs and answers are lines of JSON on its standard input and output. Ctrl-C in a terminal does
    not reach it: it is in a group of its own.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._config, self._closed, self._lock = config, False, threading.Lock()
        self._start()

    def get_ready(self) -> None:
        """Wait until it is there, and connected.

        Raises:
            _NoAnswerError: it is not in time.

        """
        self._ask(to_event(Ping()), READY_S)
        self._ready = True

    def ask(self, event: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Have a job done; the time in which a new process gets ready is not the job's.

        Raises:
            _NoAnswerError: it failed, took too long, or the process ended.

        """
        if self._popen.poll() is not None:
            self._replace()
        if not self._ready:
            self.get_ready()
        return self._ask(event, limit_s)

    def kill(self) -> None:
        """End it; its job has no answer."""
        self._popen.kill()

    def close(self) -> None:
        """End it for good."""
        with self._lock:
            self._closed = True
            self._end()

    def _replace(self) -> None:
        with self._lock:
            self._end()
            if not self._closed:
                self._start()

    def _start(self) -> None:
        self._popen = subprocess.Popen(
            # -P: what lies in the current folder is not imported.
            [sys.executable, "-P", "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        self._ready = False
        with suppress(OSError):  # it has ended: whoever asks it finds out
            self._send(pickle.dumps((self._config, os.getpid())))

    def _ask(self, event: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        late = threading.Timer(limit_s, self._popen.kill)
        late.daemon = True
        until = time.monotonic() + limit_s
        late.start()
        try:
            self._send(msgspec.json.encode(event) + b"\n")
            assert self._popen.stdout is not None  # noqa: S101 -- for mypy
            line = self._popen.stdout.readline()
        except (OSError, ValueError):
            line = b""
        finally:
            late.cancel()
        if not line.endswith(b"\n"):  # it ended, perhaps in the middle of its answer
            self._replace()
            if time.monotonic() >= until:
                raise _NoAnswerError("no answer within the time limit: given up")
            raise _NoAnswerError("the worker process was killed, or ended by itself")
        answer, error = json.loads(line)
        if error:
            raise _NoAnswerError(error)
        found: dict[str, Any] = answer
        return found

    def _send(self, data: bytes) -> None:
        assert self._popen.stdin is not None  # noqa: S101 -- for mypy
        self._popen.stdin.write(data)
        self._popen.stdin.flush()

    def _end(self) -> None:
        self._popen.kill()
        with suppress(OSError):  # what was not sent yet
            self._popen.communicate()


class LambdaWorkers(Driver):
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
        at_once: int = MAX_EXECUTIONS,
        namespace: str = "",
    ) -> None:
        super().__init__(at_once, MAX_EXECUTIONS, "executions")
        executions = "execution" if at_once == 1 else "executions"
        self.label = f"{at_once:,} {executions} of the AWS Lambda function {function_name}"
        self._clients, self._function, self._namespace = clients, function_name, namespace

    def wake(self) -> None:
        """Have as many executions started as will run at once, so that no run waits for that.

        Raises:
            WorkshopError: the function does not answer, or not all of them could start.

        """
        self._ping(self.at_once)

    def ask(self) -> Ready:
        """What one execution says of itself: its memory, and where it reads.

        Raises:
            WorkshopError: there is no such function, it does not answer, or is no load worker.

        """
        return self._ping(1)

    def close(self) -> None:
        """Wait for no further answers; what runs on AWS runs to its end there."""
        super().close()
        self._clients.close()

    def _ping(self, number: int) -> Ready:
        found = run_jobs(self, [Ping()] * number, READY_S)
        if found.interrupted:
            raise KeyboardInterrupt
        for outcome in found.each:
            if not isinstance(outcome.answer, Ready):
                raise WorkshopError(f"{self.label} did not get ready. {outcome.error}")
        return found.each[0].answer  # type: ignore[return-value]

    def _do(self, call: _Call) -> dict[str, Any]:
        """Invoke the function; where it hangs, its own time-out is what ends it there."""
        if "job" in call.event and not call.event.get("namespace"):
            call.event["namespace"] = self._namespace
        client, payload = self._clients.patient(call.limit_s), json.dumps(call.event).encode()

        def once() -> Any:
            if call.unwanted.is_set():
                raise CancelledError
            return client.invoke(
                FunctionName=self._function, InvocationType="RequestResponse", Payload=payload
            )

        retrying = Retrying(
            # A throttled invocation has not begun.
            retry=retry_if_exception(lambda error: error_code(error) == THROTTLED),
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
