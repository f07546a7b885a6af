"""No reader that starts after an invalidation has returned sees an older value, whatever fails.

Each test plays a race of readers and writers for `RACE_SECONDS` (0.8 s; set it to play for longer).
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from workshop_lib.cache.cached import cached
from workshop_lib.cache.codec import Entry
from workshop_lib.cache.mechanism import Mechanism
from workshop_lib.cache.policy import Policy
from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache
from workshop_lib.cache.storage import Storage
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.rows import Rows
from workshop_lib.services.engines import Valkey

RACE_S = float(os.environ.get("RACE_SECONDS", "0.8"))
READERS = 4
BACK_S = 20.0
"""How long a writer goes on trying to reach the cache."""


class Versions:
    """A database with one growing number per kind of cache; reading takes a moment."""

    identity = "versions"

    def __init__(self) -> None:
        self.committed: Counter[str] = Counter()

    def query(self, statement: str, params: Any = None, *, read_only: bool = False) -> Rows:
        del statement, read_only
        value = self.committed[params[0]]
        time.sleep(random.random() * 0.004)
        return Rows(("id", "v"), [(params[0], value)], 0.0)


class HeldOpen(Storage):
    """A storage that answers late: what was stored can be invalidated before its loader knows."""

    def complete(self, *arguments: Any) -> bool:
        done = super().complete(*arguments)
        time.sleep(random.random() * 0.004)
        return done


class Side:
    """What one process has: caches of every kind over the same server and database."""

    def __init__(self, parts: Any, database: Versions, valkey: Any, storage: type) -> None:
        source = parts(database, valkey, "race")
        queries = QueryCache(source, ttl=60)
        records = RecordCache(source, "thing", ttl=60)
        loads = Mechanism(storage(valkey, 1_000), Policy(ttl=60))
        function = cached(source, ttl=60, name="v")(
            lambda kind: database.query("", (kind,)).rows[0][1]
        )

        def load() -> Entry:
            rows = database.query("", ("mechanism",))
            return Entry(rows.columns, rows.rows, 0.0, time.time())

        self.read: dict[str, Callable[[], int]] = {
            "query": lambda: queries.fetch("SELECT v", ("query",)).rows[0][1],
            "tag": lambda: queries.fetch("SELECT v", ("tag",), tags=["t", "u"]).rows[0][1],
            "record": lambda: records.get("record")["v"],
            "fields": lambda: records.get_fields("fields", ["v"])["v"],
            "many": lambda: records.get_many(["many", "record"])["many"]["v"],
            "put": lambda: records.get("put")["v"],
            "function": lambda: function("function"),
            "mechanism": lambda: loads.fetch("race:v3:x:1", load).entry.rows[0][1],
        }
        self.tell: dict[str, Callable[[int], Any]] = {
            "query": lambda _: queries.invalidate("SELECT v", ("query",)),
            "tag": lambda _: queries.invalidate_tag("t"),
            "record": lambda _: records.invalidate("record"),
            "fields": lambda v: records.update("fields", v=v),
            "many": lambda _: records.invalidate("many"),
            "put": lambda v: records.put("put", {"id": "put", "v": v}),
            "function": lambda _: function.invalidate("function"),
            "mechanism": lambda _: loads.invalidate("race:v3:x:1"),
        }


def race(sides: list[Side], database: Versions, trouble: Callable[[], None]) -> Counter[str]:
    """Let readers and one writer per kind run, with trouble; returns how many reads there were."""
    end, told, reads = time.monotonic() + RACE_S, Counter[str](), Counter[str]()
    old: list[tuple[str, int, int]] = []

    def goes_on() -> bool:
        """For the time that was chosen; on a busy machine, until everybody has had a turn."""
        late = time.monotonic() - end
        told_all = all(told[kind] > 0 for kind in sides[0].tell)
        return late < 0 or (
            late < 30 and not (told_all and all(reads[kind] for kind in sides[0].read))
        )

    def write(kind: str) -> None:
        while goes_on():
            database.committed[kind] += 1
            value = database.committed[kind]
            give_up = time.monotonic() + BACK_S
            while True:
                try:
                    random.choice(sides).tell[kind](value)
                    break
                except ServiceUnreachableError:
                    assert time.monotonic() < give_up
                    time.sleep(0.01)
            told[kind] = value
            time.sleep(random.random() * 0.01)

    def read(number: int) -> None:
        side, kinds = sides[number % len(sides)], list(sides[0].read)
        while goes_on():
            kind = random.choice(kinds)
            floor = told[kind]
            value = side.read[kind]()
            reads[kind] += 1
            if value < floor:
                old.append((kind, floor, value))

    def disturb() -> None:
        while goes_on():
            trouble()

    with ThreadPoolExecutor(64) as pool:
        jobs = [pool.submit(write, kind) for kind in sides[0].tell]
        jobs += [pool.submit(read, n) for n in range(READERS * len(sides))]
        jobs.append(pool.submit(disturb))
        for job in jobs:
            job.result()
    assert old == []
    assert all(told[kind] > 0 for kind in sides[0].tell)
    return reads


@pytest.fixture
def client(engine: Valkey) -> Iterator[Callable[[], redis.Redis]]:
    made: list[redis.Redis] = []

    def make() -> redis.Redis:
        made.append(
            redis.Redis(
                port=engine.port,
                password=engine.folder.secrets()["valkey"],
                socket_timeout=0.05,
                socket_connect_timeout=0.05,
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def well(engine: Valkey, _: redis.Redis) -> None:
    del engine
    time.sleep(0.05)


def paused(engine: Valkey, _: redis.Redis) -> None:
    os.kill(engine.process.pid, signal.SIGSTOP)
    time.sleep(random.random() * 0.15)
    os.kill(engine.process.pid, signal.SIGCONT)
    time.sleep(random.random() * 0.2)


def dropping(_: Valkey, server: redis.Redis) -> None:
    with suppress(redis.RedisError):
        server.client_kill_filter(_type="normal", skipme=True)
    time.sleep(random.random() * 0.01)


def full(_: Valkey, server: redis.Redis) -> None:
    with suppress(redis.RedisError):
        server.config_set("maxmemory", random.choice(["1kb", "64mb"]))
    time.sleep(random.random() * 0.05)


def gone(engine: Valkey, _: redis.Redis) -> None:
    engine.process.kill()
    engine.stop()
    time.sleep(random.random() * 0.1)
    engine.start(engine.port)
    time.sleep(random.random() * 0.3)


TROUBLES = (well, paused, dropping, full, gone)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
def test_after_an_invalidation_no_reader_sees_an_older_value(engine, client, parts, rest, trouble):
    rest(0.02)
    database, server = Versions(), client()
    sides = [Side(parts, database, client(), HeldOpen) for _ in range(2)]
    reads = race(sides, database, lambda: trouble(engine, server))
    assert all(reads[kind] > 0 for kind in sides[0].read)
    print(f"{sum(reads.values()):,} reads checked")  # noqa: T201 -- for who has it run for long


def test_a_reader_who_comes_between_storing_and_landing_sees_what_was_invalidated_then(ws):
    """The moment in which a loader has stored, and the threads of its process do not know yet."""
    stored, go_on, value = threading.Event(), threading.Event(), [1]

    class Held(Storage):
        def complete(self, *arguments: Any) -> bool:
            done = super().complete(*arguments)
            if not stored.is_set():
                stored.set()
                assert go_on.wait(20)
            return done

    cache = Mechanism(Held(ws.valkey, 1_000), Policy(ttl=60))
    key = f"{ws.namespace}:v3:x:1"

    def read() -> object:
        rows: list[tuple[object, ...]] = [(value[0],)]
        return cache.fetch(key, lambda: Entry(("v",), rows, 0.0, 0.0)).entry.rows[0][0]

    with ThreadPoolExecutor(2) as pool:
        loader = pool.submit(read)
        assert stored.wait(20)
        value[0] = 2
        cache.invalidate(key)
        later = pool.submit(read)
        time.sleep(0.05)
        go_on.set()
        assert (loader.result(20), later.result(20)) == (1, 2)
    assert read() == 2
