"""A stand-in for the AWS Lambda service: it invokes a function, and hands it a queue's messages."""

import json
import ssl
import threading
from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response


class LambdaService:
    """One function, behind the Invoke API as boto3 speaks it.

    Args:
        function: gets an event and returns its answer; an error that it raises is the function's.
        name: of the function.
        most: invocations at the same time; further ones are throttled.

    Attributes:
        calls: how often it was invoked, refusals included.
        working: the events in hand.

    """

    def __init__(
        self, function: Callable[[Any], Any], name: str = "load-worker", most: int = 2
    ) -> None:
        self.function, self.name, self.most = function, name, most
        self.calls, self.working = 0, list[Any]()
        self._lock = threading.Lock()
        self._server = serve(self.answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def invoke(self, event: Any) -> tuple[Any, bool] | None:
        """The answer, and whether the function failed; None if too many are under way."""
        with self._lock:
            self.calls += 1
            if len(self.working) >= self.most:
                return None
            self.working.append(event)
        try:
            return self.function(event), False
        except Exception as error:  # noqa: BLE001 -- the function's own
            return {"errorMessage": str(error), "errorType": type(error).__name__}, True
        finally:
            self.working.remove(event)

    def answer(self, request: Request) -> Response:
        """Answer a request to invoke a function."""
        if request.path.split("/")[3] != self.name:
            return refuse(404, "ResourceNotFoundException", "Function not found")
        done = self.invoke(json.loads(request.get_data()))
        if done is None:
            return refuse(429, "TooManyRequestsException", "Rate Exceeded.")
        answer, failed = done
        error = {"X-Amz-Function-Error": "Unhandled"} if failed else {}  # the status is 200 too
        return Response(json.dumps(answer), 200, error)


class EventSourceMapping:
    """Hands a queue's messages to a function, as Lambda does on its own.

    Receives up to ten, invokes the function with them, and deletes those that it does not name
    among the failed ones ("Reporting batch item failures"): the others are delivered again.

    Attributes:
        batches: how many messages each invocation had.

    """

    def __init__(self, service: LambdaService, sqs: Any, queue_url: str) -> None:
        self.service, self.sqs, self.queue = service, sqs, {"QueueUrl": queue_url}
        self.batches: list[int] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._poll) for _ in range(2)]
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
        records = [{"messageId": key, "body": one["Body"]} for key, one in messages.items()]
        answer, failed = self.service.invoke({"Records": records}) or ({}, True)
        if failed:  # or throttled: all of them come again
            return
        self.batches.append(len(messages))
        again = {one["itemIdentifier"] for one in answer["batchItemFailures"]}
        for key in messages.keys() - again:
            self.sqs.delete_message(**self.queue, ReceiptHandle=messages[key]["ReceiptHandle"])


class Quiet(WSGIRequestHandler):
    """A request whose small answer is sent at once, and which is not logged."""

    disable_nagle_algorithm = True

    def log(self, *_: object) -> None:
        pass


def serve(
    answer: Callable[[Request], Response], tls: ssl.SSLContext | None = None
) -> BaseWSGIServer:
    """A server on a free port, running."""
    how: Any = {"threaded": True, "request_handler": Quiet, "ssl_context": tls}
    server = make_server("127.0.0.1", 0, Request.application(answer), **how)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def refuse(status: int, code: str, message: str) -> Response:
    """An error in a form that AWS's client libraries read."""
    said = json.dumps({"__type": code, "message": message})
    return Response(said, status, {"x-amzn-ErrorType": code}, mimetype="application/json")
