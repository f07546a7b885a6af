"""A cache that failed is left alone, and asked by one request at a time whether it is back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as Slow
from redis.retry import Retry

from workshop_lib.cache import breaker
from workshop_lib.cache.breaker import REST_S
from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache

ASK = "SELECT v"


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The time as circuit breakers see it: it moves only when a test moves it."""
    clock = SimpleNamespace(now=1_000.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr(breaker, "time", fake)
    return clock


class Failing(redis.Redis):
    """A client that counts what it is asked, and answers with an error while it has one."""

    error: Exception | None = None
    asked = 0
    gate: threading.Event | None = None

    def execute_command(self, *words: Any, **options: Any) -> Any:
        self._be_asked()
        return super().execute_command(*words, **options)

    def pipeline(self, *how: Any, **options: Any) -> Any:
        pipeline = super().pipeline(*how, **options)
        execute = pipeline.execute

        def count_and_execute(*how: Any, **options: Any) -> Any:
            self._be_asked()
            return execute(*how, **options)

        pipeline.execute = count_and_execute
        return pipeline

    def _be_asked(self) -> None:
        self.asked += 1
        if self.gate is not None:
            assert self.gate.wait(20)
        if self.error is not None:
            raise self.error


@pytest.fixture
def valkey(ws) -> Any:
    arguments = {**ws.endpoints.cache.arguments, "retry": Retry(NoBackoff(), 0)}
    client = Failing(**arguments)
    yield client
    client.close()


@pytest.fixture
def ours(ws, parts, database, valkey) -> Any:
    return parts(database, valkey, ws.namespace)


def query_reader(source: Any) -> tuple[Any, Callable[[], Any]]:
    cache = QueryCache(source, single_flight=False)
    return cache, lambda: cache.fetch(ASK).rows[0][1]


def locking_reader(source: Any) -> tuple[Any, Callable[[], Any]]:
    cache = QueryCache(source)
    return cache, lambda: cache.fetch(ASK, tags=["t"]).rows[0][1]


def record_reader(source: Any) -> tuple[Any, Callable[[], Any]]:
    cache = RecordCache(source, "thing")
    return cache, lambda: cache.get(3)["v"]


def field_reader(source: Any) -> tuple[Any, Callable[[], Any]]:
    cache = RecordCache(source, "thing")
    return cache, lambda: cache.get_fields(3, ["v"])["v"]


READERS = {
    "query, with lock and tag": locking_reader,
    "record": record_reader,
    "fields": field_reader,
}
every_reader = pytest.mark.parametrize("make", READERS.values(), ids=READERS)


@every_reader
def test_however_many_ask_a_failed_cache_is_asked_once_in_each_rest(ours, valkey, clock, make):
    _, read = make(ours)
    valkey.error = Slow("silent")
    for tries in range(1, 4):
        assert [read() for _ in range(20)] == [1] * 20
        assert valkey.asked == tries
        clock.now += REST_S


def test_threads_that_come_after_the_rest_do_not_all_wait_for_a_silent_cache(
    ours, valkey, clock, at_once
):
    cache, read = query_reader(ours)
    valkey.error = Slow("silent")
    assert read() == 1
    clock.now += REST_S
    valkey.asked, valkey.gate = 0, threading.Event()

    def read_or_find_out() -> int:
        answer = read()
        others.append(answer)
        if len(others) == 19:  # all but the one that tries have their answer
            valkey.gate.set()
        return answer

    others: list[int] = []
    assert at_once(20, read_or_find_out) == [1] * 20
    assert valkey.asked == 1
    assert cache.stats().errors == 21
