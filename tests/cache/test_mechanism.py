"""Every way in which caches go wrong under load, under change and under failure; and does not."""

from __future__ import annotations

import itertools
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from redis.crc import key_slot

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
    doors = [record_door(source, lock_seconds=0.2) for _ in range(3)]  # each knows its own threads
    turns = itertools.cycle(doors)
    assert at_once(30, lambda: next(turns).read()) == [1] * 30
    assert database.queries == 1
    assert [through.read() for through in doors] == [1] * 3
    assert [through.stats().discarded for through in doors] == [0] * 3


def test_a_loader_that_was_killed_is_replaced_once_when_its_lock_ends(
    ws, source, database, at_once
):
    through = query_door(source)
    ws.valkey.set(keys.lock_key(through.key), "of the dead", px=400)
    assert at_once(20, through.read) == [1] * 20
    assert (database.queries, through.read(), through.stats().hits) == (1, 1, 1)


def test_where_no_lock_is_taken_no_thread_renews_any(source):
    before = set(threading.enumerate())
    assert query_door(source, single_flight=False).read() == 1
    assert set(threading.enumerate()) <= before


def test_each_waiting_thread_has_an_error_of_its_own(source, database, at_once, gathered):
    cache = QueryCache(source)
    for _ in range(3):
        database.error = LookupError("no such table", 42)
        gathered(20)
        errors = at_once(20, lambda: cache.fetch(ASK))
        assert len({id(error) for error in errors}) == 20
        assert {(type(e), e.args) for e in errors} == {(LookupError, ("no such table", 42))}
        assert max(len(list(traceback.walk_tb(e.__traceback__))) for e in errors) < 15


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


# --- a cache server that fails ---


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


def test_no_command_touches_keys_in_two_slots_of_a_cluster(ws, source, commands):
    with commands() as heard:
        for through in (make(source) for make in DOORS.values()):
            for way in through.changes.values():
                through.read()
                way(2)
                through.read()
        RecordCache(source, "thing").get_many(range(5))
        QueryCache(source).clear()
    steps = [words for _, words in heard if words[0] != "SCAN"]
    assert {"GETRANGE", "HGETALL", "EVAL", "DEL", "UNLINK"} <= {words[0] for words in steps}
    for words in steps:
        ours = [word for word in words if word.startswith(f"{ws.namespace}:")]
        assert len({key_slot(key.encode()) for key in ours}) == 1, words


def test_a_hit_is_one_round_trip_and_a_miss_three(source, round_trips):
    cache = QueryCache(source)
    cache.fetch(ASK, (1,))  # the server knows the scripts now
    for trips in (3, 1):
        with round_trips() as sent:
            cache.fetch(ASK, (2,))
        assert len(sent) == trips
