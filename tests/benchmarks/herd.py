"""A process of several threads that all ask for the same thing at once, each time it is told to.

Reads one line of JSON about where things are, then one for each crowd: which way to cache, and a
number that makes the question new. Answers each with how long every thread waited, in seconds, and
how many queries that took.
"""

from __future__ import annotations

import json
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import redis
from cachelib import RedisCache
from dogpile.cache import make_region

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
    ways = ways_of(database, valkey, told["namespace"])
    crowd = ThreadPoolExecutor(threads)
    start = threading.Barrier(threads)

    def wait(ask, number):
        start.wait(20)
        started = time.perf_counter()
        assert ask(number)[0][0] == number
        return time.perf_counter() - started

    def together(ask, number):
        before = database.stats().queries
        waits = list(crowd.map(wait, [ask] * threads, [number] * threads))
        return waits, database.stats().queries - before

    together(ways["no cache"], 0)  # opens a database connection for each thread
    say("ready")
    for line in sys.stdin:
        way, number = json.loads(line)
        say(together(ways[way], number))


def say(what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def ways_of(database, valkey, namespace):
    """How to get the answer to question number so-and-so."""
    source = SimpleNamespace(database=database, valkey=valkey, namespace=namespace)
    ours = QueryCache(source, ttl=600)
    shelf = RedisCache(valkey, default_timeout=600, key_prefix=f"{namespace}:cachelib:")

    def load(number):
        return database.query(SLEEP, (number,)).rows

    def region(**arguments):
        arguments["connection_pool"] = valkey.connection_pool
        made = make_region(key_mangler=lambda key: f"{namespace}:dogpile:{key}")
        made.configure("dogpile.cache.redis", expiration_time=600, arguments=arguments)
        return lambda number: made.get_or_create(str(number), lambda: load(number))

    def naive(number):
        key = f"{namespace}:naive:{number}"
        found = valkey.get(key)
        if found is None:
            found = pickle.dumps(load(number))
            valkey.set(key, found, ex=600)
        return pickle.loads(found)  # noqa: S301 -- it is our own

    def cachelib(number):
        found = shelf.get(str(number))
        if found is None:
            found = load(number)
            shelf.set(str(number), found)
        return found

    return {
        "ours": lambda number: ours.fetch(SLEEP, (number,)).rows,
        "no lock": naive,
        "dogpile.cache": region(),
        "dogpile.cache + lock": region(distributed_lock=True, thread_local_lock=False),
        "cachelib": cachelib,
        "no cache": load,
    }


if __name__ == "__main__":
    main()
