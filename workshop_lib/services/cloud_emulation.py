"""SQS, CloudWatch and STS emulated on this machine: moto's, behind a password, in memory.

Run as a program by the supervisor, with the port on the command line and the access key in the
environment. A request that names another access key is refused; signatures are not checked.
It imports nothing of the workshop, so that it starts quickly.
"""

from __future__ import annotations

import gc
import hmac
import importlib
import io
import json
import os
import re
import secrets
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from moto.core.request import Request
from moto.core.utils import camelcase_to_underscores, unix_time_millis
from moto.sqs import models
from moto.sqs.exceptions import ReceiptHandleIsInvalid

KEY_VARIABLE = "WORKSHOP_ACCESS_KEY"
SERVICES = {
    "sqs": ("moto.sqs.responses", "SQSResponse"),
    "monitoring": ("moto.cloudwatch.responses", "CloudWatchResponse"),
    "sts": ("moto.sts.responses", "TokenResponse"),
}
"""By the name under which requests to it are signed: where moto has each service."""
REDELIVERY_S = 0.05
"""How often a waiting receiver looks for messages that have become visible again."""
_CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/, ]+)/\d{8}/[a-z0-9-]+/([a-z0-9-]+)/")
_turn = threading.RLock()
"""Held while moto answers: it keeps no order among threads, and loses messages without."""


class Server(ThreadingHTTPServer):
    """Serves each connection in a thread, for as long as the client keeps it open."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], key: str) -> None:
        self.key = key.encode()
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away in the middle."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Checks the access key, then hands on to moto: HTTP/1.1 with connections kept open."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # so that an answer goes out in one piece

    def do_GET(self) -> None:
        """Is it there, and does it take this key? None of the services is asked by GET."""
        if self._signed_for() is not None:
            self._answer(204)

    def do_POST(self) -> None:
        """One request to one of the services."""
        service = self._signed_for()
        if service is not None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._hand_on(service, body)

    def _hand_on(self, service: str, body: bytes) -> None:
        if service not in SERVICES:
            return self._refuse(404, "UnknownService", f"{service} is not emulated here")
        try:
            with _turn:
                found = _responder(service)(Request(self._environment(body)))
        except Exception as error:  # noqa: BLE001 -- moto fails so on whatever it cannot do
            traceback.print_exc()
            # 501, because clients ask again after a 500
            reason = f"moto cannot do this ({type(error).__name__}: {error})"
            return self._refuse(501, "NotEmulated", reason)
        status, headers, text = found
        content_type = headers.get("Content-Type", headers.get("content-type", "text/xml"))
        body = text.encode() if isinstance(text, str) else text
        return self._answer(int(status), body, content_type)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name there
        """Requests are not logged."""

    def _signed_for(self) -> str | None:
        """The service that the request is signed for; refuses it if by another key than ours."""
        found = _CREDENTIAL.match(self.headers.get("Authorization", ""))
        if found and hmac.compare_digest(found[1].encode(), self.server.key):
            return found[2]
        self.close_connection = True  # its body stays unread
        self._refuse(403, "InvalidClientTokenId", "The access key is not this emulation's")
        return None

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer with an error in the form in which AWS's client libraries read it."""
        if self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded"):
            error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            text, kind = f"<ErrorResponse>{error}</ErrorResponse>", "text/xml"
        else:
            text = json.dumps({"__type": code, "message": message})
            kind = "application/x-amz-json-1.0"
        self._answer(status, text.encode(), kind)

    def _answer(self, status: int, body: bytes = b"", content_type: str = "") -> None:
        self.send_response_only(status)
        if content_type:
            self.send_header("Content-Type", content_type)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _environment(self, body: bytes) -> dict[str, Any]:
        """The request as WSGI has it, which is what moto's Request reads."""
        path, _, query = self.path.partition("?")
        headers = {f"HTTP_{k.upper().replace('-', '_')}": v for k, v in self.headers.items()}
        return {
            **headers,
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": self.server.server_address[0],
            "SERVER_PORT": str(self.server.server_address[1]),
            "SERVER_PROTOCOL": self.request_version,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
        }


class Attributes(Mapping[str, Any]):
    """A queue's attributes, each worked out when it is asked for: some count all messages."""

    def __init__(self, queue: models.Queue) -> None:
        self.queue = queue
        self.names = [
            *queue.BASE_ATTRIBUTES,
            *(queue.FIFO_ATTRIBUTES if queue.fifo_queue else ()),
        ]

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        value = getattr(self.queue, _underscored(name))
        if name == "RedrivePolicy":
            return json.dumps(value) if value else None
        return str(value).lower() if isinstance(value, bool) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def main() -> None:
    """Serve on the port named on the command line until told to end."""
    _quicken()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))  # there is nothing to keep
    server = Server(("127.0.0.1", int(sys.argv[1])), os.environ[KEY_VARIABLE])
    gc.freeze()  # what was imported stays; looking through it again costs time
    server.serve_forever()


@cache
def _responder(service: str) -> Callable[[Request], Any]:
    module, name = SERVICES[service]
    dispatch: Callable[[Request], Any] = getattr(importlib.import_module(module), name).dispatch
    return dispatch


def _quicken() -> None:
    """Have moto's queues bear a load test.

    As they are, sending one message looks at all that wait three times, receiving one nine times:
    a batch of ten took 0.9 and 2.8 s with 5,000 messages waiting (moto 5.2.5).
    """
    better = {
        "attributes": property(Attributes),
        "messages": property(_visible),
        "approximate_number_of_messages": property(lambda queue: sum(1 for _ in queue.messages)),
        "approximate_number_of_messages_delayed": property(_count_delayed),
        "approximate_number_of_messages_not_visible": property(_count_in_flight),
        "delete_message": _delete,
        "wait_for_messages": _wait,
    }
    for name, replacement in better.items():
        setattr(models.Queue, name, replacement)
    # Whoever waits for messages lets the others have their turn meanwhile.
    vars(models)["Condition"] = partial(threading.Condition, _turn)
    vars(models)["generate_receipt_handle"] = partial(secrets.token_urlsafe, 90)


def _visible(queue: models.Queue) -> Iterator[models.Message]:
    """What can be received now; who takes ten of them does not look at the rest."""
    now = unix_time_millis()
    return (m for m in queue._messages if m.visible_at < now and m.delayed_until <= now)


def _count_delayed(queue: models.Queue) -> int:
    now = unix_time_millis()
    return sum(m.delayed_until > now for m in queue._messages)


def _count_in_flight(queue: models.Queue) -> int:
    now = unix_time_millis()
    return sum(m.visible_at >= now for m in queue._messages)


def _delete(queue: models.Queue, receipt_handle: str) -> None:
    if receipt_handle in queue.deleted_messages:
        return
    for place, message in enumerate(queue._messages):
        if message.had_receipt_handle(receipt_handle):
            del queue._messages[place]
            queue.pending_messages.discard(message)
            queue.deleted_messages.update(filter(None, message.all_receipt_handles))
            return
    raise ReceiptHandleIsInvalid


def _wait(queue: models.Queue, timeout: float) -> None:
    with queue._messages_lock:
        queue._messages_lock.wait(min(timeout, REDELIVERY_S))


_underscored = cache(camelcase_to_underscores)

if __name__ == "__main__":
    main()
