"""A cache that failed is left alone, and asked by one request at a time whether it is back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import TimeoutError as Slow

from workshop_lib.cache import breaker
from workshop_lib.cache.breaker import REST_S
from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache

ASK = "SELECT v"


class Silent:
    """A client of a server that does not answer; it counts how often it is asked."""

    def __init__(self) -> None:
        self.asked, self.gate = 0, threading.Event()
        self.gate.set()

    def pipeline(self, **_: Any) -> Any:
        return self.execute_command()

    def execute_command(self, *_: Any) -> Any:
        self.asked += 1
        assert self.gate.wait(20)
        raise Slow("silent")


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The time as circuit breakers see it: it moves only when a test moves it."""
    clock = SimpleNamespace(now=1_000.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr(breaker, "time", fake)
    return clock


def query_reader(source: Any) -> Callable[[], Any]:
    cache = QueryCache(source)
    return lambda: cache.fetch(ASK, tags=["t"]).rows[0][1]


def record_reader(source: Any) -> Callable[[], Any]:
    cache = RecordCache(source, "thing")
    return lambda: cache.get(3)["v"]


def field_reader(source: Any) -> Callable[[], Any]:
    cache = RecordCache(source, "thing")
    return lambda: cache.get_fields(3, ["v"])["v"]


@pytest.mark.parametrize("make", [query_reader, record_reader, field_reader])
def test_however_many_ask_a_failed_cache_is_asked_once_in_each_rest(parts, database, clock, make):
    silent = Silent()
    read = make(parts(database, silent, "nowhere"))
    for tries in range(1, 4):
        assert [read() for _ in range(20)] == [1] * 20
        assert silent.asked == tries
        clock.now += REST_S


def test_threads_that_come_after_the_rest_do_not_all_wait_for_a_silent_cache(
    parts, database, clock, at_once
):
    silent, others = Silent(), list[int]()
    cache = QueryCache(parts(database, silent, "nowhere"), single_flight=False)
    cache.fetch(ASK)
    clock.now += REST_S
    silent.gate.clear()

    def read_or_find_out() -> int:
        others.append(cache.fetch(ASK).rows[0][1])
        if len(others) == 19:  # all but the one that tries have their answer
            silent.gate.set()
        return others[-1]

    assert at_once(20, read_or_find_out) == [1] * 20
    assert silent.asked == 2
    assert cache.stats().errors == 21
