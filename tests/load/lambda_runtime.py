"""A stand-in for the AWS Lambda service, in which AWS's own runtime client runs the function.

In front is the Invoke API, as boto3 speaks it. Behind each execution environment is a process of
`awslambdaric`, and the Runtime API that it asks for events (Lambda Developer Guide, "Using the
Lambda runtime API for custom runtimes"). An environment is started when there is an event and none
is free, does one event at a time, stays for more, and is ended when the function's time is over.
"""

import json
import os
import platform
import queue
import signal
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

HERE = {"aarch64": "arm64"}.get(platform.machine(), "x86_64")
HOST = "127.0.0.1"
RUNTIME = ("awslambdaric", "runtime_client", "simplejson", "snapshot_restore_py")
"""What Lambda's managed runtime brings along: its client, and what that imports."""
START = "import sys; from awslambdaric.__main__ import main; main(sys.argv)"
ARN = "arn:aws:lambda:us-east-1:123456789012:function:load-worker"


@dataclass
class Done:
    """The end of one call of the function."""

    answer: bytes
    failure: str = ""

    @classmethod
    def failed(cls, message: str) -> "Done":
        return cls(json.dumps({"errorMessage": message}).encode(), "Unhandled")


class Environment:
    """An execution environment: a process, and the Runtime API that it asks for events."""

    def __init__(self, service: "LambdaService", number: int) -> None:
        self.event: Any = None
        """What it is working on; None if it is not."""
        self._ready = threading.Event()
        self._events: queue.Queue[tuple[bytes, float] | None] = queue.Queue()
        self._ends: queue.Queue[Done] = queue.Queue()
        self._api = serve(self._runtime_api())
        self.log = service.folder / f"environment-{number}.log"
        place = {"AWS_LAMBDA_RUNTIME_API": f"{HOST}:{self._api.server_port}"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                # -S and PYTHONPATH: of all that is installed here it sees the package alone.
                [sys.executable, "-s", "-S", "-c", service.start, service.handler],
                cwd=service.package,
                env=service.environment | place,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def do(self, event: Any, limit_s: float) -> Done:
        """Have it do this, and wait for the end; starting is not part of the function's time."""
        self.event = event
        self._ready.wait()
        self._events.put((json.dumps(event).encode(), limit_s))
        try:
            return self._ends.get(timeout=limit_s)
        except queue.Empty:
            self.end()
            return Done.failed(f"Task timed out after {limit_s:.2f} seconds")
        finally:
            self.event = None

    def end(self) -> None:
        """End the process as the service does: at once."""
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._events.put(None)
        self._api.shutdown()
        self._api.server_close()

    def _watch(self) -> None:
        code = self.process.wait()
        how = f"signal: {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        self._ends.put(Done.failed(f"Error: Runtime exited with error: {how}"))
        self._ready.set()

    def _runtime_api(self) -> type["Quiet"]:
        environment = self

        class Api(Quiet):
            def do_GET(self) -> None:
                assert self.path.endswith("/runtime/invocation/next")
                environment._ready.set()
                given = environment._events.get()
                if given is None:
                    self.close_connection = True
                    return
                event, limit_s = given
                deadline = f"{(time.time() + limit_s) * 1e3:.0f}"
                headers = {"Aws-Request-Id": "1", "Deadline-Ms": deadline}
                headers["Invoked-Function-Arn"] = ARN
                self.reply(200, event, {f"Lambda-Runtime-{k}": v for k, v in headers.items()})

            def do_POST(self) -> None:
                answer = self.body()
                if not self.path.endswith("/init/error"):  # after that the process exits
                    failure = "" if self.path.endswith("/response") else "Unhandled"
                    environment._ends.put(Done(answer, failure))
                self.reply(202)

        return Api


class LambdaService:
    """One function, and its execution environments.

    Args:
        package: the unpacked package.
        folder: for logs, and what stands for /tmp.
        settings: the function's environment variables.
        timeout_s: the function's time-out, seconds.
        most: environments at the same time; further invocations are throttled.
        on_event: told each event before an environment gets it; may change it.
        paths: further folders from which an environment imports; a sitecustomize in them comes
            first, as with Python's own start.
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
        name: str = "load-worker",
    ) -> None:
        self.name, self.package, self.folder, self.handler = name, package, folder, handler
        self.timeout_s, self.most, self.on_event = timeout_s, most, on_event
        self.start = f"import sitecustomize; {START}" if paths else START
        self.scratch, runtime = folder / "tmp", folder / "runtime"
        self.scratch.mkdir()
        runtime.mkdir()
        for module in RUNTIME:
            file = Path(find_spec(module).origin)
            source = file.parent if file.stem == "__init__" else file
            (runtime / source.name).symlink_to(source)
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        self.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "TMPDIR": str(self.scratch),
            "LAMBDA_TASK_ROOT": str(package),
            "PYTHONPATH": ":".join(map(str, (*paths, package, runtime))),
            # Lambda's file system refuses to be written to; where tests run as root, it would not.
            "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python3.{sys.version_info.minor}",
            "AWS_LAMBDA_FUNCTION_NAME": self.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            **dict.fromkeys(keys, "of-the-role"),
            **settings,
        }
        self.calls = 0
        self.environments: list[Environment] = []
        self._free: list[Environment] = []
        self._lock = threading.Lock()
        self._server = serve(self._invoke_api())
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
        event = environment.event = json.loads(payload)
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

    def _invoke_api(self) -> type["Quiet"]:
        service = self

        class Api(Quiet):
            def do_POST(self) -> None:
                service.answer(self, self.path.split("/")[3], self.body())

        return Api

    def answer(self, request: "Quiet", name: str, payload: bytes) -> None:
        """Answer a request to invoke a function."""
        if name != self.name:
            return request.refuse(404, "ResourceNotFoundException", "Function not found")
        done = self.invoke(payload)
        if done is None:
            return request.refuse(429, "TooManyRequestsException", "Rate Exceeded.")
        failed = {"X-Amz-Function-Error": done.failure} if done.failure else {}
        return request.reply(200, done.answer, {"X-Amz-Executed-Version": "$LATEST", **failed})


class EventSourceMapping:
    """Hands a queue's messages to a function, as Lambda does on its own.

    Receives up to ten, invokes the function with them, and deletes those that it does not name
    among the failed ones ("Reporting batch item failures"): the others are delivered again.

    Args:
        service: the function.
        sqs: a client.
        queue_url: of the queue.
        at_once: batches at the same time (ScalingConfig).

    Attributes:
        batches: how many messages each invocation had.

    """

    def __init__(self, service: LambdaService, sqs: Any, queue_url: str, at_once: int = 2) -> None:
        self.service, self.sqs, self.queue = service, sqs, {"QueueUrl": queue_url}
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
        most = {"MaxNumberOfMessages": 10, "WaitTimeSeconds": 1}
        while not self._ended.is_set():
            try:
                found = self.sqs.receive_message(**self.queue, **most).get("Messages", [])
                if found:
                    self._hand_over({one["MessageId"]: one for one in found})
            except (BotoCoreError, ClientError):  # it comes back, as the service would
                self._ended.wait(0.3)

    def _hand_over(self, messages: dict[str, Any]) -> None:
        records = [
            {"messageId": key, "body": one["Body"], "eventSource": "aws:sqs"}
            for key, one in messages.items()
        ]
        done = self.service.invoke(json.dumps({"Records": records}).encode())
        if done is None or done.failure:  # throttled, or failed: all of them come again
            return
        self.batches.append(len(messages))
        failed = {one["itemIdentifier"] for one in json.loads(done.answer)["batchItemFailures"]}
        for key in messages.keys() - failed:
            self.sqs.delete_message(**self.queue, ReceiptHandle=messages[key]["ReceiptHandle"])


class Quiet(BaseHTTPRequestHandler):
    """Answers over a connection that stays open, and prints nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # an answer goes out in one piece

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response_only(status)
        given = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in (given | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, kind: str, message: str) -> None:
        said = json.dumps({"__type": kind, "message": message}).encode()
        self.reply(status, said, {"x-amzn-ErrorType": kind})

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Takes many connections at once, with TLS or without, silent about those that break."""

    daemon_threads = True
    request_queue_size = 128
    tls: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the thread of the connection, so that nobody waits for another's handshake."""
        if self.tls:
            with self.tls.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)
        else:
            super().finish_request(request, client_address)

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(*_)  # type: ignore[arg-type]


def serve(api: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Server:
    """A server on a free port, running."""
    server = Server((HOST, 0), api)
    server.tls = tls
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


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
