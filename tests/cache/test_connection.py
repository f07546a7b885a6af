"""A kept connection gives each caller its own answers, whatever happens between two commands."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from workshop_lib.cache.connection import ask
from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache
from workshop_lib.services.processes import wait_until

NEVER = Retry(NoBackoff(), 0)


@pytest.fixture
def client(ws) -> Iterator[Callable[..., redis.Redis]]:
    """Makes clients that never try again of themselves, under a name by which the server knows."""
    made: list[redis.Redis] = []

    def make(**more: Any) -> redis.Redis:
        arguments = {**ws.endpoints.cache.arguments, "client_name": ws.namespace, "retry": NEVER}
        made.append(redis.Redis(**{**arguments, **more}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def open_connections(ws) -> int:
    return sum(one["name"] == ws.namespace for one in ws.valkey.client_list())


def session(client: redis.Redis) -> int:
    return ask(client, ("CLIENT", "ID"))[0]


def test_commands_use_one_connection_and_an_error_is_one_of_the_answers(ws, client):
    one, key = client(), f"{ws.namespace}:list"
    assert session(one) == session(one)
    answers = ask(one, ("RPUSH", key, "x"), ("GET", key), ("ECHO", "after"), ("DEL", key))
    assert answers[::2] == [1, b"after"]
    assert isinstance(answers[1], redis.ResponseError)
    assert session(one) == session(one)
    assert open_connections(ws) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a destructor
def test_after_an_interrupt_at_any_line_each_caller_gets_its_own_answers(ws, client):
    one = client()
    ask(one, ("PING",))

    def interrupted_at(line: int) -> bool:
        lines = itertools.count(1)

        def trace(*_: Any) -> Any:
            if next(lines) == line:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            ask(one, ("ECHO", "first"), ("ECHO", "second"))
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        return next(lines) > line  # also if a destructor swallowed it

    for line in itertools.count(1):
        interrupted = interrupted_at(line)
        assert ask(one, ("ECHO", str(line)), ("ECHO", "x")) == [str(line).encode(), b"x"]
        if not interrupted:
            break
    assert line > 50


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_a_connection_that_was_closed_while_idle_costs_no_answer(engine, engine_client, how):
    one = engine_client(5)
    before = session(one)
    if how == "killed":
        one.client_kill_filter(_id=before, skipme=True)
    else:
        engine.process.kill()
        engine.stop()
        engine.start(engine.port)
    assert ask(one, ("ECHO", "x"), ("ECHO", "y")) == [b"x", b"y"]
    assert ask(one, ("ECHO", "z")) == [b"z"]


def test_silence_is_waited_for_once_and_its_late_answer_is_dropped(
    engine, engine_client, round_trips
):
    one = engine_client(0.3)
    ask(one, ("PING",))
    os.kill(engine.process.pid, signal.SIGSTOP)
    try:
        with round_trips() as sent, pytest.raises(redis.TimeoutError):
            ask(one, ("ECHO", "late"))
        assert len(sent) == 1
    finally:
        os.kill(engine.process.pid, signal.SIGCONT)
    time.sleep(0.05)
    one.connection_pool.set_retry(Retry(NoBackoff(), 20))  # while it wakes
    assert ask(one, ("ECHO", "next")) == [b"next"]


def test_a_thousand_threads_leave_few_connections_and_a_client_that_is_closed_none(ws, client):
    one = client()

    def echo(number: int) -> None:
        for n in range(number, number + 3):
            assert ask(one, ("ECHO", str(n))) == [str(n).encode()]

    for wave in range(0, 1_000, 40):
        with ThreadPoolExecutor(40) as threads:
            list(threads.map(echo, range(wave, wave + 40)))
    assert 1 <= open_connections(ws) <= 80
    assert threading.active_count() < 100
    silent = client()
    ask(silent, ("PING",))
    before = open_connections(ws)
    silent.close()
    assert wait_until(lambda: open_connections(ws) < before, 20)


def test_a_pool_of_one_connection_is_left_to_the_client(ws, client):
    one = client(max_connections=1)
    for n in range(3):
        assert ask(one, ("ECHO", str(n))) == [str(n).encode()]
        assert one.echo("x") == b"x"


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_cache_works_by_either_protocol(parts, database, ws, client, protocol):
    source = parts(database, client(protocol=protocol), ws.namespace)
    queries, records = QueryCache(source), RecordCache(source, "thing")
    for _ in range(2):
        assert queries.fetch("SELECT v", tags=["t"]).rows == [(0, 1)]
        assert records.get(3) == records.get_many([3, 4])[3] == {"id": 3, "v": 1}
    assert records.get_fields(3, ["v"]) == {"v": 1}
    assert (queries.stats().hits, queries.stats().corrupt, records.stats().corrupt) == (1, 0, 0)
