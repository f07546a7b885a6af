"""A sandbox in a learner's hands: alone, broken on purpose, and mended."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import redis

from workshop_lib import Workshop, open_workshop
from workshop_lib.cache import breaker
from workshop_lib.cache.cached import cached
from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache
from workshop_lib.errors import ServiceUnreachableError, WorkshopError
from workshop_lib.namespaces import wipe_namespace
from workshop_lib.sandbox import Sandbox
from workshop_lib.services.processes import wait_until
from workshop_lib.settings import load_settings

TIMEOUT_S = 0.5
"""How long the sandbox's clients wait for an answer of the cache, seconds."""
SOON = 30.0
ASK = "SELECT v FROM thing WHERE id = %s"


@pytest.fixture(scope="module", autouse=True)
def nothing_left(drill) -> Iterator[None]:
    """Sandboxes stay open from test to test: what is left is looked for after the last."""
    with drill():
        yield


@pytest.fixture(scope="module")
def workshops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Workshop]]:
    """Opens workshops with a namespace of their own."""
    with ExitStack() as stack:

        def one(name: str) -> Workshop:
            workshop = open_workshop(
                name,
                workshop_namespace=f"test_{secrets.token_hex(4)}",
                workshop_result_file=tmp_path_factory.mktemp("result") / "sandboxes.json",
                dsql_pool_min=2,
                dsql_pool_timeout=60.0,
            )
            stack.callback(wipe_namespace, workshop.namespace)
            return stack.enter_context(closing(workshop))

        yield one


@pytest.fixture(scope="module")
def own(workshops) -> Workshop:
    """A workshop with the sandbox that most tests share."""
    return workshops("sandboxes")


@pytest.fixture(scope="module")
def shared_box(own) -> Sandbox:
    box = own.sandbox(caches=2, cache_timeout_s=TIMEOUT_S)
    box.database.query("CREATE TABLE thing (id int PRIMARY KEY, v int)")
    box.database.query("INSERT INTO thing VALUES (1, 7)")
    return box


@pytest.fixture
def box(shared_box) -> Iterator[Sandbox]:
    """The sandbox, all of it running, its caches empty, and one thing with the value 7."""
    shared_box.database.query("UPDATE thing SET v = 7 WHERE id = 1")
    for valkey in shared_box.valkeys:
        valkey.flushall()
    yield shared_box
    shared_box.thaw_cache()
    shared_box.start("cache")
    shared_box.start("database")


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The time as circuit breakers see it: it moves only when a test moves it."""
    clock = SimpleNamespace(now=1_000.0)
    monkeypatch.setattr(breaker, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def is_gone(box: Sandbox) -> bool:
    """Whether none of its caches answers any more, after a while at most."""
    return wait_until(lambda: not any(map(answers, box.valkeys)), SOON)


def answers(valkey: redis.Redis) -> bool:
    try:
        return bool(valkey.ping())
    except redis.RedisError:
        return False


# --- alone ---


def test_what_is_configured_and_written_in_it_does_not_touch_the_workshop(own, box):
    before = own.valkey.config_get("maxmemory*")
    box.valkey.config_set("maxmemory", "9mb")
    box.valkey.config_set("maxmemory-policy", "allkeys-lfu")
    box.valkey.set(f"{own.namespace}:k", "v")
    assert own.valkey.config_get("maxmemory*") == before
    assert own.valkey.exists(f"{own.namespace}:k") == 0
    assert "thing" not in own.tables.index
    for act in (box.stop, box.stop, box.start, box.start):  # twice is harmless
        act("cache")
    assert box.valkey.config_get("maxmemory*") == before


def test_it_may_have_many_caches_and_no_database_and_then_says_how_to_have_one(own):
    with closing(Sandbox(own.settings, database=False, caches=3, cache_timeout_s=0.25)) as box:
        for number, valkey in enumerate(box.valkeys):
            valkey.set("k", number)
            assert valkey.get_connection_kwargs()["socket_timeout"] == 0.25
        assert [valkey.get("k") for valkey in box.valkeys] == [b"0", b"1", b"2"]
        double = cached(box, ttl=60)(lambda number: 2 * number)
        assert [double(21), double(21)] == [42, 42]
        for act in (lambda: box.load_table("planet"), lambda: box.stop("database")):
            with pytest.raises(
                WorkshopError, match=r"has no database.* ws\.sandbox\(database=True"
            ):
                act()
        with pytest.raises(WorkshopError, match=r"no service 's3'.* 'cache' or 'database'"):
            box.stop("s3")


def test_it_is_local_also_where_the_workshop_runs_on_aws():
    on_aws = load_settings(
        aws_region="us-east-1",
        dsql_endpoint="abcdefghij.dsql.us-east-1.on.aws",
        valkey_endpoint="mine.serverless.use1.cache.amazonaws.com",
    )
    with closing(Sandbox(on_aws.values, database=False)) as box:
        assert box.valkey.ping() is True
        assert box.valkey.get_connection_kwargs()["host"] == "127.0.0.1"


def test_the_result_file_names_its_services_and_no_secret(own, box):
    services = own.result.services
    assert list(services) == ["database", "cache", "store", "sandbox cache", "sandbox database"]
    found = {kind: services[f"sandbox {kind}"] for kind in ("cache", "database")}
    assert found["cache"]["label"] == "local Valkey, this notebook's own"
    assert found["cache"]["version"] == f"Valkey {box.valkey.info('server')['valkey_version']}"
    assert found["database"]["version"].startswith("PostgreSQL 16.")
    assert {one["embedded"] for one in found.values()} == {True}
    text = json.dumps(own.result.to_json()) + own._repr_html_() + repr(box)
    assert box.cache_arguments[0]["password"] not in text


def test_clearing_it_empties_all_its_caches_and_begins_their_statistics_anew(box):
    for valkey in box.valkeys:
        valkey.set(f"{box.namespace}:k", "v")
        valkey.get(f"{box.namespace}:k")
    assert (box.clear(), box.clear()) == (2, 0)
    found = [(valkey.dbsize(), valkey.info("stats")["keyspace_hits"]) for valkey in box.valkeys]
    assert found == [(0, 0), (0, 0)]


# --- stop, start ---


def test_a_database_that_was_stopped_has_what_was_committed_at_the_same_address(box):
    before = box.database.endpoint.address
    box.database.query("UPDATE thing SET v = 8 WHERE id = 1")
    box.stop("database")
    with pytest.raises(ServiceUnreachableError, match="run the cell that opens the sandbox again"):
        box.database.query(ASK, (1,))
    box.start("database")
    with box.database.connection() as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE thing SET v = 9 WHERE id = 1")
        box.stop("database")
        box.start("database")
    assert box.database.query(ASK, (1,))[0] == (8,)
    assert box.database.endpoint.address == before


def test_a_silent_database_is_given_up_and_used_again_when_it_answers(box):
    asked = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
    server = psutil.Process(box.database.query(asked)[0][0]).parent()
    halted = [server, *server.children(recursive=True)]
    answers = []
    ask = threading.Thread(target=lambda: answers.append(box.database.query(ASK, (1,)).rows))
    for process in halted:
        process.suspend()
    try:
        ask.start()  # on a connection that was open before: it waits for the answer
        with pytest.raises(ServiceUnreachableError, match="timeout expired"):
            box.database.connect()
    finally:
        for process in halted:
            process.resume()
    ask.join(SOON)
    assert answers == [[(7,)]]


def test_a_cache_that_was_stopped_or_frozen_is_missed_alone_and_comes_back(box):
    box.valkey.set("k", "v")
    box.valkeys[1].set("k", "second")
    box.freeze_cache()
    with pytest.raises(redis.TimeoutError):
        box.valkey.get("k")
    assert box.valkeys[1].get("k") == b"second"
    box.thaw_cache()
    assert box.valkey.get("k") == b"v"
    box.stop("cache")
    with pytest.raises(redis.ConnectionError):
        box.valkey.ping()
    assert box.valkeys[1].get("k") == b"second"
    box.start("cache")
    assert box.valkey.get("k") is None


# --- caches through all that ---


def query_reader(box: Sandbox, **behaviour: Any) -> tuple[Any, Callable[[], int]]:
    cache = QueryCache(box, **behaviour)
    return cache, lambda: cache.fetch(ASK, (1,)).rows[0][0]


def record_reader(box: Sandbox, **behaviour: Any) -> tuple[Any, Callable[[], int]]:
    cache = RecordCache(box, "thing", **behaviour)
    return cache, lambda: cache.get(1)["v"]


def function_reader(box: Sandbox, **behaviour: Any) -> tuple[Any, Callable[[], int]]:
    function = cached(box, **behaviour)(lambda n: box.database.query(ASK, (n,))[0][0])
    return function, lambda: function(1)


READERS = {"query": query_reader, "record": record_reader, "function": function_reader}
every_reader = pytest.mark.parametrize("make", READERS.values(), ids=READERS)


@pytest.mark.parametrize("trouble", ["stop", "freeze"])
@every_reader
def test_without_its_cache_the_database_answers_and_then_caching_resumes(box, clock, make, trouble):
    cache, read = make(box, ttl=60)
    assert [read(), read()] == [7, 7]
    box.stop("cache") if trouble == "stop" else box.freeze_cache()
    started = time.monotonic()
    assert [read() for _ in range(40)] == [7] * 40
    # Forty waits for a frozen cache would take twenty seconds.
    assert time.monotonic() - started < 20 * TIMEOUT_S
    assert (cache.stats().hits, cache.stats().errors) == (1, 40)
    box.thaw_cache()
    box.start("cache")
    clock.now += breaker.REST_S
    assert [read() for _ in range(3)] == [7] * 3
    assert cache.stats().hits == 4 - (trouble == "stop")
    assert cache.stats().errors == 40


@every_reader
def test_without_its_database_old_answers_serve_and_where_there_are_none_that_is_said(box, make):
    cache, read = make(box, ttl=0.05, stale_if_error=60)
    assert read() == 7
    box.database.query("UPDATE thing SET v = 8 WHERE id = 1")
    box.stop("database")
    assert wait_until(lambda: read() == 7 and cache.stats().stale > 2, SOON)
    assert cache.stats().misses == 1
    box.valkey.flushall()
    with pytest.raises(ServiceUnreachableError):  # at once: the pool's patience is 60 s
        read()
    box.start("database")
    assert read() == 8


def test_readers_at_work_through_every_trouble_of_the_cache_get_right_answers_only(
    box, monkeypatch
):
    monkeypatch.setattr(breaker, "REST_S", 0.05)
    readers = [make(box, ttl=60) for make in READERS.values()]
    enough = threading.Event()

    def go_on(read: Callable[[], int]) -> set[int]:
        return {read() for _ in iter(enough.is_set, True)}

    def each_counts(what: str) -> None:
        for cache, _ in readers:
            before = getattr(cache.stats(), what)
            assert wait_until(lambda c=cache, n=before: getattr(c.stats(), what) > n, SOON)

    with ThreadPoolExecutor(3) as threads:
        found = [threads.submit(go_on, read) for _, read in readers]
        try:
            for trouble, remedy in (
                (lambda: box.stop("cache"), lambda: box.start("cache")),
                (box.freeze_cache, box.thaw_cache),
            ):
                trouble()
                each_counts("errors")
                remedy()
                each_counts("hits")
        finally:
            enough.set()
    assert [one.result() for one in found] == [{7}] * 3


# --- its end ---


def test_a_new_one_ends_the_one_before_which_says_so_and_closing_the_workshop_the_last(
    workshops, box
):
    workshop = workshops("sandboxes, one after another")
    first, second = workshop.sandbox(), workshop.sandbox()
    assert is_gone(first)
    assert (second.valkey.ping(), box.valkey.ping()) == (True, True)
    first.close()
    for act in (lambda: first.stop("database"), lambda: first.start("cache"), first.freeze_cache):
        with pytest.raises(WorkshopError, match=r"This sandbox is closed.* Run the cell"):
            act()
    with pytest.raises(ServiceUnreachableError):
        first.database.query("SELECT 1")
    second.freeze_cache()
    second.stop("database")
    workshop.close()
    assert is_gone(second)


# --- what cannot be ---


@pytest.mark.parametrize(
    "wrong",
    [{"caches": 0}, {"caches": 17}, {"cache_timeout_s": 0}, {"cache_timeout_s": float("nan")}],
    ids=str,
)
def test_an_argument_out_of_range_is_refused_by_name_and_leaves_the_last_one_open(own, box, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} is {value}; it must be "):
        own.sandbox(**wrong)
    assert own._sandbox is box
    assert box.valkey.ping() is True
