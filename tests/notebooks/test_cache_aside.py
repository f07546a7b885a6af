"""cache_aside.py, which learners take home, on the real engines: no fault is swallowed unseen."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import psycopg2
import pytest
import redis
from psycopg2.extras import Json

from tests.notebooks.test_take_home import load

TYPED = """
SELECT 1, 1.50::numeric, 'text', DATE '2026-11-30', TIMESTAMPTZ '2026-11-30 12:00+02', true, NULL,
       0.1::float8
"""
GONE = redis.Redis(unix_socket_path="/nowhere/valkey.sock")


@pytest.fixture
def taken():
    """The module, loaded afresh: its counters are at zero."""
    return load("cache_aside")


@pytest.fixture
def connect(ws):
    made = []

    def connect():
        connection = psycopg2.connect(**ws.database_arguments(direct=True))
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        made.append(connection)
        return connection

    yield connect
    for connection in made:
        connection.close()


@pytest.fixture
def place(ws):
    """A client of the cache, and a prefix for this test's keys."""
    valkey, prefix = redis.Redis(**ws.cache_arguments()), f"{ws.namespace}:taken"
    yield valkey, prefix
    for key in valkey.scan_iter(match=f"{prefix}*"):
        valkey.delete(key)


@pytest.fixture(params=["fetch", "fetch_once"])
def fetch(request, taken, place, connect):
    """Either of the two, called with a statement and its parameters alone."""
    valkey, prefix = place
    connection = connect()

    def fetch(sql, params=None, valkey=valkey):
        return getattr(taken, request.param)(valkey, connection, sql, params, prefix=prefix)

    fetch.name = request.param
    return fetch


def test_a_hit_cannot_be_told_from_a_miss(taken, fetch):
    first, second = fetch(TYPED), fetch(TYPED)
    assert first == second
    assert list(map(type, first[0])) == list(map(type, second[0]))
    assert taken.counts == {"misses": 1, "hits": 1}


def test_each_question_has_an_answer_of_its_own(taken, fetch):
    for value in (7, "7", 8):
        assert fetch("SELECT %s", (value,)) == [(value,)]
    assert fetch("SELECT %(a)s, %(b)s", {"a": 1, "b": 2}) == [(1, 2)]
    assert fetch("SELECT %(a)s, %(b)s", {"b": 2, "a": 1}) == [(1, 2)]
    assert taken.counts == {"misses": 4, "hits": 1}


@pytest.mark.parametrize(
    "make", [Json, lambda n: memoryview(bytes([n])), lambda n: np.full(2_000, n)]
)
def test_what_two_parameters_do_not_tell_apart_is_refused(taken, fetch, make):
    for value in (1, 2):
        with pytest.raises(TypeError, match="cannot be cached yet"):
            fetch("SELECT %s", (make(value),))
    assert taken.counts == {}


def test_an_empty_answer_is_kept(taken, fetch):
    assert [fetch("SELECT 1 WHERE false") for _ in range(2)] == [[], []]
    assert taken.counts == {"misses": 1, "hits": 1}


@pytest.mark.parametrize("found", ["not JSON", b"\xff", "[[{}]]", '[[{"Decimal": "x"}]]', "1"])
def test_what_cannot_be_read_is_loaded_and_replaced(taken, fetch, place, found):
    valkey, prefix = place
    valkey.set(taken.cache_key("SELECT 5", None, prefix), found)
    assert [fetch("SELECT 5") for _ in range(2)] == [[(5,)], [(5,)]]
    looks = 1 if fetch.name == "fetch" else 2
    assert taken.counts == {"misses": 1, "hits": 1, "faults": looks}


def test_a_cache_that_is_not_there_and_a_type_that_it_cannot_hold_cost_no_answer(taken, fetch):
    assert fetch("SELECT 5", valkey=GONE) == [(5,)]
    assert bytes(fetch(r"SELECT '\x00ff'::bytea")[0][0]) == b"\x00\xff"
    assert taken.counts["hits"] == 0
    assert taken.counts["faults"] >= 2
    assert taken.counts[
        "not kept: a memoryview cannot be cached yet: add how to read it to READERS"
    ]


def test_an_error_of_the_database_and_a_write_reach_the_caller(taken, fetch):
    for sql in ("SELECT 1 / 0", "CREATE TABLE no (id INT)", "SELECT 1; DELETE FROM users1"):
        with pytest.raises(psycopg2.Error):
            fetch(sql)
    assert taken.counts["misses"] == 0


def test_all_who_ask_at_once_share_one_query(taken, place, connect):
    valkey, prefix = place
    connections = [connect() for _ in range(8)]

    def ask(connection):
        question = "SELECT 1 FROM pg_sleep(0.2)"
        return taken.fetch_once(valkey, connection, question, prefix=prefix, patience=30)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, connections)) == [[(1,)]] * 8
    assert taken.counts == {"misses": 1, "hits": 7}


@pytest.mark.parametrize("sql", ["SELECT 1 / 0", r"SELECT '\x00'::bytea"])
def test_an_answer_that_cannot_be_kept_leaves_no_lease_to_wait_for(taken, place, connect, sql):
    valkey, prefix = place
    with suppress(psycopg2.Error):
        taken.fetch_once(valkey, connect(), sql, prefix=prefix)
    assert taken.take_lease(valkey, taken.cache_key(sql, None, prefix))


@pytest.mark.parametrize("ttl", [0, -1, 0.0001, float("inf"), float("nan"), "30"])
def test_a_ttl_that_no_entry_can_have_leaves_no_lease_to_wait_for(taken, place, connect, ttl):
    valkey, prefix = place
    assert taken.fetch_once(valkey, connect(), "SELECT 7", ttl=ttl, prefix=prefix) == [(7,)]
    assert taken.take_lease(valkey, taken.cache_key("SELECT 7", None, prefix))
    assert taken.counts["faults"] == 1


def test_a_spread_ttl_is_one_that_an_entry_can_have(taken, place, connect):
    valkey, prefix = place
    for fetch in (taken.fetch, taken.fetch_once):
        fetch(valkey, connect(), "SELECT 7", ttl=taken.spread(60, 0.5), prefix=prefix)
        key = taken.cache_key("SELECT 7", None, prefix)
        assert 20_000 < valkey.pttl(key) <= 60_000
        valkey.delete(key)
    assert taken.counts == {"misses": 2}


def test_invalidating_takes_the_lease_of_a_late_reader(taken, place):
    valkey, prefix = place
    key = taken.cache_key("SELECT salary", None, prefix)
    token = taken.take_lease(valkey, key)
    assert taken.take_lease(valkey, key) is None
    taken.forget(valkey, key)
    assert not taken.keep_if_mine(valkey, key, token, [(1,)], 30)
    token = taken.take_lease(valkey, key)
    assert taken.keep_if_mine(valkey, key, token, [(2,)], 30)
    assert taken.read(valkey, key) == [(2,)]
    assert 0 < valkey.pttl(key) <= 30_000
    assert valkey.exists(f"{key}:lease") == 0


def test_waiting_for_a_lease_whose_owner_died_has_an_end(taken, place, connect):
    valkey, prefix = place
    key = taken.cache_key("SELECT 6", None, prefix)
    taken.take_lease(valkey, key)
    found = taken.fetch_once(valkey, connect(), "SELECT 6", prefix=prefix, patience=0.05)
    assert (found, taken.read(valkey, key)) == ([(6,)], None)


def test_a_spread_ttl_is_at_most_what_was_promised(taken):
    found = [taken.spread(60, 0.5) for _ in range(1_000)]
    assert 30 <= min(found) < 33
    assert 57 < max(found) <= 60
