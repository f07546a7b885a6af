"""Streams served by real workers: every request is accounted for, and waiting is not hidden."""

import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from helpers import fail

from workshop_lib.errors import DataError, ServiceUnreachableError
from workshop_lib.load import report as reports
from workshop_lib.load.drivers import NoAnswerError
from workshop_lib.load.jobs import Done, Ping, StreamJob, to_event
from workshop_lib.load.report import LoadReport
from workshop_lib.load.rows import count_rows, delete_rows
from workshop_lib.load.run import run_stream, warm_cache
from workshop_lib.load.scenario import InsertLoad, StreamLoad
from workshop_lib.load.traffic import requests
from workshop_lib.load.worker import ClientConfig, Worker


def run(shop, driver, **how):
    report = run_stream(shop.database, driver, **({"seconds": 0.6, "rate": 50.0} | how))
    assert report.planned == report.succeeded + report.failed + report.dropped
    delete_rows(shop.database, report.run)
    return report


def ask(worker, run=9, late_s=0.0, **load):
    stream = StreamLoad(**{"rate": 40, "seconds": 0.5} | load)
    begins_at = time.time() - late_s
    return worker.do(to_event(StreamJob(run=run, worker=0, of=1, begins_at=begins_at, load=stream)))


def sources(answer):
    return {source for _, _, source, _ in answer["calls"]}


def test_without_a_cache_every_request_reaches_the_database(shop, pair):
    done = []
    report = run(shop, pair, half_way=lambda: done.append(1))
    assert report.reconciles
    assert report.succeeded == report.planned == len(report.calls)
    assert set(report.calls.source) == {"database"}
    assert (report.hit_ratio, len(done)) == (0, 1)
    stream = requests(50.0, 0.6, 0, report.run)
    assert report.rows == report.in_table == sum(r.action == "INSERT" for r in stream)
    assert report.calls["at"].is_monotonic_increasing


def test_with_a_cache_repeated_reads_do_not_reach_the_database(shop, pair):
    shop.clear_cache()
    cold = run(shop, pair, rate=100.0, ttl_s=60.0)
    assert cold.reconciles
    assert cold.succeeded == cold.planned
    assert 0 < cold.hit_ratio < 1
    assert warm_cache(pair, 60) == 101
    warm = run(shop, pair, rate=100.0, ttl_s=60.0)
    found = Counter(zip(warm.calls.source, warm.calls.action, strict=True))
    assert {key for key in found if key[0] == "database"} == {("database", "INSERT")}


def test_latency_counts_from_the_planned_arrival_and_who_waits_too_long_leaves(shop, alone):
    # It begins a second late, as if the worker had been held up: nobody may fail to see that.
    late = ask(alone, run=7, late_s=1.0, threads=1, give_up_s=60.0)
    assert len(late["calls"]) == len(list(requests(40, 0.5, 0, 7)))
    assert all(at + wait >= 1_000_000 for at, wait, _, _ in late["calls"])
    assert sources(late) == {"database"}
    gone = ask(alone, run=8, late_s=5.0, give_up_s=1.0)
    assert sources(gone) == {"dropped"}
    assert count_rows(shop.database, 8) == gone["rows"] == 0
    delete_rows(shop.database, 7)


def test_a_closed_loop_sends_when_it_has_an_answer(shop, pair):
    report = run(shop, pair, seconds=0.4, rate=0.0, closed=True, threads=2)
    assert report.reconciles
    assert report.succeeded == report.planned > 4
    # Four threads: never more than four requests under way at a time.
    calls = report.calls
    for at in calls["at"][:: max(1, len(calls) // 50)]:
        assert ((calls["at"] <= at) & (at < calls["at"] + calls.seconds)).sum() <= 4


def test_a_cache_that_is_away_costs_no_answer(shop):
    nowhere = {**shop.endpoints.cache.arguments, "port": 1}
    one = Worker(ClientConfig(shop.database.endpoint, shop.namespace, cache=nowhere))
    assert sources(ask(one, ttl_s=10.0, give_up_s=60.0)) == {"database"}
    one.close()
    delete_rows(shop.database, 9)


def test_a_database_that_is_away_fails_requests_and_no_request_is_lost(ws):
    box = ws.sandbox(database=True)
    one = Worker(ClientConfig(box.database.endpoint, box.namespace))
    one.do(to_event(Ping()))
    box.stop("database")
    answer = ask(one, rate=30, give_up_s=0.5)
    one.close()
    box.close()
    assert len(answer["calls"]) == len(list(requests(30, 0.5, 0, 9)))
    assert sources(answer) in ({"error"}, {"error", "dropped"})
    assert answer["planned"] == answer["error_count"] + answer["dropped"]
    assert "No connection to the database" in answer["errors"][0]


def test_a_worker_that_is_killed_fails_its_share(shop, pair, kill_a_worker):
    killer = threading.Timer(0.8, kill_a_worker)
    killer.start()
    report = run(shop, pair, seconds=4.0, rate=20.0)
    killer.join()
    share = sum(1 for _ in requests(20.0, 4.0, 0, report.run)) / 2
    assert report.reconciles
    assert report.failed == pytest.approx(share, abs=1)
    assert report.unknown == report.failed
    assert any("killed" in error for error in report.errors)


def test_a_stream_whose_rows_cannot_be_counted_or_that_nobody_served_says_so(
    shop, here, monkeypatch
):
    with monkeypatch.context() as patch:
        rows = SimpleNamespace(count=lambda _: fail(ServiceUnreachableError("No answer.")))
        patch.setattr(reports, "rows_of", lambda *_, **__: rows)
        report = run(shop, here, seconds=0.3)
    assert (report.in_table, report.reconciles) == (None, False)
    here.spoil = lambda _: fail(NoAnswerError("lost"))
    nobody = run(shop, here, seconds=0.3)
    assert nobody.failed == nobody.planned > 0
    assert (nobody.throughput, nobody.hit_ratio) == (0.0, 0.0)


def test_a_stream_out_of_range_is_refused(shop, pair):
    for name, value in {"rate": 0.0, "seconds": 0.0, "threads": 0, "ttl_s": -1.0}.items():
        with pytest.raises(DataError, match=name):
            run(shop, pair, **{name: value})


def test_percentiles_count_those_that_were_dropped(here):
    calls = [(n * 100_000, 100_000, "database", "SELECT") for n in range(9)]
    calls.append((900_000, 2_000_000, "dropped", "SELECT"))
    done = [Done(planned=10, success_count=9, dropped=1, calls=calls)]
    load = StreamLoad(seconds=1.0, rate=10.0)
    how = {"run": 1, "load": load, "unit": "requests", "seconds": 1.0}
    report = LoadReport.of(here, done, 0, [], **how)
    assert (report.percentile(90), report.percentile(95)) == (0.1, 2.0)
    assert (len(report.times()), report.throughput) == (9, 9.0)


@pytest.mark.parametrize(
    ("seconds", "cpu_ms", "limited_by", "says"),
    [
        (4.0, 15.0, "database", "rows"),  # forty jobs, of which a few ran at once
        (0.5, 15.0, "generator", "took 60% of this machine's processors"),
        (4.0, 90.0, "generator", "computed for 90% of their time"),
    ],
)
def test_the_load_generator_was_the_limit_if_it_took_the_time_that_there_was(
    here, monkeypatch, seconds, cpu_ms, limited_by, says
):
    monkeypatch.setattr(reports.psutil, "cpu_count", lambda: 2)
    job = {"planned": 1, "success_count": 1, "rows": 1, "duration_ms": 100.0, "cpu_ms": cpu_ms}
    how = {"run": "r", "load": InsertLoad(), "unit": "rows", "seconds": seconds}
    report = LoadReport.of(here, [Done(**job)] * 40, 40, [], **how)
    assert report.limited_by == limited_by
    assert says in str(report)
