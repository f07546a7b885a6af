"""Services at a distance, in a learner's hands: real engines, and clients that were made before."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import psycopg2
import pytest
import redis

from workshop_lib import Workshop, open_workshop, plots
from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache
from workshop_lib.dataset import list_objects
from workshop_lib.dsql import RuledConnection
from workshop_lib.errors import ServiceUnreachableError, WorkshopError
from workshop_lib.paths import CHECKOUT
from workshop_lib.services import distance, embedded
from workshop_lib.services.state import StateFolder, wait_until

SOON = 30.0
FAR = 0.05
"""Much more than a question takes where there is no distance, seconds."""
NOWHERE = {"database": 0.0, "cache": 0.0, "store": 0.0}
ASK = "SELECT name FROM planet WHERE id = %s"
WHO = "SELECT pg_backend_pid()"
OBJECTS = 7


@pytest.fixture(scope="module")
def workshops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Workshop]]:
    """Opens workshops with a namespace of their own."""
    opened: list[Workshop] = []

    def one(name: str = "distances", **settings: Any) -> Workshop:
        namespace = f"test_{secrets.token_hex(4)}"
        results = tmp_path_factory.mktemp("result") / f"{name}.json"
        settings = {"dsql_pool_min": 2, "dsql_pool_timeout": 5.0, **settings}
        opened.append(
            open_workshop(
                name, workshop_namespace=namespace, workshop_result_file=results, **settings
            )
        )
        return opened[-1]

    yield one
    for workshop in opened:
        workshop.close()
    assert proxies() == []


@pytest.fixture(scope="module")
def shared_far(workshops: Callable[..., Workshop]) -> Iterator[Workshop]:
    workshop = workshops()
    workshop.load_table("planet")
    for number in range(OBJECTS):
        workshop.s3.put_object(
            Bucket=workshop.bucket, Key=f"{workshop.object_prefix}{number}", Body=b"%d" % number
        )
    yield workshop
    workshop.wipe()


@pytest.fixture
def own(shared_far: Workshop) -> Iterator[Workshop]:
    """A workshop with planets and a few objects, an empty cache, and no distance."""
    shared_far.clear_cache()
    yield shared_far
    shared_far.set_distance(database=0, cache=0, store=0)


def proxies() -> list[psutil.Process]:
    """The proxies that this process has running."""

    def is_one(process: psutil.Process) -> bool:
        try:
            return str(distance.__file__) in process.cmdline()
        except psutil.Error:  # it has just ended
            return False

    return [child for child in psutil.Process().children() if is_one(child)]


def seconds_of(action: Callable[[], object]) -> float:
    """How long it takes, at best: the first of several may have to connect."""
    found = []
    for _ in range(5):
        started = time.monotonic()
        action()
        found.append(time.monotonic() - started)
    return min(found)


def kept(ws: Workshop) -> Any:
    return json.loads(ws._result_file.read_text())


def bars() -> Any:
    return plots.bars({"cache": [1.0, 2.0]}, ["p50", "p95"], "A title", "percentile", "time (µs)")


def notes_of(figure: Any) -> list[str]:
    return [line for text in figure.texts for line in text.get_text().splitlines()]


def names(ws: Workshop) -> list[str]:
    return [ws.database.query(ASK, (number,))[0][0] for number in (3, 4)]


def read(url: str) -> bytes:
    with urlopen(url) as answer:  # noqa: S310 -- an address that our own client made
        return bytes(answer.read())


# --- off unless asked for ---


def test_at_first_there_is_no_distance_and_nothing_runs_for_it(workshops):
    ws = workshops("fresh")
    assert ws.distances == NOWHERE
    ws.set_distance()
    ws.set_distance(database=0, cache=0.0, store=0)
    with ws.at_distance(database=0):
        ws.database.query("SELECT 1")
    assert proxies() == []
    assert ws.distances == NOWHERE
    assert ws.result.distances == []


def test_closing_the_workshop_ends_its_proxies_and_its_notes(workshops):
    ws = workshops("closing")
    ws.set_distance(database=FAR, cache=FAR, store=FAR)
    assert len(proxies()) == 3
    ws.close()
    ws.close()
    assert proxies() == []
    assert ws.distances == NOWHERE
    assert notes_of(bars()) == []


def test_opening_a_notebook_s_workshop_again_ends_the_proxies_of_the_first(workshops):
    workshops("again").set_distance(cache=FAR)
    again = workshops("again")
    assert proxies() == []
    assert again.distances == NOWHERE


def test_a_kernel_that_ends_without_closing_leaves_no_proxy(state, tmp_path):
    script = f"""
        from workshop_lib import open_workshop
        ws = open_workshop("ends", workshop_result_file={str(tmp_path / "ends.json")!r})
        ws.set_distance(database=0.01, cache=0.01, store=0.01)
        ws.database.query("SELECT 1")
        print(*(dial._proxy._process.pid for dial in ws._dials.values()))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True, text=True, check=True, cwd=CHECKOUT,
    )  # fmt: skip
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 3
    assert wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), SOON)


# --- the database ---


def test_a_query_takes_the_distance_and_says_so(own):
    assert seconds_of(lambda: own.database.query("SELECT 1")) < FAR
    own.set_distance(database=FAR)
    assert seconds_of(lambda: own.database.query("SELECT 1")) >= FAR
    assert own.database.query("SELECT 1").seconds >= FAR
    own.set_distance(database=0)
    assert seconds_of(lambda: own.database.query("SELECT 1")) < FAR


def test_each_statement_of_a_transaction_takes_the_distance(own):
    def work(cursor: Any) -> None:
        cursor.execute("SELECT 1")
        cursor.execute("SELECT 2")

    own.set_distance(database=FAR)
    assert seconds_of(lambda: own.database.run_transaction(work)) >= 3 * FAR


def test_a_connection_of_one_s_own_goes_the_way_that_was_in_force_when_it_was_made(own):
    def ask(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    near = own.connect()
    own.set_distance(database=FAR)
    far = own.connect()
    try:
        assert seconds_of(lambda: ask(near)) < FAR <= seconds_of(lambda: ask(far))
        own.set_distance(database=0)
        assert seconds_of(lambda: ask(far)) < FAR
    finally:
        near.close()
        far.close()


@pytest.mark.parametrize(("before", "after"), [(0, FAR), (FAR, 0)])
def test_a_connection_borrowed_before_the_change_works_on_and_is_not_put_back(own, before, after):
    own.set_distance(database=before)
    with own.database.connection() as connection, connection.cursor() as cursor:
        cursor.execute(WHO)
        (number,) = cursor.fetchone()
        cursor.execute("BEGIN")
        cursor.execute(ASK, (3,))
        own.set_distance(database=after)
        cursor.execute(ASK, (4,))
        assert cursor.fetchone() == ("Mars",)
        cursor.execute("COMMIT")
    assert connection.closed
    assert own.database.query(WHO)[0][0] != number
    alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    assert wait_until(lambda: own.database.query(alive, (number,))[0][0] == 0, SOON)


def test_the_rules_of_aurora_dsql_hold_at_a_distance(own):
    own.set_distance(database=0.005)
    for statement in ("TRUNCATE planet", "SAVEPOINT a"):
        with pytest.raises(psycopg2.Error, match="unsupported"):
            own.database.query(statement)
    with own.database.connection() as connection:
        assert isinstance(connection, RuledConnection)


# --- the cache ---


def test_a_pipeline_of_many_commands_takes_the_distance_once(own):
    own.set_distance(cache=FAR)
    with own.valkey.pipeline(transaction=False) as pipeline:
        for number in range(100):
            pipeline.set(f"{own.namespace}:{number}", number)
        assert pipeline.execute() == [True] * 100

    def read() -> None:
        with own.valkey.pipeline(transaction=False) as pipeline:
            for number in range(100):
                pipeline.get(f"{own.namespace}:{number}")
            assert pipeline.execute() == [b"%d" % number for number in range(100)]

    assert seconds_of(lambda: own.valkey.get("k")) >= FAR
    assert FAR <= seconds_of(read) < 20 * FAR
    own.set_distance(cache=0)
    assert seconds_of(read) < FAR


def test_a_cache_connection_in_use_works_on_and_is_not_put_back(own):
    with own.valkey.pipeline() as pipeline:
        pipeline.watch(f"{own.namespace}:k")
        number = pipeline.client_id()
        own.set_distance(cache=0.005)
        pipeline.multi()
        pipeline.set(f"{own.namespace}:k", "v")
        assert pipeline.execute() == [True]
    assert own.valkey.client_id() != number
    assert wait_until(lambda: own.valkey.client_list(client_id=[number]) == [], SOON)


@pytest.mark.parametrize(("before", "after"), [(0, FAR), (FAR, 0)])
def test_what_was_cached_before_the_distance_changed_is_a_hit_after_it(own, before, after):
    everywhere = ("database", "cache", "store")
    own.set_distance(**dict.fromkeys(everywhere, before))
    queries, records = QueryCache(own), RecordCache(own, "planet")
    key = queries.key(ASK, (3,))
    assert queries.fetch(ASK, (3,)).source == "database"
    assert records.get(3) == {"id": 3, "name": "Earth"}
    own.set_distance(**dict.fromkeys(everywhere, after))
    asked = own.database.stats().queries
    answer = queries.fetch(ASK, (3,))
    assert (answer.source, answer.rows) == ("cache", [("Earth",)])
    assert records.get(3) == {"id": 3, "name": "Earth"}
    assert QueryCache(own).key(ASK, (3,)) == queries.key(ASK, (3,)) == key
    assert own.database.stats().queries == asked
    assert records.stats().hits == 1
    assert (seconds_of(lambda: queries.fetch(ASK, (3,))) >= FAR) == (after == FAR)
    assert (seconds_of(lambda: records.get(3)) >= FAR) == (after == FAR)


def test_a_miss_pays_for_both_and_a_hit_for_the_cache_alone(own):
    own.set_distance(database=2 * FAR, cache=FAR)
    cache = QueryCache(own)
    assert cache.fetch(ASK, (3,)).seconds >= 3 * FAR
    cache.invalidate(ASK, (3,))
    answer = cache.fetch(ASK, (3,))
    assert answer.seconds >= 3 * FAR
    assert answer.cost_seconds >= 2 * FAR
    assert FAR <= min(cache.fetch(ASK, (3,)).seconds for _ in range(5)) < 3 * FAR


def test_threads_that_miss_at_one_moment_share_one_load_at_a_distance(own):
    own.set_distance(database=0.2, cache=0.001)
    own.database.query("SELECT 1")
    cache, before = QueryCache(own), own.database.stats().queries
    with ThreadPoolExecutor(10) as threads:
        found = list(threads.map(lambda _: cache.fetch(ASK, (3,)).rows, range(10)))
    assert found == [[("Earth",)]] * 10
    assert own.database.stats().queries == before + 1


def test_threads_that_ask_while_the_distance_changes_get_right_answers_and_no_error(own):
    queries, records, done = QueryCache(own, ttl=0.05), RecordCache(own, "planet", ttl=0.05), []

    def ask(worker: int) -> int:
        asked = 0
        while not done:
            assert names(own) == ["Earth", "Mars"]
            assert queries.fetch(ASK, (4,)).rows == [("Mars",)]
            assert records.get(3) == {"id": 3, "name": "Earth"}
            assert own.valkey.echo(f"{worker}") == b"%d" % worker
            key = f"{own.object_prefix}{worker % OBJECTS}"
            found = own.s3.get_object(Bucket=own.bucket, Key=key)["Body"].read()
            assert found == b"%d" % (worker % OBJECTS)
            asked += 1
        return asked

    with ThreadPoolExecutor(10) as threads:
        workers = [threads.submit(ask, worker) for worker in range(10)]
        try:
            for turn in range(20):
                time.sleep(0.05)
                own.set_distance(**dict.fromkeys(NOWHERE, 0.002 if turn % 2 == 0 else 0))
        finally:
            done.append(True)
        assert min(worker.result() for worker in workers) > 0
    assert (queries.stats().errors, records.stats().errors) == (0, 0)
    own.set_distance(**dict.fromkeys(NOWHERE, FAR))
    assert seconds_of(own.valkey.ping) >= FAR
    assert seconds_of(lambda: own.database.query("SELECT 1")) >= FAR
    assert seconds_of(lambda: own.s3.head_bucket(Bucket=own.bucket)) >= FAR


def test_changing_it_often_leaves_no_connection_behind(own):
    def flip() -> None:
        for seconds in (0.001, 0):
            own.set_distance(**dict.fromkeys(NOWHERE, seconds))
            names(own)
            own.valkey.ping()
            own.s3.head_bucket(Bucket=own.bucket)

    def files() -> list[int]:
        return [process.num_fds() for process in (psutil.Process(), *proxies())]

    flip()
    before = files()
    for _ in range(20):
        flip()
    few = 8
    assert wait_until(
        lambda: all(now <= then + few for now, then in zip(files(), before, strict=True)), SOON
    )


# --- the store ---


def test_objects_are_put_and_got_whole_at_a_distance(own):
    body, key = secrets.token_bytes(3_000_000), f"{own.object_prefix}large, with spaces & ü+.bin"

    def head() -> Any:
        return own.s3.head_object(Bucket=own.bucket, Key=key)["ContentLength"]

    own.set_distance(store=FAR)
    own.s3.put_object(Bucket=own.bucket, Key=key, Body=body)
    assert own.s3.get_object(Bucket=own.bucket, Key=key)["Body"].read() == body
    part = own.s3.get_object(Bucket=own.bucket, Key=key, Range="bytes=10-19")["Body"].read()
    assert part == body[10:20]
    assert seconds_of(head) >= FAR
    own.set_distance(store=0)
    assert seconds_of(head) < FAR
    assert head() == len(body)
    own.s3.delete_object(Bucket=own.bucket, Key=key)


def test_a_request_goes_to_the_proxy_and_is_signed_for_it(own):
    sent: list[str] = []

    def note(request: Any, **_: Any) -> None:
        sent.append(request.url)

    own.set_distance(store=0.005)
    address = f"http://127.0.0.1:{own._dials['store']._proxy.port}/{own.bucket}/"
    key = {"Bucket": own.bucket, "Key": f"{own.object_prefix}3"}
    own.s3.meta.events.register("before-send.s3", note)
    try:
        assert own.s3.get_object(**key)["Body"].read() == b"3"
    finally:
        own.s3.meta.events.unregister("before-send.s3", note)
    assert [url.startswith(address) for url in sent] == [True]
    if not own.endpoints.store.emulated:  # it checks signatures, and the host is part of them
        url = own.s3.generate_presigned_url("get_object", Params=key)
        with pytest.raises(HTTPError, match="403"):
            read(url[:-1] + ("0" if url[-1] != "0" else "1"))


def test_listing_page_by_page_works_at_a_distance(own):
    own.set_distance(store=0.005)
    pages = own.s3.get_paginator("list_objects_v2").paginate(
        Bucket=own.bucket, Prefix=own.object_prefix, PaginationConfig={"PageSize": 2}
    )
    found = [item["Key"] for page in pages for item in page["Contents"]]
    assert found == [f"{own.object_prefix}{number}" for number in range(OBJECTS)]
    assert list(list_objects(own.s3, own.bucket, own.object_prefix)) == found


def test_an_address_that_was_signed_for_others_works_at_the_distance_it_was_made_at(own):
    def sign() -> str:
        key = {"Bucket": own.bucket, "Key": f"{own.object_prefix}3"}
        return str(own.s3.generate_presigned_url("get_object", Params=key))

    near = sign()
    own.set_distance(store=FAR)
    far = sign()
    assert seconds_of(lambda: read(near)) < FAR <= seconds_of(lambda: read(far))
    own.set_distance(store=0)
    assert read(far) == b"3"


def test_a_missing_object_is_the_store_s_own_error_at_a_distance(own):
    own.set_distance(store=0.005)
    with pytest.raises(own.s3.exceptions.NoSuchKey):
        own.s3.get_object(Bucket=own.bucket, Key=f"{own.object_prefix}missing")


# --- for a while ---


def test_after_the_block_what_was_before_is_in_force_also_after_an_error(own):
    def fail() -> None:
        with own.at_distance(database=0.003):
            assert own.distances == {"database": 0.003, "cache": 0.002, "store": 0.0}
            with own.at_distance(cache=0, store=0.001):
                own.set_distance(database=0.02)
                assert own.distances == {"database": 0.02, "cache": 0.0, "store": 0.001}
            assert own.distances == {"database": 0.003, "cache": 0.002, "store": 0.0}
            raise KeyboardInterrupt

    own.set_distance(cache=0.002)
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert own.distances == {"database": 0.0, "cache": 0.002, "store": 0.0}
    assert seconds_of(own.valkey.ping) >= 0.002


def test_a_block_that_cannot_begin_changes_nothing(own):
    own.set_distance(cache=0.002)
    with pytest.raises(ValueError, match="distance of the store is -1"):
        own.at_distance(database=0.003, store=-1).__enter__()
    assert own.distances == {**NOWHERE, "cache": 0.002}


# --- refused ---


def test_a_time_out_of_range_is_refused_and_changes_nothing(own):
    running = len(proxies())
    own.set_distance(cache=0.002)
    with pytest.raises(ValueError, match=r"distance of the store is 5; .* 0\.005 for 5 ms"):
        own.set_distance(database=0.01, cache=0.01, store=5)
    assert own.distances == {**NOWHERE, "cache": 0.002}
    assert len(proxies()) <= running + 1


def test_an_unknown_service_is_refused(own):
    with pytest.raises(TypeError, match="valkey"):
        own.set_distance(valkey=0.01)


def test_a_service_elsewhere_is_refused_and_the_local_ones_beside_it_are_not(own):
    database = replace(own.endpoints.database, embedded=False, label="Aurora DSQL in eu-west-1")
    endpoints = replace(own.endpoints, database=database, release=lambda: None)
    mixed = Workshop(own.loaded, endpoints, "mixed")
    try:
        with pytest.raises(WorkshopError, match=r"local engines only, and the database is Aurora"):
            mixed.set_distance(cache=0.01, database=0.005)
        assert mixed.distances == NOWHERE
        mixed.set_distance(database=0, cache=0.002)
        with mixed.at_distance(cache=FAR):
            assert seconds_of(mixed.valkey.ping) >= FAR
        assert mixed.distances == {**NOWHERE, "cache": 0.002}
    finally:
        mixed.close()


# --- said wherever it matters ---


def test_the_result_keeps_each_setting_that_was_in_force_once_and_in_order(workshops):
    ws = workshops("kept")
    ws.record("before", 1)
    assert kept(ws)["distances"] == []
    with ws.at_distance(database=0.005):
        ws.set_distance(database=0.005)
        with ws.at_distance(cache=0.0005):
            ws.record("during", 2)
    ws.set_distance(database=0.005)
    ws.record("after", 3)
    both = {"database_ms": 5.0, "cache_ms": 0.5, "store_ms": 0.0}
    assert kept(ws)["distances"] == [{**both, "cache_ms": 0.0}, both]
    ws.close()


def test_pictures_say_the_distance_at_which_they_were_drawn(own, monkeypatch):
    shown: list[Any] = []
    monkeypatch.setattr(plots, "display", shown.append)
    before = bars()
    with own.at_distance(database=0.005, store=0.0201):
        during = bars()
        plots.show(during, "Bars.")
    after = bars()
    plots.show(after, "Bars.")
    note = "emulated distance: database 5 ms, store 20.1 ms"
    assert [notes_of(figure) for figure in (before, during, after)] == [[], [note], []]
    alts = [image._repr_mimebundle_()[1]["image/png"]["alt"] for image in shown]
    assert alts == [f"Bars. E{note[1:]}.", "Bars."]


# --- side by side ---


def test_two_workshops_do_not_disturb_each_other(own, workshops):
    other = workshops("other")
    own.set_distance(database=FAR, cache=FAR)
    assert other.distances == NOWHERE
    assert seconds_of(lambda: other.database.query("SELECT 1")) < FAR
    assert seconds_of(other.valkey.ping) < FAR
    other.set_distance(cache=0.002)
    assert notes_of(bars()) == [
        "emulated distance: database 50 ms, cache 50 ms", "emulated distance: cache 2 ms",
    ]  # fmt: skip
    assert other.result.distances == [{"database_ms": 0.0, "cache_ms": 2.0, "store_ms": 0.0}]
    other.close()
    assert len(proxies()) >= 2
    assert notes_of(bars()) == ["emulated distance: database 50 ms, cache 50 ms"]
    assert seconds_of(own.valkey.ping) >= FAR
    assert names(own) == ["Earth", "Mars"]


def test_a_sandbox_is_at_no_distance(own):
    own.set_distance(database=FAR, cache=FAR)
    box = own.sandbox(database=False)
    try:
        assert seconds_of(box.valkey.ping) < FAR
        assert seconds_of(own.valkey.ping) >= FAR
    finally:
        box.close()


# --- when something dies ---


def test_a_proxy_that_was_killed_is_an_error_until_the_distance_is_set_again(own):
    own.set_distance(database=FAR, cache=FAR)
    own.valkey.ping()
    names(own)
    victims = [own._dials[service]._proxy._process for service in ("database", "cache")]
    for victim in victims:
        victim.kill()
        victim.wait()
    with pytest.raises(redis.ConnectionError):
        own.valkey.ping()
    with pytest.raises(ServiceUnreachableError):
        names(own)
    own.set_distance(database=FAR, cache=0)
    assert names(own) == ["Earth", "Mars"]
    assert own.valkey.ping() is True


@pytest.fixture
def rough(tmp_path_factory, workshops) -> Iterator[tuple[StateFolder, Workshop]]:
    """A workshop at a distance from engines of its own, which a test may treat badly."""
    folder = StateFolder(tmp_path_factory.mktemp("rough").resolve())
    try:
        ws = workshops("rough", workshop_state_dir=folder.path)
        ws.load_table("planet")
        ws.set_distance(database=0.005, cache=0.005, store=0.005)
        yield folder, ws
        ws.close()
    finally:
        embedded.reset(folder)


def check_all(ws: Workshop) -> None:
    assert names(ws) == ["Earth", "Mars"]
    assert ws.valkey.ping() is True
    ws.s3.put_object(Bucket=ws.bucket, Key=f"{ws.object_prefix}k", Body=b"v")
    assert ws.s3.get_object(Bucket=ws.bucket, Key=f"{ws.object_prefix}k")["Body"].read() == b"v"


def test_engines_that_were_killed_and_restarted_are_reached_at_the_same_distance(rough):
    folder, ws = rough
    check_all(ws)
    before = {engine.name: engine.pid for engine in embedded.status(folder).engines}
    for pid in before.values():
        psutil.Process(pid).kill()

    def restarted() -> bool:
        now = {e.name: e.pid for e in embedded.status(folder).engines if e.status == "up"}
        return len(now) == 3 and not set(now.values()) & set(before.values())

    assert wait_until(restarted, SOON)
    check_all(ws)
    assert seconds_of(ws.valkey.ping) >= 0.005


@contextmanager
def occupied(ports: list[int]) -> Iterator[None]:
    strangers = [socket.create_server(("127.0.0.1", port)) for port in ports]
    try:
        yield
    finally:
        for stranger in strangers:
            stranger.close()


def test_engines_that_have_moved_are_an_error_that_says_what_to_do_and_then_found(rough, workshops):
    folder, ws = rough
    ports = [endpoint.port for endpoint in ws.endpoints.all]
    embedded.stop(folder)
    with occupied(ports):
        again = workshops("moved", workshop_state_dir=folder.path)
    assert not {endpoint.port for endpoint in again.endpoints.all} & set(ports)
    with pytest.raises(ServiceUnreachableError, match=rf"127\.0\.0\.1:{ports[0]} .*open_workshop"):
        ws.database.query("SELECT 1")
    with pytest.raises(redis.ConnectionError):
        ws.valkey.ping()
    again.load_table("planet")
    again.set_distance(database=0.005, cache=0.005, store=0.005)
    check_all(again)
    again.close()
