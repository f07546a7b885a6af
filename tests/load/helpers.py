"""What several tests of load tests use."""

import json
import os
import threading

import psutil

from workshop_lib.load.drivers import Driver, NoAnswerError
from workshop_lib.services.processes import wait_until

SOON_S = 120.0
ALL_EVENTS = "SELECT count(*) FROM business_events WHERE id LIKE '%/%'"
ALL_TRANSACTIONS = "SELECT count(*) FROM transactions WHERE id >= 4611686018427387904"


class Here(Driver):
    """A driver whose one worker is in this process; `spoil` may change an answer."""

    def __init__(self, worker):
        super().__init__(1, 1, ("worker", "workers"), "here")
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


def when_more_than(shop, number, counted, act):
    """Do this in a thread as soon as a load has stored more rows than that."""

    def wait():
        wait_until(lambda: shop.database.query(counted)[0][0] > number, SOON_S)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def worker_processes():
    """The workers that this process has started and that have not ended."""
    found = psutil.process_iter(["cmdline", "ppid"])
    return [
        one for one in found
        if one.info["ppid"] == os.getpid()
        and "workshop_lib.load.worker" in (one.info["cmdline"] or ())
    ]  # fmt: skip
