"""SQS, CloudWatch and STS emulated on this machine: moto's, behind a password, in memory.

Run as a program by the supervisor, with the port on the command line and the access key in the
environment. A request that names another access key is refused; signatures are not checked.
It imports nothing of the workshop, so that it starts quickly.
"""

from __future__ import annotations

import copy
import gc
import hmac
import importlib
import io
import json
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.core.request import Request
from moto.core.utils import unix_time_millis
from moto.sqs import models
from moto.sqs.exceptions import ReceiptHandleIsInvalid
from moto.sqs.models import Message

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


class Server(ThreadingMixIn, WSGIServer):
    """Serves each connection in a thread, for as long as the client keeps it open."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], key: str) -> None:
        self.key = key.encode()
        super().__init__(address, Handler)


class Handler(WSGIRequestHandler):
    """Checks the access key, then hands on to moto: HTTP/1.1 with connections kept open."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    handle = BaseHTTPRequestHandler.handle  # one request after another, not one connection for each
    wbufsize = 1 << 16  # so that an answer goes out in one piece

    def do_GET(self) -> None:  # noqa: N802 -- its name there
        """Is it there, and does it take this key? None of the services is asked by GET."""
        if self._signed_for() is not None:
            self._answer(204)

    def do_POST(self) -> None:  # noqa: N802 -- its name there
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
        length, stream = str(len(body)), io.BytesIO(body)
        request = {"CONTENT_LENGTH": length, "wsgi.input": stream, "wsgi.url_scheme": "http"}
        return {**self.get_environ(), **request}


class Queue(models.Queue):
    """A standard queue that bears a load test.

    With moto's own, a batch of ten that is sent and received takes 0.4 s of processor time where
    500 messages wait, and long polling keeps others from sending (moto 5.2.5).
    """

    __module__ = models.Queue.__module__  # by which moto knows the service

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stored: dict[str, Message] = {}
        self.by_receipt: dict[str, Message] = {}
        self.arrived = threading.Condition(_turn)  # whoever waits lets others have their turn
        super().__init__(*args, **kwargs)

    @property
    def messages(self) -> list[Message]:
        """What can be received now."""
        now = unix_time_millis()
        return [m for m in self.stored.values() if m.visible_at < now and m.delayed_until <= now]

    @property
    def approximate_number_of_messages_delayed(self) -> int:
        """How many were sent with a delay that has not passed."""
        now = unix_time_millis()
        return sum(message.delayed_until > now for message in self.stored.values())

    @property
    def approximate_number_of_messages_not_visible(self) -> int:
        """How many were received and not deleted."""
        now = unix_time_millis()
        return sum(message.visible_at >= now for message in self.stored.values())

    def add_message(self, message: Message) -> None:
        """Put in a message."""
        self.stored[message.id] = message
        self.arrived.notify_all()

    def take(self, count: int, visibility_timeout: int) -> list[Message]:
        """Receive messages; those that were received too often go to the dead-letter queue."""
        taken: list[Message] = []
        policy = self.redrive_policy or {}
        for message in self.messages[:count]:
            if message.approximate_receive_count >= policy.get("maxReceiveCount", math.inf):
                del self.stored[message.id]
                cast("Queue", self.dead_letter_queue).add_message(message)
                continue
            message.mark_received(visibility_timeout=visibility_timeout)
            self.by_receipt[str(message.receipt_handle)] = message
            taken.append(copy.copy(message))
        return taken

    def received(self, receipt_handle: str) -> Message:
        """The message that was handed out with this receipt, deleted or not."""
        if receipt_handle not in self.by_receipt:
            raise ReceiptHandleIsInvalid
        return self.by_receipt[receipt_handle]

    def delete_message(self, receipt_handle: str) -> None:
        """Delete the message of this receipt; again is no error."""
        self.stored.pop(self.received(receipt_handle).id, None)


class Backend(models.SQSBackend):
    """The queues of a Region."""

    def create_queue(self, name: str, tags: Any = None, **kwargs: Any) -> models.Queue:
        """A queue of this name; one with other attributes is refused by moto."""
        if name not in self.queues:
            made = {**kwargs, "region": self.region_name, "account_id": self.account_id}
            self.queues[name] = Queue(name, **made)  # type: ignore[abstract]  # as moto does
        return super().create_queue(name, tags, **kwargs)

    def receive_message(
        self,
        queue_name: str,
        count: int,
        wait_seconds_timeout: int,
        visibility_timeout: int,
        message_attribute_names: list[str] | None = None,
    ) -> list[Message]:
        """Messages of a queue, waiting for the first if need be; with all their attributes."""
        del message_attribute_names
        queue: Any = self.get_queue(queue_name)
        end = time.monotonic() + wait_seconds_timeout
        while not (taken := queue.take(count, visibility_timeout)) and time.monotonic() < end:
            queue.arrived.wait(REDELIVERY_S)
        return cast("list[Message]", taken)

    def change_message_visibility(
        self, queue_name: str, receipt_handle: str, visibility_timeout: int
    ) -> None:
        """Hide a received message for so long from now on, or show it again."""
        queue: Any = self.get_queue(queue_name)
        queue.received(receipt_handle).change_visibility(visibility_timeout)

    def purge_queue(self, queue_name: str) -> None:
        """Delete all messages."""
        queue: Any = self.get_queue(queue_name)
        queue.stored.clear()


def use_fast_queues(*regions: str) -> None:
    """Have moto keep the queues of these Regions so that they bear a load test."""
    for region in regions:
        models.sqs_backends[DEFAULT_ACCOUNT_ID][region] = Backend(region, DEFAULT_ACCOUNT_ID)


def main() -> None:
    """Serve on the port named on the command line until told to end."""
    use_fast_queues("us-east-1")
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


if __name__ == "__main__":
    main()
