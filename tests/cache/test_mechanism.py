"""Every way in which caches go wrong under load, under change and under failure; and does not."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from workshop_lib.cache import keys, mechanism
from workshop_lib.cache.cached import cached
from workshop_lib.cache.codec import Entry
from workshop_lib.cache.mechanism import Mechanism
from workshop_lib.cache.object_cache import ObjectCache
from workshop_lib.cache.policy import Policy
from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache
from workshop_lib.cache.single_flight import Flights
from workshop_lib.cache.stats import CacheStats
from workshop_lib.cache.storage import Storage
from workshop_lib.errors import ServiceUnreachableError

ASK = "SELECT v"
SOON = 20.0
"""Far more than anything here takes, far less than a lock that is forgotten would take, seconds."""


@dataclass
class Door:
    """One of the caches, as a reader and a writer of one value see it."""

    cache: Any
    read: Callable[[], Any]
    key: str
    changes: dict[str, Callable[[object], object]]
    """How a writer tells the cache, after its commit, of the value it wrote."""

    def stats(self) -> CacheStats:
        return self.cache.stats()


def query_door(source: Any, **behaviour: Any) -> Door:
    cache = QueryCache(source, **behaviour)
    return Door(
        cache,
        lambda: cache.fetch(ASK, tags=["things"]).rows[0][1],
        cache.key(ASK),
        {
            "invalidate": lambda _: cache.invalidate(ASK),
            "invalidate_tag": lambda _: cache.invalidate_tag("things"),
        },
    )


def record_door(source: Any, **behaviour: Any) -> Door:
    cache = RecordCache(source, "thing", **behaviour)
    return Door(
        cache,
        lambda: cache.fetch(3).record["v"],
        cache.key(3),
        {
            "invalidate": lambda _: cache.invalidate(3),
            "put": lambda value: cache.put(3, {"id": 3, "v": value}),
            "update": lambda value: cache.update(3, v=value),
        },
    )


def function_door(source: Any, **behaviour: Any) -> Door:
    function = cached(source, **behaviour)(lambda _: source.database.query(ASK).rows[0][1])
    change = {"invalidate": lambda _: function.invalidate(3)}
    return Door(function, lambda: function(3), function.key(3), change)


DOORS = {"query": query_door, "record": record_door, "function": function_door}
WAYS = [
    ("query", "invalidate"),
    ("query", "invalidate_tag"),
    ("record", "put"),
    ("record", "update"),
    ("function", "invalidate"),
]
every_door = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
every_way = pytest.mark.parametrize(("door", "way"), WAYS, ids=lambda part: part)


@pytest.fixture
def keys_left(ws) -> Callable[[], list[str]]:
    return lambda: sorted(key.decode() for key in ws.valkey.scan_iter(f"{ws.namespace}:*"))


@pytest.fixture
def chosen(monkeypatch) -> Callable[..., None]:
    """Decides whether requests are chosen to refresh early, where that is left to chance."""

    def choose(*, always: bool) -> None:
        monkeypatch.setattr(mechanism.random, "random", lambda: 1 - 1e-9 if always else 0.0)

    return choose


@pytest.fixture
def gathered(database, monkeypatch) -> Callable[[int], None]:
    """Lets the database answer only when so many threads wait for one load, or do it."""

    def gather(threads: int) -> None:
        join, arrived = Flights.join, itertools.count(1)

        def counted(*arguments: Any) -> Any:
            joined = join(*arguments)
            if next(arrived) == threads:
                database.answering.set()
            return joined

        database.answering.clear()
        monkeypatch.setattr(Flights, "join", counted)

    return gather


# --- one load for all who ask at once ---


@every_door
def test_fifty_threads_with_one_cold_key_cause_one_load(source, database, at_once, gathered, door):
    database.seconds = 0.05
    through = door(source, lock_seconds=30)
    gathered(50)
    assert at_once(50, through.read) == [1] * 50
    assert database.queries == 1
    stats = through.stats()
    assert (stats.misses, stats.coalesced, stats.hits) == (50, 49, 0)
    assert through.read() == 1
    assert through.stats().hits == 1


@every_door
def test_without_single_flight_they_cause_a_stampede(source, database, at_once, door):
    database.seconds = 0.05
    through = door(source, single_flight=False)
    assert at_once(20, through.read) == [1] * 20
    assert database.queries > 1
    assert through.stats().coalesced == 0


def test_what_one_thread_does_to_its_rows_shows_in_no_other(source, database, at_once, gathered):
    database.value = [1, [2]]
    cache = QueryCache(source)
    gathered(10)
    answers = at_once(10, lambda: cache.fetch(ASK))
    assert database.queries == 1
    for answer in answers:
        assert answer.rows == [(0, [1, [2]])]
        answer.rows[0][1][1].append(3)
        answer.rows.clear()
    assert cache.fetch(ASK).rows == [(0, [1, [2]])]


def test_while_the_cache_is_down_threads_still_share_a_load(
    parts, database, switch, at_once, gathered, rest
):
    rest(60.0)
    cache = QueryCache(parts(database, switch, "nowhere"))
    gathered(20)
    assert [a.rows for a in at_once(20, lambda: cache.fetch(ASK))] == [[(0, 1)]] * 20
    # Those who came before the load began share it; those who came later share the next one.
    assert database.queries <= 2
    assert cache.stats().coalesced == 20 - database.queries


def test_a_load_that_fetches_its_own_key_waits_but_not_for_ever(ws, source):
    cache = Mechanism(Storage(ws.valkey), Policy(ttl=30, lock_seconds=0.1))
    depth = iter([True, False])

    def load() -> Entry:
        if next(depth):
            return cache.fetch(f"{ws.namespace}:self", load).entry
        return an_entry(7)

    started = time.monotonic()
    assert cache.fetch(f"{ws.namespace}:self", load).entry.rows == [(7,)]
    assert time.monotonic() - started < SOON


def an_entry(value: object, cost: float = 0.0) -> Entry:
    return Entry(("v",), [(value,)], cost, 0.0)


WORKER = """
    import json, sys, time
    from concurrent.futures import ThreadPoolExecutor
    from types import SimpleNamespace
    import redis
    from workshop_lib.cache.query_cache import QueryCache
    from workshop_lib.rows import Rows

    told = json.loads(sys.stdin.readline())
    valkey = redis.Redis(**told["valkey"])

    class Counted:
        identity = "counted"

        def query(self, statement, params=None, read_only=False):
            valkey.incr(told["counter"])
            print("loading", flush=True)
            time.sleep(told["seconds"])
            return Rows(("id", "v"), [(0, 1)], told["seconds"])

    cache = QueryCache(
        SimpleNamespace(database=Counted(), valkey=valkey, namespace=told["namespace"]),
        **told["policy"], ttl=30,
    )
    valkey.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(told["threads"]) as pool:
        answers = list(pool.map(lambda _: cache.fetch("SELECT v").rows, range(told["threads"])))
    print(json.dumps([answers, cache.stats().coalesced]), flush=True)
"""


@pytest.fixture
def workers(ws) -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    """Starts processes that are ready to fetch in several threads at the next line they read."""
    started: list[subprocess.Popen[str]] = []

    def start(processes: int, threads: int, seconds: float, **policy: Any) -> list[Any]:
        arguments = ws.endpoints.cache.arguments
        told = {
            "valkey": {name: arguments[name] for name in ("host", "port", "password")},
            "namespace": ws.namespace,
            "counter": f"{ws.namespace}:loads",
            "threads": threads,
            "seconds": seconds,
            "policy": policy,
        }
        for _ in range(processes):
            worker = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            started.append(worker)
            worker.stdin.write(json.dumps(told) + "\n")  # not as an argument: it holds a password
            worker.stdin.flush()
        for worker in started:
            assert worker.stdout.readline() == "ready\n"
        return started

    yield start
    for worker in started:
        worker.kill()
        worker.communicate()


def go(workers: list[subprocess.Popen[str]]) -> None:
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()


# --- loaders that die, fail, hang or are interrupted ---


def test_a_loader_that_hangs_keeps_others_waiting_for_a_while_only(source, database):
    policy = {"lock_seconds": 0.1, "wait_seconds": 0.2, "load_seconds": 0.1}
    cache, stuck = QueryCache(source, **policy), database.answering
    stuck.clear()
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(cache.fetch, ASK)
        assert database.asked.wait(SOON)
        database.answering, database.value = threading.Event(), 2
        database.answering.set()
        started = time.monotonic()
        answers = [cache.fetch(ASK) for _ in range(3)]
        assert time.monotonic() - started < SOON
        assert not hung.done()
        stuck.set()
        assert hung.result(SOON).rows == [(0, 1)]
    assert [a.rows for a in answers] == [[(0, 2)]] * 3
    assert answers[-1].source == "cache"
    assert cache.stats().discarded >= 1
    assert cache.fetch(ASK).rows == [(0, 2)]


def test_what_takes_longer_than_the_lock_lives_is_loaded_once_and_stored(source, database, at_once):
    database.seconds = 0.7
    through = record_door(source, lock_seconds=0.2)
    assert at_once(40, through.read) == [1] * 40
    assert database.queries == 1
    assert through.read() == 1
    assert (through.stats().hits, through.stats().discarded) == (1, 0)


def test_a_load_that_outlives_the_lock_is_one_load_for_three_processes(ws, workers):
    running = workers(3, 8, 1.5, lock_seconds=0.4)
    go(running)
    ends = [json.loads(worker.stdout.read().splitlines()[-1]) for worker in running]
    assert [answers for answers, _ in ends] == [[[[0, 1]]] * 8] * 3
    assert int(ws.valkey.get(f"{ws.namespace}:loads")) == 1
    assert any(ws.valkey.pttl(key) > 0 for key in ws.valkey.scan_iter(f"{ws.namespace}:*:query:*"))


def test_a_loader_that_is_killed_late_is_replaced_once(ws, source, database, workers, at_once):
    (worker,) = workers(1, 1, 60.0, lock_seconds=0.4)
    database.identity, database.seconds = "counted", 0.5
    cache = QueryCache(source, lock_seconds=0.4)
    go([worker])
    assert worker.stdout.readline() == "loading\n"
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(at_once, 40, lambda: cache.fetch(ASK).rows)
        time.sleep(0.9)  # two lives of the lock, which the loader renews
        assert database.queries == 0
        worker.kill()
        assert answers.result(20) == [[(0, 1)]] * 40
    assert database.queries == 1
    assert cache.fetch(ASK).source == "cache"


def test_each_waiting_thread_has_an_error_of_its_own(source, database, at_once, gathered):
    cache = QueryCache(source)
    for _ in range(3):
        database.error = LookupError("no such table", 42)
        gathered(20)
        errors = at_once(20, lambda: cache.fetch(ASK))
        assert len({id(error) for error in errors}) == 20
        assert {(type(e), e.args) for e in errors} == {(LookupError, ("no such table", 42))}
        assert max(len(list(traceback.walk_tb(e.__traceback__))) for e in errors) < 15


@every_door
def test_an_error_of_the_load_reaches_all_who_wait_and_leaves_nothing_behind(
    source, database, at_once, gathered, keys_left, door
):
    database.error = LookupError("no such table")
    through = door(source, lock_seconds=30)
    gathered(20)
    assert [repr(e) for e in at_once(20, through.read)] == ["LookupError('no such table')"] * 20
    assert database.queries == 1
    assert [key for key in keys_left() if ":tag:" not in key] == []
    assert through.stats() == CacheStats()
    database.error, started = None, time.monotonic()
    assert through.read() == 1
    assert time.monotonic() - started < SOON
    assert through.stats().bytes_written > 0


def test_an_interrupt_of_the_loading_thread_concerns_nobody_else(
    ws, source, database, at_once, gathered
):
    cache = Mechanism(Storage(ws.valkey), Policy(ttl=30, lock_seconds=30))
    loads = itertools.count(1)

    def load() -> Entry:
        number = next(loads)
        database.query(ASK)
        if number == 1:
            raise KeyboardInterrupt
        return an_entry(number)

    gathered(6)
    started = time.monotonic()
    ends = at_once(6, lambda: cache.fetch(f"{ws.namespace}:k", load).entry.rows)
    assert time.monotonic() - started < SOON
    interrupted = [end for end in ends if isinstance(end, KeyboardInterrupt)]
    assert (len(interrupted), ends.count([(2,)]), database.queries) == (1, 5, 2)


# --- the race of a slow reader and a writer ---


@contextmanager
def slow_reader(through: Door, database: Any) -> Iterator[None]:
    """A reader that has read the old value when the block begins, and ends after it."""
    database.answering.clear()
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(through.read)
        assert database.asked.wait(SOON)
        try:
            yield
        finally:
            database.answering.set()
        assert reader.result(SOON) == "old"


@every_way
def test_a_slow_reader_cannot_put_an_old_value_back(source, database, door, way):
    through, database.value = DOORS[door](source), "old"
    with slow_reader(through, database):
        database.value = "new"  # the commit
        through.changes[way]("new")
    assert through.stats().discarded == (way != "invalidate_tag")
    assert [through.read() for _ in range(2)] == ["new", "new"]


@pytest.mark.parametrize(("door", "way"), WAYS[1:3])
def test_a_slow_early_refresh_cannot_put_an_old_value_back(source, database, chosen, door, way):
    chosen(always=True)
    through, database.value = DOORS[door](source, early_refresh=1000), "old"
    database.seconds = 0.01
    assert through.read() == "old"
    database.asked.clear()
    with slow_reader(through, database):
        database.value = "new"
        through.changes[way]("new")
    assert through.stats().discarded == (way != "invalidate_tag")
    assert [through.read() for _ in range(2)] == ["new", "new"]


@every_way
def test_a_fetch_after_the_change_is_not_answered_with_a_slow_reader_s_old_value(
    source, database, door, way
):
    through, database.value = DOORS[door](source), "old"
    with ThreadPoolExecutor(1) as pool:
        with slow_reader(through, database):
            database.value = "new"
            through.changes[way]("new")
            later = pool.submit(through.read)
            time.sleep(0.05)  # so that it joins the load under way, where there is one
        assert later.result(SOON) == "new"
    assert through.read() == "new"


# --- tags ---


def test_invalidating_a_tag_invalidates_all_entries_under_it_and_no_others(source, database):
    cache = QueryCache(source)
    for n in range(25):
        cache.fetch(ASK, (n,), tags=["even" if n % 2 == 0 else "odd", "all"])
    cache.fetch(ASK, (99,))
    cache.invalidate_tag("odd")
    assert cache.fetch(ASK, (99,)).source == "cache"
    sources = [cache.fetch(ASK, (n,)).source for n in range(25)]
    assert sources == ["cache", "database"] * 12 + ["cache"]


def test_a_reader_who_names_no_tags_sees_no_invalidated_entry(source, database):
    cache = QueryCache(source)
    cache.fetch(ASK, tags=["a", "b"])
    assert (cache.fetch(ASK).rows[0][1], database.queries) == (1, 1)
    database.value = 2
    cache.invalidate_tag("b")
    assert cache.fetch(ASK).rows[0][1] == 2


def test_a_reader_who_names_a_tag_sees_nothing_that_this_tag_would_not_invalidate(source, database):
    cache = QueryCache(source)
    for value, tags in enumerate([(), ("a",)], start=2):
        cache.fetch(ASK, tags=tags)
        database.value = value
        cache.invalidate_tag("b")
        assert cache.fetch(ASK, tags=["a", "b"]).rows[0][1] == value
        cache.invalidate(ASK)


def test_a_tag_that_was_evicted_makes_misses_and_no_old_answers(ws, source, database):
    cache, tag = QueryCache(source), keys.tag_key(ws.namespace, "t")
    cache.fetch(ASK, tags=["t"])
    ws.valkey.delete(tag)  # as an eviction would
    database.value = 2
    assert [cache.fetch(ASK, tags=["t"]).rows for _ in range(2)] == [[(0, 2)]] * 2
    assert cache.stats().hits == 1


def test_a_tag_outlives_every_entry_under_it(ws, source, database):
    cache, tag = QueryCache(source, ttl=5, stale_if_error=200_000), keys.tag_key(ws.namespace, "t")
    cache.fetch(ASK, tags=["t"])
    QueryCache(source, ttl=0.5).fetch(ASK, (2,), tags=["t"])
    assert ws.valkey.pttl(cache.key(ASK)) > 0
    cache.fetch(ASK, (3,), tags=["t"])
    assert ws.valkey.pttl(cache.key(ASK, (3,))) <= ws.valkey.pttl(tag) + 60_000  # of 200,000 s


def test_where_a_tag_cannot_be_kept_nothing_is_stored_under_it(ws, source, database):
    ws.valkey.lpush(keys.tag_key(ws.namespace, "t"), "not a tag")
    cache = QueryCache(source)
    assert [cache.fetch(ASK, tags=["t"]).source for _ in range(2)] == ["database", "database"]
    assert (cache.stats().hits, cache.stats().misses, cache.stats().corrupt) == (0, 2, 0)


# --- times to live ---


def test_jitter_spreads_the_ends_of_entries_made_together(ws):
    cache = Mechanism(Storage(ws.valkey), Policy(ttl=1000, jitter=0.3))
    names = [f"{ws.namespace}:v3:x:{n}" for n in range(60)]
    for name in names:
        cache.fetch(name, lambda: an_entry(1))
    ends = [ws.valkey.pttl(name) for name in names]
    assert all(700_000 - 20_000 <= end <= 1_000_000 for end in ends)  # up to 20 s may have passed
    assert len(set(ends)) > 50
    assert min(ends) < 850_000 < max(ends)


def test_nothing_has_a_time_to_live_of_its_own(ws):
    cache = Mechanism(Storage(ws.valkey), Policy(ttl=1000, empty_ttl=50))
    cache.fetch(f"{ws.namespace}:v3:x:1", lambda: an_entry(1))
    cache.fetch(f"{ws.namespace}:v3:x:2", lambda: Entry(("v",), [], 0.0, 0.0))
    assert 980_000 < ws.valkey.pttl(f"{ws.namespace}:v3:x:1") <= 1_000_000
    assert 30_000 < ws.valkey.pttl(f"{ws.namespace}:v3:x:2") <= 50_000


@every_door
def test_no_key_of_ours_is_ever_without_a_time_to_live(
    ws, source, database, keys_left, chosen, door
):
    def ends() -> list[int]:
        return [ws.valkey.pttl(key) for key in keys_left()]

    chosen(always=True)
    through, database.value = door(source, early_refresh=1000, stale_if_error=5), "old"
    with slow_reader(through, database):
        assert ends()
        assert all(end > 0 for end in ends())
    database.seconds = 0.01
    for way in through.changes.values():
        through.read()
        way("new")
        through.read()
        through.read()
        assert ends()
        assert all(end > 0 for end in ends())


def test_a_clock_that_jumps_does_not_end_an_entry(source, monkeypatch):
    cache = QueryCache(source)
    cache.fetch(ASK)
    now = time.time()
    for jump in (-1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        assert cache.fetch(ASK).source == "cache"


# --- an old answer rather than none ---


@every_door
def test_where_the_source_fails_an_entry_may_be_served_beyond_its_time(source, database, door):
    through = door(source, ttl=0.03, stale_if_error=60)
    assert through.read() == 1
    time.sleep(0.05)
    database.error, database.value = ConnectionError("gone"), 2
    assert [through.read() for _ in range(2)] == [1, 1]
    stats = through.stats()
    assert (stats.stale, stats.misses, stats.hits, database.queries) == (2, 1, 0, 3)
    assert stats.hit_ratio == 0.0
    database.error = None
    assert through.read() == 2


class Unavailable(Exception):  # noqa: N818
    """An error of a client library, which knows nothing of Python's ConnectionError."""


def test_any_error_of_the_source_is_covered_unless_the_errors_are_named(source, database):
    through = query_door(source, ttl=0.03, stale_if_error=60)
    strict = query_door(source, ttl=0.03, stale_if_error=60, stale_on=(OSError,))
    through.read()
    time.sleep(0.05)
    database.error = Unavailable("gone")
    assert through.read() == 1
    with pytest.raises(Unavailable):
        strict.read()
    assert (through.stats().stale, strict.stats().stale) == (1, 0)


def test_beyond_its_grace_an_entry_covers_nothing(source, database):
    through = query_door(source, ttl=0.02, stale_if_error=0.03)
    through.read()
    time.sleep(0.08)
    database.error = ConnectionError("gone")
    with pytest.raises(ConnectionError):
        through.read()


@every_door
def test_what_was_invalidated_is_not_served_as_stale(source, database, door):
    through = door(source, ttl=30, stale_if_error=60)
    through.read()
    through.changes["invalidate"](2)
    database.error = ConnectionError("gone")
    with pytest.raises(ConnectionError):
        through.read()


def test_a_cache_without_grace_does_not_take_another_s_stale_entry_for_fresh(source, database):
    query_door(source, ttl=0.03, stale_if_error=60).read()
    time.sleep(0.05)
    database.value = 2
    assert query_door(source, ttl=30).read() == 2


def test_many_threads_are_served_stale_after_one_attempt(source, database, at_once, gathered):
    cache = QueryCache(source, ttl=0.03, stale_if_error=60, lock_seconds=30)
    cache.fetch(ASK)
    time.sleep(0.05)
    database.error = ConnectionError("gone")
    gathered(10)
    answers = at_once(10, lambda: cache.fetch(ASK))
    assert [(a.source, a.rows) for a in answers] == [("stale", [(0, 1)])] * 10
    assert len({id(a.rows) for a in answers}) == 10
    stats = cache.stats()
    assert (database.queries, stats.stale, stats.misses, stats.coalesced) == (2, 10, 1, 0)


# --- a new answer before the old one ends ---


@every_door
def test_one_request_refreshes_early_while_others_are_served_the_old_entry(
    source, database, chosen, door
):
    through, database.seconds = door(source, early_refresh=1000), 0.01
    assert through.read() == 1
    chosen(always=True)
    database.value, database.asked = 2, threading.Event()
    database.answering.clear()
    with ThreadPoolExecutor(1) as pool:
        refreshing = pool.submit(through.read)
        assert database.asked.wait(SOON)
        assert [through.read() for _ in range(5)] == [1] * 5
        database.answering.set()
        assert refreshing.result(SOON) == 2
    chosen(always=False)
    assert through.read() == 2
    stats = through.stats()
    assert (database.queries, stats.early, stats.hits, stats.misses) == (2, 1, 7, 1)


@every_door
def test_an_early_refresh_that_fails_serves_the_entry_at_hand(ws, source, database, chosen, door):
    chosen(always=True)
    through, database.seconds = door(source, early_refresh=1000), 0.01
    through.read()
    database.error = LookupError("no such table")
    assert [through.read() for _ in range(2)] == [1, 1]
    assert (through.stats().early, through.stats().hits, database.queries) == (0, 2, 3)
    assert ws.valkey.exists(keys.lock_key(through.key)) == 0


@pytest.mark.parametrize("behaviour", [{}, {"early_refresh": 1000}])
def test_nobody_refreshes_early_unless_asked_to_and_chosen(source, database, chosen, behaviour):
    chosen(always=not behaviour)
    through, database.seconds = query_door(source, **behaviour), 0.02
    assert [through.read() for _ in range(5)] == [1] * 5
    assert (through.stats().early, database.queries) == (0, 1)


# --- a cache server that fails ---


@pytest.fixture(params=["down", "hanging"])
def failing(request, parts, database, rest) -> Any:
    """A source whose cache server is down or says nothing; after a failure it is left alone."""
    rest(60.0)
    kind = request.param
    valkey = request.getfixturevalue("switch" if kind == "down" else "hanging")
    return parts(database, valkey, "nowhere")


def test_a_failing_cache_costs_one_short_wait_and_no_answer(failing, database):
    through, started = query_door(failing, ttl=30), time.monotonic()
    assert [through.read() for _ in range(200)] == [1] * 200
    assert time.monotonic() - started < 10  # two hundred waits of 0.1 s would take twice as long
    stats = through.stats()
    assert (stats.errors, stats.misses, stats.hits, database.queries) == (200, 200, 0, 200)


@every_way
def test_a_writer_is_told_that_the_cache_could_not_be_told(parts, database, switch, door, way):
    through = DOORS[door](parts(database, switch, "nowhere"), ttl=30)
    with pytest.raises(ServiceUnreachableError, match="try again when the cache answers"):
        through.changes[way](2)


@every_way
def test_a_writer_s_change_arrives_even_while_readers_leave_the_cache_alone(
    ws, parts, database, switch, rest, door, way
):
    rest(60.0)
    through = DOORS[door](parts(database, switch, ws.namespace))
    dead, switch.client = switch.client, ws.valkey
    assert through.read() == 1
    switch.client = dead
    assert through.read() == 1  # from the database; from now on the cache rests
    switch.client = ws.valkey
    through.changes[way](2)
    database.value = 2
    assert DOORS[door](parts(database, ws.valkey, ws.namespace)).read() == 2


def test_caching_resumes_when_the_server_is_back(parts, database, rest, engine):
    rest(0.1)
    password, retry = engine.folder.secrets()["valkey"], Retry(NoBackoff(), 1)
    valkey = redis.Redis(port=engine.port, password=password, retry=retry)
    through = query_door(parts(database, valkey, "back"), ttl=30)
    assert [through.read() for _ in range(2)] == [1, 1]
    engine.process.kill()
    engine.stop()
    assert [through.read() for _ in range(3)] == [1, 1, 1]
    assert (database.queries, through.stats().hits) == (4, 1)
    assert through.stats().errors >= 3
    engine.start(engine.port)
    time.sleep(0.15)
    assert [through.read() for _ in range(3)] == [1, 1, 1]
    assert (database.queries, through.stats().hits) == (5, 3)
    valkey.close()


# --- what is too large, foreign or impossible ---


@every_door
def test_what_is_too_large_is_answered_but_not_stored(ws, source, database, keys_left, door):
    database.value = "x" * 1_000
    through = door(source, max_bytes=1_000)
    assert [len(through.read()) for _ in range(2)] == [1_000, 1_000]
    assert ws.valkey.exists(through.key, keys.lock_key(through.key)) == 0
    stats = through.stats()
    assert (stats.too_large, stats.misses, stats.bytes_written, stats.errors) == (2, 2, 0, 0)


def test_a_policy_that_cannot_be_is_refused_by_name():
    never = (float("nan"), float("inf"), "30", True)
    for name, values in {
        **dict.fromkeys(("ttl", "lock_seconds", "empty_ttl"), (0, -1, 0.0001, 1e10, *never)),
        **dict.fromkeys(("jitter", "early_refresh", "stale_if_error"), (-0.1, None, *never)),
        "max_bytes": (-0.1, None, *never),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} is {value!r}; it must be a number"):
                Policy(**{"ttl": 30, name: value})
    for value in (("OSError",), None, (1,), "OSError"):
        with pytest.raises(ValueError, match="stale_on"):
            Policy(ttl=30, stale_on=value)
    for value in ("no", 0, None):
        with pytest.raises(ValueError, match=f"single_flight is {value!r}; .* True or False"):
            Policy(ttl=30, single_flight=value)


def test_a_time_to_live_is_refused_by_the_name_that_it_has_there(ws):
    with pytest.raises(ValueError, match="absent_ttl is 0"):
        RecordCache(ws, "users1", absent_ttl=0)
    with pytest.raises(ValueError, match="missing_ttl is 0"):
        ObjectCache(ws, missing_ttl=0)


def test_what_is_no_workshop_is_refused_with_how_to_write_it(ws):
    for kind, args in {
        QueryCache: (None,),
        RecordCache: ("users1", ws),
        ObjectCache: (ws.valkey,),
    }.items():
        with pytest.raises(TypeError, match=rf"Write {kind.__name__}\(ws, …\)"):
            kind(*args)


# --- what the server is asked ---

OURS = {"GET", "GETRANGE", "SET", "DEL", "UNLINK", "EVAL", "HGETALL", "HMGET", "HSET",
        "HEXISTS", "PEXPIRE", "PTTL", "SCAN", "MULTI", "EXEC"}  # fmt: skip


def keys_in(words: list[str]) -> list[str]:
    """The keys that one command names."""
    name, *rest = words
    if name == "EVAL":
        return rest[2 : 2 + int(rest[1])]
    if name in {"DEL", "UNLINK"}:
        return rest
    return [] if name in {"MULTI", "EXEC", "SCAN"} else rest[:1]


def slots_per_step(heard: list[tuple[str, list[str]]]) -> list[set[int]]:
    """The slots that each command touches, and each transaction as a whole."""
    steps: list[set[int]] = []
    open_: dict[str, set[int]] = {}
    for speaker, words in heard:
        slots = {key_slot(key.encode()) for key in keys_in(words)}
        if words[0] == "MULTI":
            open_[speaker] = set()
        elif words[0] == "EXEC":
            steps.append(open_.pop(speaker))
        elif speaker in open_:
            open_[speaker] |= slots
        else:
            steps.append(slots)
    return steps


def test_nothing_is_asked_of_the_server_that_a_serverless_cluster_refuses(
    ws, source, database, commands, chosen
):
    chosen(always=True)
    database.seconds = 0.001
    doors = [make(source, **behaviour) for make in DOORS.values()
             for behaviour in ({"early_refresh": 1000}, {"single_flight": False})]  # fmt: skip
    with commands() as heard:
        for through in doors:
            for way in through.changes.values():
                through.read()
                way(2)
                through.read()
        people, cache = RecordCache(source, "thing"), QueryCache(source)
        people.get_many(range(5))
        people.get_many(range(5))
        people.get_fields(1, ["v"])
        cache.inspect(ASK)
        cache.clear()
    said = {words[0].upper() for _, words in heard}
    assert said <= OURS
    assert {"GET", "EVAL", "HGETALL", "HMGET", "SCAN", "UNLINK"} <= said
    steps = slots_per_step(heard)
    assert len(steps) > 100
    assert max(map(len, steps)) == 1


def test_a_hit_is_one_round_trip_and_a_miss_three(source, round_trips):
    cache = QueryCache(source)
    cache.fetch(ASK, (1,))  # the server knows the scripts now
    for trips in (3, 1):
        with round_trips() as sent:
            cache.fetch(ASK, (2,))
        assert len(sent) == trips
