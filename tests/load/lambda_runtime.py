"""A stand-in for the AWS Lambda service: real HTTP on both sides, real processes in between.

In front the Invoke API, which boto3 speaks. Behind, for each execution environment, a process of
AWS's own runtime client (`awslambdaric`) and the Runtime API that it speaks, as the Developer Guide
describes them under "Using the Lambda runtime API for custom runtimes". An environment is started
when there is an event and none is free, does one event at a time, stays for further ones, and is
ended when the function's time is over.
"""

import json
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.errors import WorkshopError
from workshop_lib.load.package import Architecture, Package, build_package

HERE: Architecture = {"aarch64": "arm64"}.get(platform.machine(), "x86_64")
HOST = "127.0.0.1"
FRONT = "/2015-03-31/functions/"
BACK = "/2018-06-01/runtime/"
MANAGED = ("awslambdaric", "snapshot-restore-py", "simplejson")
"""What Lambda's managed runtime brings along: its client, and what that needs."""
MOST_BYTES = 6 * 2**20
"""Of an event and of an answer, each."""
TICK_S = 0.02
RUN = """
import runpy, sys
for name in sys.argv.pop(1).split():
    __import__(name)
runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)
"""
"""Runs the runtime client, after modules that are asked for (-S leaves sitecustomize out)."""


@dataclass
class Invocation:
    """One call of the function."""

    payload: bytes
    limit_s: float
    deadline: float = float("inf")
    number: str = field(default_factory=lambda: str(uuid.uuid4()))
    answer: bytes = b""
    failure: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> None:
        """The function's time begins when it gets the event: starting is not part of it."""
        self.deadline = time.time() + self.limit_s

    def end(self, answer: bytes, failure: str = "") -> None:
        """The first end counts."""
        if not self.over.is_set():
            self.answer, self.failure = answer, failure
            self.over.set()


class Environment:
    """An execution environment: a process, and the Runtime API that it asks for events."""

    def __init__(self, service: "LambdaService", number: int) -> None:
        self.number = number
        self.current: Invocation | None = None
        self.init_seconds: float | None = None
        self._events: queue.Queue[Invocation | None] = queue.Queue()
        self._server = serve(self._api())
        self.log = service.folder / f"environment-{number}.log"
        self._started = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                # -S and PYTHONPATH: of all that is installed here it sees nothing but these two.
                [sys.executable, "-s", "-S", "-c", RUN, service.preload, service.handler],
                cwd=service.package,
                env={
                    **service.environment,
                    "AWS_LAMBDA_RUNTIME_API": f"{HOST}:{self._server.server_port}",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def event(self) -> Any:
        """What it is working on; None if it is not."""
        return json.loads(self.current.payload) if self.current else None

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def do(self, invocation: Invocation) -> None:
        """Have it do this, and wait for the end."""
        self.current = invocation
        self._events.put(invocation)
        if not self.alive:
            self._exited()
        while not invocation.over.wait(TICK_S):
            if time.time() > invocation.deadline:
                said = f"{invocation.number} Task timed out after {invocation.limit_s:.2f} seconds"
                invocation.end(json.dumps({"errorMessage": said}).encode(), "Unhandled")
                self.end()
        self.current = None

    def end(self) -> None:
        """End the process as the service does: at once."""
        self._events.put(None)
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._server.shutdown()
        self._server.server_close()

    def _watch(self) -> None:
        self.process.wait()
        self._exited()

    def _exited(self) -> None:
        if self.current:
            code = self.process.returncode
            how = f"signal: {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            said = f"RequestId: {self.current.number} Error: Runtime exited with error: {how}"
            error = {"errorType": "Runtime.ExitError", "errorMessage": said}
            self.current.end(json.dumps(error).encode(), "Unhandled")

    def _api(self) -> type[BaseHTTPRequestHandler]:
        environment = self

        class Api(Quiet):
            def do_GET(self) -> None:
                assert self.path == f"{BACK}invocation/next"
                if environment.init_seconds is None:
                    environment.init_seconds = time.perf_counter() - environment._started
                event = environment._events.get()
                if event is None:
                    self.close_connection = True
                    return
                event.begin()
                headers = {
                    "Lambda-Runtime-Aws-Request-Id": event.number,
                    "Lambda-Runtime-Deadline-Ms": f"{event.deadline * 1e3:.0f}",
                    "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:1:function:f",
                }
                self.reply(200, event.payload, headers)

            def do_POST(self) -> None:
                body, current = self.body(), environment.current
                what = self.path.removeprefix(BACK)
                if what == "init/error" or current is None:
                    # The environment ends by itself; its first event, if any, gets the reason.
                    if current:
                        current.end(body, "Unhandled")
                elif what == f"invocation/{current.number}/error":
                    current.end(body, "Unhandled")
                elif what != f"invocation/{current.number}/response":
                    return self.reply(400)
                elif len(body) > MOST_BYTES:
                    said = f"Response payload size exceeded the maximum ({MOST_BYTES} bytes)."
                    current.end(json.dumps({"errorMessage": said}).encode(), "Unhandled")
                    return self.reply(413)
                else:
                    current.end(body)
                return self.reply(202, b'{"status": "OK"}')

        return Api


class LambdaService:
    """One function, and its execution environments.

    Args:
        package: the unpacked package.
        runtime: the folder with the managed runtime.
        folder: for logs, and what stands for /tmp.
        settings: the function's environment variables.
        timeout_s: the function's time-out, seconds.
        most: environments at the same time; further invocations are throttled.
        on_event: told each event before an environment gets it; may change it.
        paths: further folders from which an environment imports.
        preload: modules that it imports before all else, such as "sitecustomize".
        name: of the function.

    Attributes:
        calls: how often it was invoked, refusals included.
        environments: all that were started.

    """

    def __init__(
        self,
        package: Path,
        runtime: Path,
        folder: Path,
        settings: Mapping[str, str],
        *,
        handler: str,
        timeout_s: float = 60,
        most: int = 2,
        on_event: Callable[[dict[str, Any]], None] = lambda _: None,
        paths: Iterable[Path] = (),
        preload: str = "",
        name: str = "load-worker",
    ) -> None:
        self.preload, self.name = preload, name
        self.package, self.folder, self.handler = package, folder, handler
        self.timeout_s, self.most, self.on_event = timeout_s, most, on_event
        self.scratch = folder / "tmp"
        self.scratch.mkdir()
        self.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "TMPDIR": str(self.scratch),
            "LAMBDA_TASK_ROOT": str(package),
            "LAMBDA_RUNTIME_DIR": str(runtime),
            "PYTHONPATH": ":".join(map(str, (*paths, package, runtime))),
            # Lambda's file system refuses to be written to; where tests run as root, it would not.
            "PYTHONDONTWRITEBYTECODE": "1",
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python3.{sys.version_info.minor}",
            "AWS_LAMBDA_FUNCTION_NAME": self.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "of-the-role",
            "AWS_SECRET_ACCESS_KEY": "of-the-role",
            "AWS_SESSION_TOKEN": "of-the-role",
            "_HANDLER": handler,
            **settings,
        }
        self.calls = 0
        self.environments: list[Environment] = []
        self._free: list[Environment] = []
        self._lock = threading.Lock()
        self._server = serve(self._api())
        self.url = f"http://{HOST}:{self._server.server_port}"

    def close(self) -> None:
        """End all environments."""
        self._server.shutdown()
        for environment in self.environments:
            environment.end()
        self._server.server_close()

    def working(self) -> list[Environment]:
        """The environments that have an event in hand."""
        return [e for e in self.environments if e.current]

    def logs(self) -> str:
        """What the environments wrote."""
        return "\n".join(e.log.read_text(errors="replace") for e in self.environments)

    def invoke(self, payload: bytes) -> Invocation | None:
        """Have a free environment, or a new one, do this; None if there are too many."""
        self.calls += 1
        environment = self._take()
        if environment is None:
            return None
        event = json.loads(payload)
        self.on_event(event)
        invocation = Invocation(json.dumps(event).encode(), self.timeout_s)
        environment.do(invocation)
        if environment.alive:
            with self._lock:
                self._free.append(environment)
        return invocation

    def _take(self) -> Environment | None:
        with self._lock:
            while self._free:
                environment = self._free.pop()
                if environment.alive:
                    return environment
            if sum(e.alive for e in self.environments) >= self.most:
                return None
            self.environments.append(Environment(self, len(self.environments)))
            return self.environments[-1]

    def _api(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Api(Quiet):
            def do_POST(self) -> None:
                body = self.body()
                if self.path != f"{FRONT}{service.name}/invocations":
                    return self.refuse(404, "ResourceNotFoundException", "Function not found")
                if len(body) > MOST_BYTES:
                    return self.refuse(413, "RequestTooLargeException", "Request must be smaller")
                done = service.invoke(body)
                if done is None:
                    return self.refuse(429, "TooManyRequestsException", "Rate Exceeded.")
                failed = {"X-Amz-Function-Error": done.failure} if done.failure else {}
                return self.reply(200, done.answer, {"X-Amz-Executed-Version": "$LATEST", **failed})

            def refuse(self, status: int, kind: str, message: str) -> None:
                said = json.dumps({"Type": "User", "message": message}).encode()
                self.reply(status, said, {"x-amzn-ErrorType": kind})

        return Api


class EventSourceMapping:
    """Hands a queue's messages to a function, as Lambda does on its own.

    Receives up to ten, invokes the function with them, and deletes those that it does not name
    among the failed ones ("Reporting batch item failures"): the others are delivered again.

    Args:
        service: the function.
        sqs: a client.
        queue: the queue's URL.
        at_once: batches at the same time (ScalingConfig).

    Attributes:
        batches: how many messages each invocation had.

    """

    def __init__(self, service: LambdaService, sqs: Any, queue: str, at_once: int = 2) -> None:
        self.service, self.sqs, self.queue = service, sqs, queue
        self.batches: list[int] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._poll) for _ in range(at_once)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Receive no more; a batch under way is finished."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _poll(self) -> None:
        while not self._ended.is_set():
            try:
                messages = self.sqs.receive_message(
                    QueueUrl=self.queue, MaxNumberOfMessages=10, WaitTimeSeconds=1
                ).get("Messages", [])
                if messages:
                    self._hand_over(messages)
            except (BotoCoreError, ClientError):  # it comes back, as the service would
                self._ended.wait(0.3)

    def _hand_over(self, messages: Sequence[Mapping[str, Any]]) -> None:
        records = [
            {"messageId": m["MessageId"], "body": m["Body"], "eventSource": "aws:sqs"}
            for m in messages
        ]
        done = self.service.invoke(json.dumps({"Records": records}).encode())
        if done is None or done.failure:  # throttled, or failed: all of them come again
            return
        self.batches.append(len(messages))
        failed = {one["itemIdentifier"] for one in json.loads(done.answer)["batchItemFailures"]}
        entries = [
            {"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]}
            for n, m in enumerate(messages)
            if m["MessageId"] not in failed
        ]
        if entries:
            self.sqs.delete_message_batch(QueueUrl=self.queue, Entries=entries)


class Quiet(BaseHTTPRequestHandler):
    """Answers over a connection that stays open, and prints nothing."""

    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def reply(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Takes many connections at once, and is silent about those that break."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*_)  # type: ignore[arg-type]


def serve(api: type[BaseHTTPRequestHandler]) -> Server:
    """A server on a free port, running."""
    server = Server((HOST, 0), api)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


def copy_runtime(to: Path) -> Path:
    """Put Lambda's runtime client into a folder of its own, as the managed runtime has it."""
    for name in MANAGED:
        for file in distribution(name).files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = to / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.locate(), target)
    return to


def build(out: Path, architecture: Architecture = HERE) -> Package:
    """A package, or a skipped test where this machine cannot get the wheels."""
    try:
        return build_package(out, architecture=architecture)
    except WorkshopError as error:
        if "could not be had" not in str(error):
            raise
        pytest.skip(str(error))


def unpack(package: Path, to: Path) -> Path:
    """The package as Lambda unpacks it: nobody may write there."""
    with zipfile.ZipFile(package) as archive:
        archive.extractall(to)
    allow_writing(to, allowed=False)
    return to


def allow_writing(folder: Path, *, allowed: bool = True) -> None:
    """Whether files and folders may be written to."""
    bits = 0o200 if allowed else 0
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o555 if path.is_dir() else 0o444) | bits)
