"""What holds for every cache: under load, under change and under failure."""

from __future__ import annotations

import itertools
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
from redis.crc import key_slot
from redis.exceptions import TimeoutError as Slow

from tests.cache.doors import ASK, DOORS, Door, every_door, every_way, query_door
from workshop_lib.cache import breaker, keys, mechanism
from workshop_lib.cache.cached import cached
from workshop_lib.cache.object_cache import ObjectCache
from workshop_lib.cache.policy import Policy
from workshop_lib.cache.query_cache import QueryCache, clear_namespace
from workshop_lib.cache.record_cache import RecordCache
from workshop_lib.cache.single_flight import Flights
from workshop_lib.errors import ServiceUnreachableError

SOON = 20.0
"""Far more than anything here takes, far less than a lock that is forgotten would take, seconds."""


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


@pytest.fixture(autouse=True)
def first_value(database) -> None:
    database.value = "old"


# --- one load for all who ask at once ---


@pytest.mark.parametrize("door", [d for n, d in DOORS.items() if n != "many"])
def test_fifty_threads_with_one_cold_key_cause_one_load(source, database, at_once, gathered, door):
    database.seconds = 0.05
    through = door(source, lock_seconds=30)
    gathered(50)
    assert at_once(50, through.read) == ["old"] * 50
    assert database.queries == 1
    stats = through.stats()
    assert (stats.misses, stats.coalesced, stats.hits) == (50, 49, 0)
    assert through.read() == "old"
    assert through.stats().hits == 1


def test_what_one_thread_does_to_its_rows_shows_in_no_other(source, database, at_once, gathered):
    database.value = [1, [2]]
    cache = QueryCache(source)
    gathered(10)
    for answer in at_once(10, lambda: cache.fetch(ASK)):
        assert answer.rows == [(0, [1, [2]])]
        answer.rows[0][1][1].append(3)
        answer.rows.clear()
    assert cache.fetch(ASK).rows == [(0, [1, [2]])]
    assert database.queries == 1


def test_what_cannot_be_stored_is_loaded_by_each_thread_for_itself(
    source, database, at_once, gathered
):
    database.value = {1}
    cache = QueryCache(source)
    gathered(10)
    answers = at_once(10, lambda: cache.fetch(ASK).rows[0][1])
    assert answers == [{1}] * 10
    assert database.queries == 10


def test_a_load_that_fetches_its_own_key_does_not_wait_for_itself(source):
    depth = iter([True, False])

    @cached(source)
    def function() -> int:
        return function() if next(depth) else 7

    started = time.monotonic()
    assert function() == 7
    assert time.monotonic() - started < SOON


# --- loaders that die, fail, hang or are interrupted ---


def test_a_loader_that_hangs_keeps_others_waiting_for_a_while_only(source, database):
    cache = QueryCache(source, lock_seconds=0.1, wait_seconds=0.2, load_seconds=0.1)
    stuck = database.answering
    stuck.clear()
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(cache.fetch, ASK)
        assert database.asked.wait(SOON)
        database.answering, database.value = threading.Event(), "new"
        database.answering.set()
        answers = [cache.fetch(ASK) for _ in range(3)]
        assert not hung.done()
        stuck.set()
        assert hung.result(SOON).rows == [(0, "old")]
    assert [a.rows for a in answers] == [[(0, "new")]] * 3
    assert answers[-1].source == "cache"
    assert cache.stats().discarded >= 1
    assert cache.fetch(ASK).rows == [(0, "new")]


@every_door
def test_what_takes_longer_than_the_lock_lives_is_loaded_once_and_stored(
    source, database, at_once, door
):
    database.seconds = 1.6
    doors = [door(source, lock_seconds=1.0) for _ in range(3)]  # each knows its own threads
    turns = itertools.cycle(doors)
    assert at_once(30, lambda: next(turns).read()) == ["old"] * 30
    assert database.queries == 1
    assert [through.read() for through in doors] == ["old"] * 3
    assert [through.stats().discarded for through in doors] == [0] * 3


def test_a_loader_that_was_killed_is_replaced_once_when_its_lock_ends(
    ws, source, database, at_once
):
    through = query_door(source)
    ws.valkey.set(keys.lock_key(through.key), "of the dead", px=400)
    assert at_once(20, through.read) == ["old"] * 20
    assert (database.queries, through.read(), through.stats().hits) == (1, "old", 1)


@pytest.mark.parametrize("plant", ["no end", "a far one", "no text"])
@every_door
def test_a_lock_that_is_none_of_ours_holds_nobody_up_for_longer_than_a_load(
    ws, source, database, door, plant
):
    through = door(source, lock_seconds=0.1, load_seconds=0.2)
    lock = keys.lock_key(through.key)
    if plant == "no text":
        ws.valkey.rpush(lock, "theirs")
    else:
        ws.valkey.set(lock, "theirs", px=None if plant == "no end" else 900_000)
    assert [through.read() for _ in range(3)] == ["old"] * 3
    # Had it waited for `wait_seconds`, it would not have stored what it loaded.
    assert (database.queries, through.stats().hits, ws.valkey.exists(lock)) == (1, 2, 0)


def test_without_single_flight_each_request_loads_and_stores_and_no_thread_renews_a_lock(
    source, database, at_once
):
    before = set(threading.enumerate())
    through = query_door(source, single_flight=False)
    database.seconds = 0.2
    assert at_once(5, through.read) == ["old"] * 5
    assert database.queries == 5
    assert through.read() == "old"
    assert (through.stats().hits, through.stats().coalesced) == (1, 0)
    assert not {one.name for one in set(threading.enumerate()) - before} & {"lock renewal"}


def test_each_waiting_thread_has_an_error_of_its_own(source, database, at_once, gathered):
    cache = QueryCache(source)
    database.error = LookupError("no such table", 42)
    for _ in range(3):
        gathered(20)
        errors = at_once(20, lambda: cache.fetch(ASK))
        assert len({id(error) for error in errors}) == 20
        assert {(type(e), e.args) for e in errors} == {(LookupError, ("no such table", 42))}
        assert max(len(list(traceback.walk_tb(e.__traceback__))) for e in errors) < 15


class NotFoundError(Exception):
    """Makes a text of its argument, so that making it again from `args` says everything twice."""

    def __init__(self, key: int) -> None:
        super().__init__(f"user {key} not found")
        self.key = key


class CodedError(Exception):
    """Has an argument that is not in `args`."""

    def __init__(self, code: int, text: str = "unknown") -> None:
        super().__init__(text)
        self.code = code


class SlottedError(Exception):
    """Has a part outside of its dict."""

    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class UniqueError(Exception):
    """Refuses to be made in another way than its own."""

    def __new__(cls, *, code: int) -> UniqueError:
        return super().__new__(cls, code)

    def __init__(self, *, code: int) -> None:
        self.code = code


@pytest.mark.parametrize(
    "make",
    [
        lambda: NotFoundError(5),
        lambda: CodedError(7, "no such code"),
        lambda: SlottedError(7),
        lambda: UniqueError(code=7),
        lambda: FileNotFoundError(2, "no such file", "a.txt"),
        lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        lambda: ImportError("no module", name="m"),
        lambda: ExceptionGroup("both", [KeyError(1), ValueError("x")]),
    ],
)
def test_a_waiting_thread_has_the_error_with_its_text_and_details(source, at_once, gathered, make):
    def details(error: BaseException) -> list[object]:
        names = ("key", "code", "errno", "filename", "reason", "name", "__notes__")
        parts = [getattr(error, name, None) for name in names]
        return [type(error), repr(error), str(error), repr(error.args), *parts]

    def function() -> None:
        source.database.query(ASK)
        error = make()
        error.add_note("a note")
        raise error from LookupError("why")

    gathered(6)
    errors = at_once(6, cached(source, lock_seconds=30)(function))
    expected = make()
    expected.add_note("a note")
    assert [details(error) for error in errors] == [details(expected)] * 6
    # A twin's cause is the original, which has a cause of its own.
    causes = {repr(error.__cause__.__cause__ or error.__cause__) for error in errors}
    assert causes == {"LookupError('why')"}


def test_a_waiting_thread_has_what_the_database_said_of_its_error(ws, source, at_once, gathered):
    def function() -> None:
        source.database.query(ASK)
        ws.database.query("SELECT 'x'::int")

    twin = cached(source, lock_seconds=30)(function)
    for _ in range(3):
        gathered(20)
        errors = at_once(20, twin)
        said = {(type(e), e.diag.message_primary, e.pgcode) for e in errors}
        text = 'invalid input syntax for type integer: "x"'
        assert said == {(psycopg2.errors.InvalidTextRepresentation, text, "22P02")}
        assert max(len(list(traceback.walk_tb(e.__traceback__))) for e in errors) < 40


def test_an_interrupt_of_the_loading_thread_concerns_no_other(source, database, at_once, gathered):
    loads = itertools.count(1)

    @cached(source, lock_seconds=30)
    def function() -> int:
        number = next(loads)
        database.query(ASK)
        if number == 1:
            raise KeyboardInterrupt
        return number

    gathered(6)
    ends = at_once(6, function)
    interrupted = [end for end in ends if isinstance(end, KeyboardInterrupt)]
    assert (len(interrupted), ends.count(2), database.queries) == (1, 5, 2)


@every_door
def test_an_error_of_the_source_reaches_the_caller_and_is_not_kept(ws, source, database, door):
    through = door(source)
    database.error = LookupError("no such table")
    for _ in range(2):
        with pytest.raises(LookupError, match="no such table"):
            through.read()
    assert database.queries == 2
    assert ws.valkey.exists(through.key, keys.lock_key(through.key)) == 0


# --- the race of a slow reader and a writer ---


@contextmanager
def slow_reader(through: Door, database: Any) -> Iterator[None]:
    """A reader that has read the old value when the block begins, and ends after it."""
    database.asked.clear()
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
@pytest.mark.parametrize("early", [False, True], ids=["miss", "early refresh"])
def test_a_slow_reader_cannot_put_an_old_value_back(source, database, chosen, door, way, early):
    early = early and door != "many"
    through = DOORS[door](source, early_refresh=1000 if early else 0)
    if early:
        chosen(always=True)
        database.seconds = 0.01
        assert through.read() == "old"
    with ThreadPoolExecutor(1) as pool:
        with slow_reader(through, database):
            database.value = "new"  # the commit
            through.changes[way]("new")
            later = pool.submit(through.read)
            time.sleep(0.05)  # so that it joins the load under way, where there is one
        assert later.result(SOON) == "new"
    assert [through.read() for _ in range(2)] == ["new", "new"]


# --- times to live ---


def test_an_entry_lives_as_long_as_its_policy_says(ws, source):
    records = RecordCache(source, "thing", ttl=1000, jitter=0.3)
    records.get_many(range(60))
    ends = [ws.valkey.pttl(records.key(n)) for n in range(60)]
    assert all(700_000 - 20_000 <= end <= 1_000_000 for end in ends)  # up to 20 s may have passed
    assert len(set(ends)) > 50
    assert min(ends) < 850_000 < max(ends)


@every_door
def test_no_key_of_ours_is_ever_without_a_time_to_live(ws, source, database, chosen, door):
    def ends() -> list[int]:
        return [ws.valkey.pttl(key) for key in ws.valkey.scan_iter(f"{ws.namespace}:*")]

    chosen(always=True)
    through = door(source, early_refresh=1000, stale_if_error=5)
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


@every_door
def test_a_clock_that_jumps_does_not_end_an_entry(source, database, monkeypatch, door):
    through, now = door(source), time.time()
    through.read()
    for jump in (-1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        assert through.read() == "old"
    assert database.queries == 1


# --- an old answer rather than none ---


@every_door
def test_where_the_source_fails_an_entry_may_be_served_beyond_its_time(source, database, door):
    through = door(source, ttl=0.03, stale_if_error=60)
    assert through.read() == "old"
    time.sleep(0.05)
    database.error, database.value = ConnectionError("gone"), "new"
    assert [through.read() for _ in range(2)] == ["old", "old"]
    stats = through.stats()
    assert (stats.stale, stats.misses, stats.hits, database.queries) == (2, 1, 0, 3)
    assert stats.hit_ratio == 0.0
    database.error = None
    assert through.read() == "new"
    through.changes["invalidate"]("new")
    database.error = ConnectionError("gone")
    with pytest.raises(ConnectionError):  # what was invalidated is not served as stale
        through.read()


def test_any_error_of_the_source_is_covered_unless_the_errors_are_named(source, database):
    through = query_door(source, ttl=0.03, stale_if_error=60)
    strict = query_door(source, ttl=0.03, stale_if_error=60, stale_on=(OSError,))
    through.read()
    time.sleep(0.05)
    database.error = LookupError("of a client library")
    assert through.read() == "old"
    with pytest.raises(LookupError):
        strict.read()
    assert (through.stats().stale, strict.stats().stale) == (1, 0)


@every_door
def test_beyond_its_grace_an_entry_covers_nothing(source, database, door):
    through = door(source, ttl=0.02, stale_if_error=0.03)
    through.read()
    time.sleep(0.08)
    database.error = ConnectionError("gone")
    with pytest.raises(ConnectionError):
        through.read()


# --- a new answer before the old one ends ---


@pytest.mark.parametrize("door", [d for n, d in DOORS.items() if n != "many"])
def test_one_request_refreshes_early_while_others_are_served_the_old_entry(
    source, database, chosen, door
):
    through, database.seconds = door(source, early_refresh=1000), 0.01
    assert through.read() == "old"
    chosen(always=True)
    database.value, database.asked = "new", threading.Event()
    database.answering.clear()
    with ThreadPoolExecutor(1) as pool:
        refreshing = pool.submit(through.read)
        assert database.asked.wait(SOON)
        assert [through.read() for _ in range(5)] == ["old"] * 5
        database.answering.set()
        assert refreshing.result(SOON) == "new"
    chosen(always=False)
    assert through.read() == "new"
    stats = through.stats()
    assert (database.queries, stats.early, stats.hits, stats.misses) == (2, 1, 7, 1)


# --- a cache server that fails ---


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The time as circuit breakers see it: it moves only when a test moves it."""
    clock = SimpleNamespace(now=1_000.0)
    monkeypatch.setattr(breaker, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Silent:
    """A client of a server that does not answer; it counts how often it is asked."""

    def __init__(self) -> None:
        self.asked, self.gate = 0, threading.Event()
        self.gate.set()

    def pipeline(self, **_: Any) -> Any:
        self.asked += 1
        assert self.gate.wait(SOON)
        raise Slow("silent")


@every_door
def test_however_many_ask_a_failed_cache_is_asked_once_in_each_rest(parts, database, clock, door):
    silent = Silent()
    through = door(parts(database, silent, "nowhere"))
    for tries in range(1, 4):
        assert [through.read() for _ in range(20)] == ["old"] * 20
        assert silent.asked == tries
        clock.now += breaker.REST_S
    assert through.stats().errors == 60


def test_threads_that_come_after_the_rest_do_not_all_wait_for_a_silent_cache(
    parts, database, clock, at_once
):
    silent, others = Silent(), list[str]()
    through = query_door(parts(database, silent, "nowhere"), single_flight=False)
    through.read()
    clock.now += breaker.REST_S
    silent.gate.clear()

    def read_or_find_out() -> str:
        others.append(through.read())
        if len(others) == 19:  # all but the one that tries have their answer
            silent.gate.set()
        return others[-1]

    assert at_once(20, read_or_find_out) == ["old"] * 20
    assert silent.asked == 2


def test_while_the_cache_is_down_threads_still_share_a_load(
    parts, database, switch, at_once, gathered, rest
):
    rest(60.0)
    through = query_door(parts(database, switch, "nowhere"))
    gathered(20)
    assert at_once(20, through.read) == ["old"] * 20
    # Those who came before the load began share it; those who came later share the next one.
    assert database.queries <= 2
    assert through.stats().coalesced == 20 - database.queries


@every_way
def test_a_writer_is_told_that_the_cache_could_not_be_told(parts, database, switch, door, way):
    through = DOORS[door](parts(database, switch, "nowhere"), ttl=30)
    with pytest.raises(ServiceUnreachableError, match="try again when the cache answers"):
        through.changes[way]("new")


@every_way
def test_a_writer_s_change_arrives_even_while_readers_leave_the_cache_alone(
    ws, parts, database, switch, rest, door, way
):
    rest(60.0)
    through = DOORS[door](parts(database, switch, ws.namespace))
    dead, switch.client = switch.client, ws.valkey
    assert through.read() == "old"
    switch.client = dead
    assert through.read() == "old"  # from the database; from now on the cache rests
    switch.client = ws.valkey
    through.changes[way]("new")
    database.value = "new"
    assert DOORS[door](parts(database, ws.valkey, ws.namespace)).read() == "new"


# --- what is too large, foreign or impossible ---


@every_door
def test_what_is_too_large_is_answered_but_not_stored(ws, source, database, door):
    database.value = "".join(map(str, range(1_000)))
    through = door(source, max_bytes=1_000)
    assert [through.read() for _ in range(2)] == [database.value] * 2
    assert ws.valkey.exists(through.key, keys.lock_key(through.key)) == 0
    stats = through.stats()
    assert (stats.too_large, stats.misses, stats.bytes_written, stats.errors) == (2, 2, 0, 0)


SPOILS: dict[str, Callable[[Any, str], object]] = {
    "garbage": lambda valkey, key: valkey.set(key, b"\x00garbage", px=5_000),
    "a list": lambda valkey, key: (valkey.delete(key), valkey.rpush(key, "x")),
    "a hash": lambda valkey, key: (valkey.delete(key), valkey.hset(key, "x", "y")),
    "a long text": lambda valkey, key: valkey.set(key, bytes(2_000_000), px=5_000),
}


@every_door
@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_what_another_program_wrote_is_a_miss_and_is_overwritten(ws, source, database, door, spoil):
    through = door(source)
    through.read()
    spoil(ws.valkey, through.key)
    assert [through.read() for _ in range(2)] == ["old"] * 2
    assert ws.valkey.pttl(through.key) > 0
    stats = through.stats()
    assert (stats.corrupt, stats.errors, stats.misses, stats.hits) == (1, 0, 2, 1)
    assert database.queries == 2


NEVER = (float("nan"), float("inf"), "30", True)
IMPOSSIBLE = [
    *((name, bad) for name in ("ttl", "lock_seconds", "empty_ttl")
      for bad in (0, -1, 0.0001, 1e10, *NEVER)),
    *((name, bad) for name in ("jitter", "early_refresh", "stale_if_error", "max_bytes")
      for bad in (-0.1, None, *NEVER)),
    *(("stale_on", bad) for bad in (("OSError",), None, (1,), "OSError")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE)
def test_a_policy_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}.* is {re.escape(repr(value))}; it must be "):
        Policy(**{"ttl": 30, name: value})


@pytest.mark.parametrize(
    ("kind", "args"),
    [(QueryCache, (None,)), (RecordCache, ("users1", "ws")), (ObjectCache, (3,))],
)
def test_what_is_no_workshop_is_refused_with_how_to_write_it(kind, args):
    with pytest.raises(TypeError, match=rf"Write {kind.__name__}\(ws, …\)"):
        kind(*args)


# --- what the server is asked ---


def test_no_command_touches_keys_in_two_slots_of_a_cluster(ws, source, commands):
    with commands() as heard:
        for through in (make(source) for make in DOORS.values()):
            for way in through.changes.values():
                through.read()
                way("new")
                through.read()
        RecordCache(source, "thing").get_many(range(5))
        clear_namespace(source.valkey, source.namespace)
    steps = [words for _, words in heard if words[0] != "SCAN"]
    assert {"GETRANGE", "HGETALL", "EVAL", "DEL", "UNLINK"} <= {words[0] for words in steps}
    for words in steps:
        ours = [word for word in words if word.startswith(f"{ws.namespace}:")]
        assert len({key_slot(key.encode()) for key in ours}) == 1, words


@every_door
def test_a_hit_is_one_round_trip_and_a_miss_three(source, round_trips, door):
    through = door(source)
    for trips in (3, 1):
        with round_trips() as sent:
            through.read()
        assert len(sent) == trips
