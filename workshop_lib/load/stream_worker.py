"""What a worker does with its share of a stream: serve each request, with a cache or without."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import psycopg2
from redis.exceptions import RedisError

from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.errors import WorkshopError, redact
from workshop_lib.load.clients import Clients
from workshop_lib.load.jobs import StreamDone, StreamJob, Warmed, WarmJob
from workshop_lib.load.messages import run
from workshop_lib.load.traffic import STATEMENTS, Request, requests, thresholds

FIRST_ERRORS = 5


def serve(job: StreamJob, clients: Clients) -> StreamDone:
    """Serve one worker's share of a stream.

    Open loop: a request is due when it arrives, whether or not those before it have been answered,
    and its latency counts from then. What waits for a free thread waits, and that is counted. (A
    test that begins to count when it sends hides this: Tene's "coordinated omission".) Closed loop:
    each thread sends its next request when it has an answer, and counts from there.

    Args:
        job: which share of which stream.
        clients: by which.

    """
    return _Stream(job, clients).serve()


def warm(job: WarmJob, clients: Clients) -> Warmed:
    """Bring every answer that a stream asks for into the cache."""
    cache = QueryCache(clients, ttl=job.ttl_s)
    cache.fetch(STATEMENTS["SELECT"])
    for values in thresholds():
        cache.fetch(STATEMENTS["SELECT2"], values)
    return Warmed(answers=1 + len(thresholds()))


class _Stream:
    """The threads of a worker at work."""

    def __init__(self, job: StreamJob, clients: Clients) -> None:
        self.job, self.clients = job, clients
        self.cache = QueryCache(clients, ttl=job.ttl_s) if job.ttl_s else None
        length = math.inf if job.closed else job.seconds
        stream = requests(job.rate, length, job.seed, job.run)
        self.stream: Iterator[Request] = islice(stream, job.worker, None, job.of)
        self.lock = threading.Lock()
        self.done = StreamDone(worker=job.worker)

    def serve(self) -> StreamDone:
        self.begins = time.perf_counter() + self.job.begins_at - time.time()
        cpu = time.process_time()
        with ThreadPoolExecutor(self.job.threads) as threads:
            for done in [threads.submit(self._attend) for _ in range(self.job.threads)]:
                done.result()
        self.done.requests.sort()
        self.done.cpu_ms = (time.process_time() - cpu) * 1e3
        self.done.lasted_ms = (time.perf_counter() - self.begins) * 1e3
        return self.done

    def _attend(self) -> None:
        """Take one request after the other until there are none."""
        while (request := self._next()) is not None:
            now = time.perf_counter()
            due = max(now, self.begins) if self.job.closed else self.begins + request.at
            if self.job.closed and due > self.begins + self.job.seconds:
                return
            if due > now:
                time.sleep(due - now)
            started = time.perf_counter()
            late = started - due > self.job.give_up_s
            source = "dropped" if late else self._ask(request)
            wait = time.perf_counter() - due
            at_us, wait_us = round((due - self.begins) * 1e6), round(wait * 1e6)
            with self.lock:
                self.done.requests.append((at_us, wait_us, source, request.action))

    def _next(self) -> Request | None:
        with self.lock:
            return next(self.stream, None)

    def _ask(self, request: Request) -> str:
        """Serve a request. Returns where the answer came from."""
        end = time.monotonic() + self.job.give_up_s
        action, values = request.action, request.values
        try:
            if self.cache is not None and action != "INSERT":
                return self.cache.fetch(STATEMENTS[action], values or None).source
            new = run(self.clients.database, self.clients, action, values, end)
        except (WorkshopError, psycopg2.Error, RedisError) as error:
            with self.lock:
                if len(self.done.errors) < FIRST_ERRORS:
                    self.done.errors.append(redact(error))
            return "error"
        with self.lock:
            self.done.rows += new
        return "database"
