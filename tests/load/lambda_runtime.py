"""A stand-in for the AWS Lambda service: HTTP in front, as boto3 speaks it, and real processes.

An execution environment is started when there is an event and none is free, does one event at a
time, stays for further ones, and is ended when the function's time is over. It imports from the
package and the standard library alone, as in Lambda.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib.errors import WorkshopError
from workshop_lib.lambda_package import build_package

HERE = {"aarch64": "arm64"}.get(platform.machine(), "x86_64")
HOST = "127.0.0.1"
FRONT = "/2015-03-31/functions/"
MAX_BYTES = 6 * 2**20
"""Of an event and of an answer, each."""
RUN = """
import importlib, json, os, sys, time
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a function prints goes to its log
for name in sys.argv[1].split():
    importlib.import_module(name)
module, _, name = os.environ["_HANDLER"].rpartition(".")
handler = getattr(importlib.import_module(module), name)
print("ready", file=answers, flush=True)
class Context:
    def get_remaining_time_in_millis(self):
        return int((deadline - time.time()) * 1e3)
for line in sys.stdin:
    event, limit_s = json.loads(line)
    deadline = time.time() + limit_s
    try:
        said = handler(event, Context()), ""
    except Exception as error:
        said = {"errorMessage": str(error), "errorType": type(error).__name__}, "Unhandled"
    print(json.dumps(said), file=answers, flush=True)
"""


@dataclass
class Done:
    """The end of one call of the function."""

    answer: bytes
    failure: str = ""


class Environment:
    """An execution environment: a process with events on its input, and answers on its output."""

    def __init__(self, service: "LambdaService", number: int) -> None:
        self.event: Any = None
        """What it is working on; None if it is not."""
        self.log = service.folder / f"environment-{number}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                # -S and PYTHONPATH: of all that is installed here it sees nothing but the package.
                [sys.executable, "-s", "-S", "-c", RUN, service.preload],
                cwd=service.package,
                env=service.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._ready = False

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def do(self, event: Any, limit_s: float) -> Done:
        """Have it do this, and wait for the end; starting is not part of the function's time."""
        self.event = event
        timed_out = threading.Event()
        late = threading.Timer(limit_s, lambda: (timed_out.set(), self.end()))
        try:
            self._ready = self._ready or self.process.stdout.readline() == "ready\n"
            late.start()
            self.process.stdin.write(json.dumps([event, limit_s]) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except (OSError, ValueError):
            line = ""
        finally:
            late.cancel()
            self.event = None
        if line.endswith("\n"):
            answer, failure = json.loads(line)
            return Done(json.dumps(answer).encode(), failure)
        code = self.process.wait()
        how = f"signal: {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        said = f"Error: Runtime exited with error: {how}"
        if timed_out.is_set():
            said = f"Task timed out after {limit_s:.2f} seconds"
        return Done(json.dumps({"errorMessage": said}).encode(), "Unhandled")

    def end(self) -> None:
        """End the process as the service does: at once."""
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()


class LambdaService:
    """One function, and its execution environments.

    Args:
        package: the unpacked package.
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
            "PYTHONPATH": ":".join(map(str, (*paths, package))),
            # Lambda's file system refuses to be written to; where tests run as root, it would not.
            "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
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
        return [e for e in self.environments if e.event]

    def logs(self) -> str:
        """What the environments wrote."""
        return "\n".join(e.log.read_text(errors="replace") for e in self.environments)

    def invoke(self, payload: bytes) -> Done | None:
        """Have a free environment, or a new one, do this; None if there are too many."""
        self.calls += 1
        environment = self._take()
        if environment is None:
            return None
        event = json.loads(payload)
        self.on_event(event)
        done = environment.do(event, self.timeout_s)
        if environment.alive:
            with self._lock:
                self._free.append(environment)
        return done

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
                if len(body) > MAX_BYTES:
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


def build(out: Path, architecture: str = HERE) -> Path:
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
