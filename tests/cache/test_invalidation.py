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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
import redis

from tests.cache.doors import DOORS, WAYS, Door, fields_door
from workshop_lib.cache.storage import Storage
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.services.engines import Valkey

RACE_S = float(os.environ.get("RACE_SECONDS", "0.8"))
READERS = 4
BACK_S = 20.0
"""How long a writer goes on trying to reach the cache."""


def doors(source: Any) -> dict[str, Door]:
    """What one process has: for every way to tell a cache, a value of its own."""
    made = {f"{door} {way}": (DOORS[door], way) for door, way in WAYS}
    made["fields update"] = fields_door, "update"
    return {kind: open_(source, n, ttl=60) for n, (kind, (open_, _)) in enumerate(made.items())}


def race(sides: list[dict[str, Door]], database: Any, trouble: Callable[[], None]) -> Counter[str]:
    """Let readers and one writer per kind run, with trouble; returns how many reads there were."""
    end, reads = time.monotonic() + RACE_S, Counter[str]()
    told = dict.fromkeys(sides[0], "")
    commits, committing = count(1), threading.Lock()
    old: list[tuple[str, str, str]] = []

    def goes_on() -> bool:
        """For the time that was chosen; on a busy machine, until everybody has had a turn."""
        late = time.monotonic() - end
        all_had_a_turn = all(told[kind] and reads[kind] for kind in told)
        return late < 0 or (late < 30 and not all_had_a_turn)

    def write(kind: str) -> None:
        while goes_on():
            with committing:
                value = database.value = f"{next(commits):09d}"
            give_up = time.monotonic() + BACK_S
            while True:
                try:
                    random.choice(sides)[kind].changes[kind.split()[1]](value)
                    break
                except ServiceUnreachableError:
                    assert time.monotonic() < give_up
                    time.sleep(0.01)
            told[kind] = value
            time.sleep(random.random() * 0.01)

    def read(number: int) -> None:
        side = sides[number % len(sides)]
        while goes_on():
            kind = random.choice(list(side))
            floor = told[kind]
            value = side[kind].read()
            reads[kind] += 1
            if value < floor:
                old.append((kind, floor, value))

    def disturb() -> None:
        while goes_on():
            trouble()

    with ThreadPoolExecutor(64) as pool:
        jobs = [pool.submit(write, kind) for kind in told]
        jobs += [pool.submit(read, n) for n in range(READERS * len(sides))]
        jobs.append(pool.submit(disturb))
        for job in jobs:
            job.result()
    assert old == []
    assert all(told.values())
    return reads


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
def test_after_an_invalidation_no_reader_sees_an_older_value(
    engine, engine_client, parts, database, rest, trouble
):
    rest(0.02)
    database.value, database.seconds, server = "", 0.002, engine_client(0.05)
    sides = [doors(parts(database, engine_client(0.05), "race")) for _ in range(2)]
    reads = race(sides, database, lambda: trouble(engine, server))
    assert all(reads[kind] for kind in sides[0])
    print(f"{sum(reads.values()):,} reads checked")  # noqa: T201 -- for who has it run for long


def test_a_reader_who_comes_between_storing_and_landing_sees_what_was_invalidated_then(
    source, database, monkeypatch
):
    """The moment in which a loader has stored, and the threads of its process do not know yet."""
    stored, go_on, complete = threading.Event(), threading.Event(), Storage.complete

    def held(*arguments: Any) -> Any:
        done = complete(*arguments)
        if not stored.is_set():
            stored.set()
            assert go_on.wait(20)
        return done

    monkeypatch.setattr(Storage, "complete", held)
    through = DOORS["query"](source)
    with ThreadPoolExecutor(2) as pool:
        loader = pool.submit(through.read)
        assert stored.wait(20)
        database.value = 2
        through.changes["invalidate"](2)
        later = pool.submit(through.read)
        time.sleep(0.05)
        go_on.set()
        assert (loader.result(20), later.result(20)) == (1, 2)
    assert through.read() == 2
