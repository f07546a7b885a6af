"""What several tests of load tests use."""

import json
import os

import psutil

from workshop_lib.load.drivers import Driver, NoAnswerError


class Here(Driver):
    """A driver whose one worker is in this process; `spoil` may change an answer."""

    label = "here"

    def __init__(self, worker):
        super().__init__(1, 1, "workers")
        self.worker, self.spoil = worker, lambda answer: answer

    def do(self, event, limit_s):  # noqa: ARG002 -- as a driver is called
        if self.stopped.is_set():
            raise NoAnswerError("interrupted")
        return self.spoil(self.worker.do(event))


def fail(error):
    """Raise it, where only an expression may stand."""
    raise error


def records(*made):
    """Messages as SQS hands them to a function."""
    bodies = (one if isinstance(one, str) else json.dumps(one) for one in made)
    return {"Records": [{"messageId": f"m{n}", "body": body} for n, body in enumerate(bodies)]}


def worker_processes():
    """The workers that this process has started and that have not ended."""
    found = psutil.process_iter(["cmdline", "ppid"])
    return [
        one for one in found
        if one.info["ppid"] == os.getpid()
        and "workshop_lib.load.worker" in (one.info["cmdline"] or ())
    ]  # fmt: skip
