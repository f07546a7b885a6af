"""A process of several threads that all ask for the same thing at once, each time it is told to.

Reads one line of JSON about where things are, then one number for each crowd, which makes its
question new. Answers each with how long every thread waited, in seconds, and how many queries that
took.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import redis

from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.database import Database
from workshop_lib.services import DatabaseEndpoint

SLEEP = "SELECT %s::int, pg_sleep(0.05)::text"


def main() -> None:
    told = json.loads(sys.stdin.readline())
    threads = told["threads"]
    endpoint = DatabaseEndpoint("", "", 0, told["database"])
    database = Database(endpoint, pool_min=threads, pool_max=threads)
    valkey = redis.Redis(**told["valkey"])
    source = SimpleNamespace(database=database, valkey=valkey, namespace=told["namespace"])
    cache = QueryCache(source, ttl=600)
    crowd = ThreadPoolExecutor(threads)
    start = threading.Barrier(threads)

    def wait(ask, number):
        start.wait(20)
        started = time.perf_counter()
        assert ask(SLEEP, (number,)).rows[0][0] == number
        return time.perf_counter() - started

    def together(ask, number):
        before = database.stats().queries
        waits = list(crowd.map(wait, [ask] * threads, [number] * threads))
        return waits, database.stats().queries - before

    together(database.query, 0)  # opens a database connection for each thread
    say("ready")
    for line in sys.stdin:
        say(together(cache.fetch, json.loads(line)))


def say(what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
