"""Emulated latencies in a learner's hands: real engines, and clients that were made before."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

import workshop_lib
from workshop_lib import Workshop, open_workshop
from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.services.processes import wait_until

SOON_S = 30.0
FAR = 0.05
"""Much more than a question takes where no latency is added, seconds."""
NONE = {"database": 0.0, "cache": 0.0, "store": 0.0}
ASK = "SELECT name FROM planet WHERE id = 3"


@pytest.fixture(scope="module")
def workshops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Workshop]]:
    """Opens workshops, each with its own namespace; in the end no proxy is left."""
    opened: list[Workshop] = []

    def one(name: str) -> Workshop:
        settings = {
            "workshop_namespace": f"test_{secrets.token_hex(4)}",
            "workshop_result_file": tmp_path_factory.mktemp("result") / f"{name}.json",
        }
        opened.append(open_workshop(name, dsql_pool_min=2, **settings))
        return opened[-1]

    yield one
    for workshop in opened:
        workshop.wipe()
        workshop.close()
    assert proxies() == []


@pytest.fixture(scope="module")
def opened(workshops: Callable[..., Workshop]) -> Workshop:
    workshop = workshops("latencies")
    workshop.load_table("planet")
    workshop.objects.put("a", b"1")
    return workshop


@pytest.fixture
def own(opened: Workshop) -> Iterator[Workshop]:
    """A workshop with planets and an object, an empty cache, and no latency."""
    opened.clear_cache()
    yield opened
    opened.set_latency(**NONE)


def proxies() -> list[psutil.Process]:
    """The latency proxies that this process has running."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if "workshop_lib.services.latency_proxy" in child.cmdline():
                found.append(child)
    return found


def is_far(action: Callable[[], object]) -> bool:
    """Whether it takes the latency each time; a busy machine makes a near one late now and then."""

    def took() -> float:
        started = time.monotonic()
        action()
        return time.monotonic() - started

    return all(took() >= FAR for _ in range(10))


def far_ones(ws: Workshop) -> list[str]:
    """The services whose every answer takes the latency. Each question is one round trip."""
    questions = {
        "database": lambda: ws.database.query("SELECT 1"),
        "cache": ws.valkey.ping,
        "store": lambda: ws.s3.head_bucket(Bucket=ws.bucket),
    }
    return [service for service, ask in questions.items() if is_far(ask)]


def bars() -> Any:
    return workshop_lib.plots.bars(
        {"cache": [1.0, 2.0]}, ["p50", "p95"], "A title", "percentile", "time (µs)"
    )


def notes_of(figure: Any) -> list[str]:
    return [line for text in figure.texts for line in text.get_text().splitlines()]


def test_the_service_that_was_named_takes_the_latency_and_no_other(own, workshops):
    for service in NONE:
        own.set_latency(**{service: FAR})
        assert own.latencies == {**NONE, service: FAR}
        assert far_ones(own) == [service]
        own.set_latency(**{service: 0})
        assert far_ones(own) == []
    running, ws = proxies(), workshops("fresh")
    with ws.at_latency(database=0):
        ws.set_latency(database=0, cache=0.0, store=0)
    assert (proxies(), ws.latencies, ws.result.latencies) == (running, NONE, [])


def test_after_the_block_what_was_before_is_in_force_also_after_an_error(own):
    def fail() -> None:
        with own.at_latency(database=0.003):
            with own.at_latency(cache=0, store=0.001):
                own.set_latency(database=0.02)
                assert own.latencies == {"database": 0.02, "cache": 0.0, "store": 0.001}
            assert own.latencies == {"database": 0.003, "cache": FAR, "store": 0.0}
            raise KeyboardInterrupt

    own.set_latency(cache=FAR)
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert own.latencies == {**NONE, "cache": FAR}
    assert far_ones(own) == ["cache"]


def test_what_cannot_be_set_is_refused_and_changes_nothing(own):
    own.set_latency(cache=0.002)
    running = len(proxies())
    with pytest.raises(ValueError, match=r"latency of the store is 5; .* 0\.005 for 5 ms"):
        own.set_latency(database=0.01, cache=0.01, store=5)
    with pytest.raises(ValueError, match="latency of the store is -1"):
        own.at_latency(database=0.003, store=-1).__enter__()
    assert (own.latencies, len(proxies())) == ({**NONE, "cache": 0.002}, running)


def test_your_own_connection_goes_the_way_that_was_in_force_when_it_was_made(own):
    own.set_latency(database=FAR)
    connection = own.database.connect()
    with connection, connection.cursor() as cursor:
        assert is_far(lambda: cursor.execute("SELECT 1"))
        own.set_latency(database=0)
        assert not is_far(lambda: cursor.execute("SELECT 1"))
    connection.close()


@pytest.mark.parametrize(("before", "after"), [(0, FAR), (FAR, 0)])
def test_connections_in_use_during_the_change_work_on_and_are_not_put_back(own, before, after):
    number = "SELECT pg_backend_pid()"
    own.set_latency(database=before, cache=before)
    with (
        own.database.connection() as connection,
        connection.cursor() as cursor,
        own.valkey.pipeline() as pipeline,
    ):
        cursor.execute(number)
        (backend,) = cursor.fetchone()
        cursor.execute("BEGIN")
        pipeline.watch(f"{own.namespace}:k")
        client = pipeline.client_id()
        own.set_latency(database=after, cache=after)
        cursor.execute(ASK)
        assert cursor.fetchone() == ("Earth",)
        cursor.execute("COMMIT")
        pipeline.multi()
        pipeline.set(f"{own.namespace}:k", "v")
        assert pipeline.execute() == [True]
    assert connection.closed
    assert own.database.query(number)[0][0] != backend
    assert own.valkey.client_id() != client
    assert wait_until(lambda: own.valkey.client_list(client_id=[client]) == [], SOON_S)


def test_threads_that_ask_while_it_changes_get_right_answers_and_no_error(own):
    queries, done = QueryCache(own, ttl=0.05), []

    def ask(worker: int) -> int:
        asked = 0
        while not done:
            assert own.database.query(ASK).rows == [("Earth",)]
            assert queries.fetch(ASK).rows == [("Earth",)]
            assert own.valkey.echo(f"{worker}") == b"%d" % worker
            assert own.objects.get("a").body == b"1"
            asked += 1
        return asked

    with ThreadPoolExecutor(8) as threads:
        workers = [threads.submit(ask, worker) for worker in range(8)]
        try:
            for turn in range(16):
                time.sleep(0.05)
                own.set_latency(**dict.fromkeys(NONE, 0.002 if turn % 2 == 0 else 0))
        finally:
            done.append(True)
        assert min(worker.result() for worker in workers) > 0
    assert queries.stats().errors == 0
    own.set_latency(**dict.fromkeys(NONE, FAR))
    assert far_ones(own) == list(NONE)


def test_the_result_keeps_each_setting_once_and_pictures_say_it(workshops, monkeypatch):
    shown: list[Any] = []
    monkeypatch.setattr(workshop_lib.plots, "display", shown.append)
    ws = workshops("kept")
    before = bars()
    with ws.at_latency(database=0.005):
        ws.set_latency(database=0.005)
        with ws.at_latency(store=0.0201):
            ws.record("during", 2)
            during = bars()
            workshop_lib.plots.show(during, "Bars.")
    after = bars()
    ws.record("after", 3)
    file = Path(ws.settings.workshop_result_file)
    setting = {"database_ms": 5.0, "cache_ms": 0.0, "store_ms": 0.0}
    assert json.loads(file.read_text())["latencies"] == [setting, {**setting, "store_ms": 20.1}]
    note = "emulated latency: database 5 ms, store 20.1 ms"
    assert [notes_of(figure) for figure in (before, during, after)] == [[], [note], []]
    assert shown[0]._repr_mimebundle_()[1]["image/png"]["alt"] == f"Bars. E{note[1:]}."


def test_other_workshops_and_sandboxes_notice_nothing(own, workshops):
    other = workshops("other")
    own.set_latency(database=FAR, cache=FAR)
    assert (other.latencies, far_ones(other)) == (NONE, [])
    other.set_latency(cache=0.002)
    note = "emulated latency: database 50 ms, cache 50 ms"
    assert notes_of(bars()) == [note, "emulated latency: cache 2 ms"]
    other.set_latency(cache=0)
    assert notes_of(bars()) == [note]
    box = own.sandbox(database=False)
    assert not is_far(box.valkey.ping)
    box.close()
    assert far_ones(own) == ["database", "cache"]


def test_a_proxy_that_was_killed_is_an_error_until_the_latency_is_set_again(own):
    own.set_latency(database=0.01, cache=0.01)
    own.database.query(ASK)
    for victim in proxies():
        victim.kill()
    assert wait_until(lambda: not proxies(), SOON_S)
    with pytest.raises(redis.ConnectionError):
        own.valkey.ping()
    with pytest.raises(ServiceUnreachableError):
        own.database.query(ASK)
    own.set_latency(database=0.01, cache=0)
    assert own.database.query(ASK).rows == [("Earth",)]
    assert own.valkey.ping() is True
