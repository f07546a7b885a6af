"""What several tests of load tests use."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import psutil


class Here:
    """A driver that works in this process; `spoil` may change an answer."""

    label, at_once, here = "here", 1, True

    def __init__(self, worker):
        self.worker, self.spoil = worker, lambda answer: answer
        self.threads = ThreadPoolExecutor(1)

    def start(self, event, limit_s):  # noqa: ARG002 -- as a driver is called
        return self.threads.submit(lambda: self.spoil(self.worker.do(event)))


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
        if one.info["ppid"] == os.getpid() and "serve_parent" in " ".join(one.info["cmdline"] or ())
    ]  # fmt: skip
