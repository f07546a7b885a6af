"""Who does a load test's jobs: processes on this machine, or AWS Lambda functions."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Self

import boto3
import msgspec
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.dsql import CONNECTION_BURST, CONNECTIONS_PER_SECOND, Rate
from workshop_lib.errors import WorkshopError
from workshop_lib.load.interrupts import one_interrupt
from workshop_lib.load.jobs import Done, Job, Ping, to_event
from workshop_lib.load.worker import ClientConfig
from workshop_lib.services.error_help import error_code, error_help

if TYPE_CHECKING:
    from workshop_lib.workshop import Workshop

READY_S = 120.0
"""How long a local process may take to start, seconds: the machine may be busy."""
GRACE_S = 30.0
"""How much longer than its time limit a job may take before it is given up, seconds."""
MAX_PROCESSES = 64
MAX_EXECUTIONS = 1_000
"""At the same time, of all functions of an account in a Region, unless AWS has raised it."""
MAX_FUNCTION_S = 900
THROTTLED = "TooManyRequestsException"
THROTTLED_S = 0.5
LOOK_S = 0.1


class NoAnswerError(WorkshopError):
    """A worker gave no answer; the text says why."""


class Driver(ABC):
    """What does jobs: processes here, or a Lambda function. Used in a `with` block, it closes.

    Attributes:
        label: what a learner sees.
        at_once: how many jobs it does at the same time.
        here: whether on this machine, whose processors it takes.
        stopped: while set, no job is begun.

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
        self.stopped = threading.Event()

    @abstractmethod
    def do(self, event: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Have a worker do a job, or process a batch of messages; wait for its answer.

        Raises:
            NoAnswerError: it failed, ended, or took longer than `limit_s` seconds.

        """

    def prepare(self) -> None:  # noqa: B027 -- most have nothing to prepare
        """Have all workers ready, as far as that takes time."""

    def close(self) -> None:
        """End what can be ended of the jobs under way, and begin none."""
        self.stopped.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_jobs(
    driver: Driver,
    jobs: Sequence[Job],
    limit_s: float,
    progress: Callable[[], object] = lambda: None,
) -> tuple[list[Done], bool]:
    """Have all jobs done, as many at once as the driver takes; Ctrl-C ends it early.

    New workers begin no faster than Aurora DSQL accepts connections. Each job is begun once: one
    that fails is not tried again, as its rows might count twice.

    Args:
        driver: by whom.
        jobs: what.
        limit_s: a job's own time limit; it is given up 30 seconds after that.
        progress: called at the end of each job.

    Returns:
        What became of each, in their order; and whether Ctrl-C or Interrupt ended it early.

    """
    found = [Done(planned=job.planned, dropped=job.planned, state="not begun") for job in jobs]
    rate, interrupted = Rate(CONNECTIONS_PER_SECOND, CONNECTION_BURST), False
    driver.prepare()

    def work(number: int) -> None:
        if not driver.stopped.wait(rate.reserve(math.inf)[1]):
            found[number] = _have_done(driver, jobs[number], limit_s + GRACE_S)

    threads, ended = ThreadPoolExecutor(driver.at_once, "load job"), SimpleQueue[Future[None]]()
    with one_interrupt(last=False), threads:
        try:
            for number in range(len(jobs)):
                threads.submit(work, number).add_done_callback(ended.put)
            left = len(jobs)
            while left:
                # A signal that comes just before a wait for good would not end it.
                with suppress(Empty):
                    ended.get(timeout=LOOK_S).result()
                    left -= 1
                    progress()
        except KeyboardInterrupt:
            interrupted = True
            driver.close()
            threads.shutdown(cancel_futures=True)
            driver.stopped.clear()
    return found, interrupted


def _have_done(driver: Driver, job: Job, limit_s: float) -> Done:
    began, done = time.perf_counter(), Done(planned=job.planned, state="lost")
    try:
        done = msgspec.convert(driver.do(to_event(job), limit_s), Done)
    except msgspec.ValidationError as wrong:
        done.note(
            f"This is not the answer of a load worker: {wrong}. Is another function called?", 0
        )
    except NoAnswerError as error:
        done.note(error, 0)
        done.state = "interrupted" if driver.stopped.is_set() else "lost"
    done.seconds = time.perf_counter() - began
    return done


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
        self.label = f"{at_once} {'process' if at_once == 1 else 'processes'} on this machine"
        self._config, self._parent = config, os.getpid()
        self._processes: dict[int, _Process] = {}
        self._idle = SimpleQueue[int]()
        for number in range(at_once):
            self._idle.put(number)
        try:
            self.prepare()
        except BaseException:
            self.close()
            raise

    def prepare(self) -> None:
        """Start the processes that are not there, and wait for all: none starts in mid-measurement.

        Raises:
            WorkshopError: one did not start, or this process was forked since they were started.

        """
        began = time.monotonic()
        try:
            for process in [self._start(number) for number in range(self.at_once)]:
                process.get_ready()
        except (OSError, NoAnswerError) as error:
            waited = time.monotonic() - began
            raise WorkshopError(
                f"After {waited:.0f} s not all of {self.at_once} worker processes were ready: "
                f"{error}"
            ) from None

    def do(self, event: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Have a process do it; another takes its place if it ends or is too slow.

        Raises:
            NoAnswerError: it failed, ended, or took longer than `limit_s` seconds.
            WorkshopError: this process was forked since the workers were started.

        """
        number = self._idle.get()
        try:
            process = self._start(number)
            process.get_ready()
            if self.stopped.is_set():
                raise NoAnswerError("interrupted")
            return process.ask(event, limit_s)
        except OSError as error:
            raise NoAnswerError(f"No worker process could be started: {error}.") from None
        finally:
            self._idle.put(number)

    def _start(self, number: int) -> _Process:
        """The process of this number, or another in its place."""
        if os.getpid() != self._parent:
            raise WorkshopError(
                "These workers were started before this process was forked, and are the parent's. "
                "Start others here: ws.load_workers()."
            )
        if number not in self._processes or self._processes[number].ended:
            self._processes[number] = _Process(self._config)
        return self._processes[number]

    def close(self) -> None:
        """End the processes, whatever they do; in a forked process they are the parent's."""
        super().close()
        for process in list(self._processes.values()) if os.getpid() == self._parent else ():
            process.kill()


class _Process:
    """A worker process, and our end of the pipe to it.

    It is in a process group of its own: Ctrl-C in a terminal does not reach it.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._pipe, theirs = Pipe()
        self._ready = False
        with theirs:
            self._program = subprocess.Popen(
                # -P: what lies in the current folder is not imported.
                [sys.executable, "-P", "-m", "workshop_lib.load.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        with suppress(OSError):  # it has ended: whoever asks it finds out
            self._pipe.send((config, os.getpid()))

    @property
    def ended(self) -> bool:
        """Whether it is not there any more."""
        return self._program.poll() is not None

    def get_ready(self) -> None:
        """Wait until it has started, and is connected."""
        if not self._ready:
            self.ask(to_event(Ping()), READY_S)
        self._ready = True

    def ask(self, event: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Have a job done; it is ended if it takes longer than `limit_s` seconds."""
        try:
            self._pipe.send(event)
            if not self._pipe.poll(limit_s):
                self.kill()
                raise NoAnswerError(f"no answer within {limit_s:.3g} s: given up.")
            answer, error = self._pipe.recv()
        except (OSError, EOFError):
            self.kill()
            raise NoAnswerError(
                "the worker process was killed, or ended by itself. If the machine is out of "
                "memory, take fewer at once."
            ) from None
        if error:
            raise NoAnswerError(error)
        found: dict[str, Any] = answer
        return found

    def kill(self) -> None:
        """End it, whatever it does."""
        self._program.kill()
        self._program.wait()


class LambdaWorkers(Driver):
    """Executions of an AWS Lambda function, called directly and many times at once.

    An invocation that Lambda refuses because too many run has not begun: it is tried again for as
    long as its job may take. No other is: it might run twice. What hangs is ended by the function's
    own time-out.

    Args:
        function_name: or its ARN.
        at_once: invocations at the same time, 1 to 1,000.
        region: where it is; None for the one that boto3 is configured for.
        namespace: whose tables, keys and metrics jobs are for that do not say so themselves; empty
            for the function's own.

    Raises:
        WorkshopError: the number is out of range, or AWS's clients are configured wrongly.

    """

    here = False

    def __init__(
        self,
        function_name: str,
        at_once: int = MAX_EXECUTIONS,
        *,
        region: str | None = None,
        namespace: str = "",
    ) -> None:
        super().__init__(at_once, MAX_EXECUTIONS, "executions")
        executions = "execution" if at_once == 1 else "executions"
        self.label = f"{at_once:,} {executions} of the AWS Lambda function {function_name}"
        self._function, self._namespace = function_name, namespace
        config = Config(
            connect_timeout=5,
            # Whoever gives up before the function has ended, or tries again, runs the job twice.
            read_timeout=MAX_FUNCTION_S + GRACE_S,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=at_once,
            # No byte comes while the function works; a gateway forgets a silent connection.
            tcp_keepalive=True,
        )
        try:
            self._lambda = boto3.Session().client("lambda", config=config, region_name=region)
        except BotoCoreError as error:
            raise WorkshopError(f"{self.label} cannot be called. {error_help(error)}") from None

    def describe(self, number: int = 1) -> Done:
        """What an execution says of itself: its memory, and where it reads.

        Args:
            number: how many have to answer at once; the driver's `at_once` wakes all of them.

        Raises:
            WorkshopError: the function does not answer, is no load worker, or not all could start.

        """
        found, interrupted = run_jobs(self, [Ping()] * number, READY_S)
        if interrupted:
            raise KeyboardInterrupt
        for done in found:
            if done.state != "answered":
                raise WorkshopError(f"{self.label} did not get ready. {' '.join(done.errors)}")
        return found[0]

    def do(self, event: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Invoke the function.

        Raises:
            NoAnswerError: it could not be invoked, or failed.

        """
        if "job" in event and not event.get("namespace"):
            event = {**event, "namespace": self._namespace}
        until = time.monotonic() + limit_s
        while not self.stopped.is_set():
            try:
                answer = self._lambda.invoke(
                    FunctionName=self._function, Payload=json.dumps(event).encode()
                )
                said: dict[str, Any] = json.loads(answer["Payload"].read())
            except (BotoCoreError, ClientError, ValueError) as error:
                if error_code(error) == THROTTLED and time.monotonic() < until:
                    self.stopped.wait(THROTTLED_S)
                    continue
                raise NoAnswerError(
                    f"The function {self._function} gave no answer: {error_help(error)}"
                ) from None
            if answer.get("FunctionError"):  # the status is 200 all the same
                reason = said.get("errorMessage", said)
                raise NoAnswerError(f"The function {self._function} failed: {reason}")
            return said
        raise NoAnswerError("interrupted")


def open_workers(
    ws: Workshop,
    at_once: int,
    *,
    metrics: bool,
) -> LocalWorkers | LambdaWorkers:
    """Processes, or executions of the function that LOAD_FUNCTION names; `Workshop.load_workers`.

    Raises:
        WorkshopError: the number is out of range, or they did not all start.

    """
    function = ws.settings.load_function
    if function:
        region = ws.endpoints.aws_region
        workers = LambdaWorkers(function, at_once, region=region, namespace=ws.namespace)
        try:
            workers.describe(at_once)
        except WorkshopError as error:
            raise WorkshopError(
                f"{error} LOAD_FUNCTION (or the stack) names this function; "
                'open_workshop(…, load_function="") has processes on this machine do the work.'
            ) from None
        return workers
    config = ClientConfig(
        ws.database.endpoint,
        ws.namespace,
        reader=ws.endpoints.reader,
        messaging=ws.messaging if metrics else None,
    )
    return LocalWorkers(config, at_once)
