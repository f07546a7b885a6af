"""SQS and CloudWatch emulated on this machine: moto's, behind an access key, in memory.

Run as a program by the supervisor, with the port on the command line and the access key in the
environment. A request that names another access key is refused; signatures are not checked.
It imports nothing of the workshop, so that it starts quickly.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from io import BytesIO
from typing import Any

from moto.cloudwatch.responses import CloudWatchResponse
from moto.core.request import Request as MotoRequest
from moto.sqs.responses import SQSResponse
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

KEY_VARIABLE = "WORKSHOP_ACCESS_KEY"
SERVICES = {"sqs": SQSResponse, "monitoring": CloudWatchResponse}
"""By the name under which requests to it are signed: moto's services."""
LONGEST_WAIT_S = 20
REDELIVERY_S = 0.1
"""How often a waiting receiver looks for messages that have become visible again."""
_CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/, ]+)/\d{8}/[a-z0-9-]+/([a-z0-9-]+)/")
_turn = threading.Condition()
"""Held while moto answers: it keeps no order among threads, and loses messages without."""


class Handler(WSGIRequestHandler):
    """One request, in a thread of its own."""

    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # so that an answer goes out in one piece

    def log_request(self, *_: object) -> None:
        """Requests are not logged."""


@Request.application
def answer(request: Request) -> Response:
    """One request: checks the access key, then has moto answer."""
    signed = _CREDENTIAL.match(request.headers.get("Authorization", ""))
    key = os.environ[KEY_VARIABLE].encode()
    if not signed or not hmac.compare_digest(signed[1].encode(), key):
        return _refuse(403, "InvalidClientTokenId", "The access key is not this emulation's")
    try:
        status, headers, body = _ask_moto(request, SERVICES[signed[2]].dispatch)
    except Exception as error:  # noqa: BLE001 -- moto fails so on whatever it cannot do
        traceback.print_exc()
        # 501, because clients ask again after a 500
        reason = f"moto cannot do this ({type(error).__name__}: {error})"
        return _refuse(501, "NotEmulated", reason)
    return Response(body, int(status), headers)


def _ask_moto(request: Request, dispatch: Callable[[MotoRequest], Any]) -> Any:
    """Moto's answer. A receiver that waits for messages waits here, without blocking others."""
    body, wait_s = request.get_data(), 0.0
    if request.headers.get("X-Amz-Target") == "AmazonSQS.ReceiveMessage":
        asked = json.loads(body)
        if 0 < asked.get("WaitTimeSeconds", 0) <= LONGEST_WAIT_S:
            wait_s, asked["WaitTimeSeconds"] = asked["WaitTimeSeconds"], 0
            body = json.dumps(asked).encode()
    end = time.monotonic() + wait_s
    environment = {**request.environ, "CONTENT_LENGTH": str(len(body))}
    with _turn:
        while True:
            found = dispatch(MotoRequest({**environment, "wsgi.input": BytesIO(body)}))
            left_s = end - time.monotonic()
            if left_s <= 0 or found[0] >= 400 or '"Messages"' in found[2]:
                break
            _turn.wait(min(left_s, REDELIVERY_S))
        _turn.notify_all()
    return found


def _refuse(status: int, code: str, message: str) -> Response:
    """An error in a form that AWS's client libraries read."""
    text = json.dumps({"__type": code, "message": message})
    return Response(text, status, mimetype="application/x-amz-json-1.0")


def main() -> None:
    """Serve on the port named on the command line until told to end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))  # there is nothing to keep
    port = int(sys.argv[1])
    make_server("127.0.0.1", port, answer, threaded=True, request_handler=Handler).serve_forever()


if __name__ == "__main__":
    main()
