"""Who does a load test's jobs: processes on this machine, or an AWS Lambda function."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from multiprocessing import Pipe
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import boto3
import msgspec
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib import forks
from workshop_lib.dsql import CONNECTION_BURST, CONNECTIONS_PER_SECOND, Rate
from workshop_lib.errors import WorkshopError
from workshop_lib.interrupts import one_interrupt
from workshop_lib.load.scenario import Job
from workshop_lib.load.worker import ClientConfig, Done
from workshop_lib.services.error_help import error_code, error_help

if TYPE_CHECKING:
    from workshop_lib.workshop import Workshop

# How long a local process may take to start, seconds: the machine may be busy.
READY_S = 120.0
# How much longer than its time limit a job may take before it is given up, seconds.
GRACE_S = 30.0
MAX_PROCESSES = 64
# At the same time, of all functions of an account in a Region, unless AWS has raised it.
MAX_EXECUTIONS = 1_000
MAX_FUNCTION_S = 900
THROTTLED = "TooManyRequestsException"
THROTTLED_S = 0.5
LOOK_S = 0.1
PING = Job(run="ping", number=0, action="EVENTS", statements=0)


class NoAnswerError(WorkshopError):
    """A worker gave no answer; the text says why."""


class Driver(AbstractContextManager["Driver"]):
    """What runs jobs. A `with` block closes it.

    Attributes:
        label: what a learner sees.
        at_once: how many jobs it runs at the same time.
        here: whether on this machine, whose processors it takes.
        stopped: while set, no job is begun.

    """

    here = True

    def __init__(self, at_once: int, most: int, one: str, many: str) -> None:
        """Refuse a number out of range; `one` and `many` say who works.

        Raises:
            WorkshopError: it is out of range.

        """
        if not 1 <= at_once <= most:
            raise WorkshopError(
                f"{at_once} {many}: from 1 to {most:,} can run at the same time. A load may have "
                "more workers than that: they take turns."
            )
        self.at_once, self.label = at_once, f"{at_once:,} {many if at_once > 1 else one}"
        self.stopped = threading.Event()

    def do(self, event: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Have a worker do a job, or process a batch of messages; wait for its answer.

        Raises:
            NoAnswerError: it failed, ended, or took longer than `limit_s` seconds.

        """
        raise NotImplementedError

    def prepare(self) -> None:
        """Have all workers ready, where that takes time."""

    def close(self) -> None:
        """End what can be ended of the jobs under way, and begin none."""
        self.stopped.set()

    def __exit__(self, *_: object) -> None:
        self.close()


def run_jobs(
    driver: Driver, jobs: Sequence[Job], progress: Callable[[], object] = lambda: None
) -> tuple[list[Done], bool]:
    """Run all jobs, as many at once as the driver takes; Ctrl-C ends it early.

    New workers begin no faster than Aurora DSQL accepts connections. Each job is begun once: one
    that fails is not tried again, as its rows might count twice.

    Args:
        driver: who runs them.
        jobs: what to run; each is given up 30 seconds after its own time limit.
        progress: called at the end of each job.

    Returns:
        The record of each, in their order; and whether Ctrl-C or Interrupt ended it early.

    """
    found = [Done(number=job.number, planned=job.planned, state="not begun") for job in jobs]
    rate, interrupted = Rate(CONNECTIONS_PER_SECOND, CONNECTION_BURST), False
    driver.prepare()

    def work(number: int) -> None:
        if not driver.stopped.wait(rate.reserve(math.inf)[1]):
            found[number] = _run_job(driver, jobs[number])

    with one_interrupt(last=False), ThreadPoolExecutor(driver.at_once, "load job") as threads:
        try:
            pending = {threads.submit(work, number) for number in range(len(jobs))}
            while pending:  # in short waits: a signal just before a long one would not end it
                ended, pending = wait(pending, LOOK_S, FIRST_COMPLETED)
                for job in ended:
                    job.result()
                    progress()
        except KeyboardInterrupt:
            interrupted = True
            driver.close()
            threads.shutdown(cancel_futures=True)
            driver.stopped.clear()
    return found, interrupted


def _run_job(driver: Driver, job: Job) -> Done:
    began, done = time.perf_counter(), Done(number=job.number, planned=job.planned, state="lost")
    try:
        answer = driver.do(msgspec.to_builtins(job), job.time_limit_s + GRACE_S)
        done = msgspec.convert(answer, Done)
    except msgspec.ValidationError as wrong:
        done.note(f"This is not the answer of a load worker: {wrong}. Is another function called?")
    except NoAnswerError as error:
        done.note(error)
        done.state = "interrupted" if driver.stopped.is_set() else "lost"
    done.seconds = time.perf_counter() - began
    return done


class LocalWorkers(Driver):
    """Worker processes on this machine, started once and used for many runs.

    They are no pool of Python's: a killed process must cost its own job only, a hanging one must be
    ended, and a forked kernel must be able to exit without them. A forked process has its own.

    Args:
        config: what they connect to.
        at_once: how many processes, 1 to 64.

    Raises:
        WorkshopError: the number is out of range, or they did not all start.

    """

    def __init__(self, config: ClientConfig, at_once: int = 4) -> None:
        one, many = "process on this machine", "processes on this machine"
        super().__init__(at_once, MAX_PROCESSES, one, many)
        self._config = config
        self._after_fork()
        forks.tell_child(self)
        try:
            self.prepare()
        except BaseException:
            self.close()
            raise

    def _after_fork(self) -> None:
        self._processes = [_Process(self._config) for _ in range(self.at_once)]
        self._idle = SimpleQueue[_Process]()
        for process in self._processes:
            self._idle.put(process)

    def prepare(self) -> None:
        """Start the processes that are not there, so that none starts in mid-measurement.

        Raises:
            WorkshopError: one did not start.

        """
        try:
            started = [process for process in self._processes if process.start()]
            for process in started:
                process.get_ready()
        except NoAnswerError as error:
            raise WorkshopError(
                f"Not all of {self.at_once} worker processes could start: {error}"
            ) from None

    def do(self, event: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Have a process do it; another takes its place if it has ended.

        Raises:
            NoAnswerError: it failed, ended, or took longer than `limit_s` seconds.

        """
        process = self._idle.get()
        try:
            if process.start():
                process.get_ready()
            if self.stopped.is_set():  # after the start: `close` ends what it finds
                raise NoAnswerError("interrupted")
            return process.ask(event, limit_s)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes, whatever they do."""
        super().close()
        for process in self._processes:
            process.kill()


class _Process:
    """A worker process, and our end of the pipe to it."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._program: subprocess.Popen[bytes] | None = None

    def start(self) -> bool:
        """Start it, unless it runs. Returns whether it was started, and has to get ready.

        Raises:
            NoAnswerError: this machine starts no more.

        """
        if self._program and self._program.poll() is None:
            return False
        try:
            self._pipe, theirs = Pipe()
            with theirs:
                self._program = subprocess.Popen(
                    # -P: what lies in the current folder is not imported.
                    [sys.executable, "-P", "-m", "workshop_lib.load.worker", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    process_group=0,  # Ctrl-C in a terminal does not reach it
                )
        except OSError as error:
            raise NoAnswerError(f"No worker process could be started: {error}.") from None
        with suppress(OSError):  # it has ended, which the first question finds out
            self._pipe.send((self._config, os.getpid()))
        return True

    def get_ready(self) -> None:
        """Wait until it has started, and is connected."""
        self.ask(msgspec.to_builtins(PING), READY_S)

    def ask(self, event: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Have a job done; the process is ended if it takes longer than `limit_s` seconds.

        Raises:
            NoAnswerError: it gave no answer.

        """
        answer: dict[str, Any] = {}
        try:
            self._pipe.send(event)
            error = f"no answer within {limit_s:.3g} s: given up."
            if self._pipe.poll(limit_s):
                answer, error = self._pipe.recv()
            else:
                self.kill()
        except (OSError, EOFError):
            self.kill()
            error = (
                "the worker process was killed, or ended by itself. If the machine is out of "
                "memory, take fewer at once."
            )
        if error:
            raise NoAnswerError(error)
        return answer

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._program:
            self._program.kill()
            self._program.wait()


class LambdaWorkers(Driver):
    """Executions of an AWS Lambda function, invoked directly and many times at once.

    An invocation that Lambda refuses because too many run has not begun: it is tried again for as
    long as its job may take. No other is: it might run twice. The function's own time-out ends what
    hangs.

    Args:
        function_name: or its ARN.
        at_once: invocations at the same time, 1 to 1,000.
        region: where it is; None for the one that boto3 is configured for.

    Attributes:
        memory_mb: of the function.
        reader: the host of its endpoint for reads; empty if it has no other.

    Raises:
        WorkshopError: the number is out of range, AWS's clients are configured wrongly, the
            function does not answer, or it is no load worker.

    """

    here = False

    def __init__(
        self, function_name: str, at_once: int = MAX_EXECUTIONS, *, region: str | None = None
    ) -> None:
        place = f"of the AWS Lambda function {function_name}"
        super().__init__(at_once, MAX_EXECUTIONS, f"execution {place}", f"executions {place}")
        self._function = function_name
        config = Config(
            connect_timeout=5,
            # Giving up before the function has ended, or trying again, would run the job twice.
            read_timeout=MAX_FUNCTION_S + GRACE_S,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=at_once,
            # No byte comes while the function works; a gateway forgets a silent connection.
            tcp_keepalive=True,
        )
        try:
            self._lambda = boto3.Session().client("lambda", config=config, region_name=region)
            found = msgspec.convert(self.do(msgspec.to_builtins(PING), READY_S), Done)
        except (BotoCoreError, NoAnswerError, msgspec.ValidationError) as error:
            said = error_help(error) if isinstance(error, BotoCoreError) else error
            raise WorkshopError(
                f"{self.label} did not get ready. {said} Processes on this machine do the work if "
                'no function is named (LOAD_FUNCTION, load_function="", --function-name "").'
            ) from None
        self.memory_mb, self.reader = found.memory_mb, found.reader

    def do(self, event: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Invoke the function.

        Raises:
            NoAnswerError: it could not be invoked, or failed.

        """
        payload, until = json.dumps(event).encode(), time.monotonic() + limit_s
        while not self.stopped.is_set():
            try:
                answer = self._lambda.invoke(FunctionName=self._function, Payload=payload)
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


def open_workers(ws: Workshop, at_once: int, *, metrics: bool) -> LocalWorkers | LambdaWorkers:
    """Processes, or executions of the function that LOAD_FUNCTION names; `Workshop.load_workers`.

    Raises:
        WorkshopError: the number is out of range, or they did not all start.

    """
    if function := ws.settings.load_function:
        return LambdaWorkers(function, at_once, region=ws.endpoints.aws_region)
    messaging = ws.messaging if metrics else None
    config = ClientConfig(ws.database.endpoint, ws.namespace, ws.endpoints.reader, messaging)
    return LocalWorkers(config, at_once)
