"""Streams served by real workers: every request is accounted for, and waiting is not hidden."""

import os
import signal
import threading
import time

import psutil
import pytest

from workshop_lib.errors import DataError
from workshop_lib.load.drivers import LocalWorkers
from workshop_lib.load.jobs import Ping, StreamJob, to_event
from workshop_lib.load.means import Equipment
from workshop_lib.load.rows import count_transactions, delete_transactions
from workshop_lib.load.streams import StreamReport, run_stream, saturation
from workshop_lib.load.traffic import requests
from workshop_lib.load.worker import Worker
from workshop_lib.measure import Moment


@pytest.fixture(scope="module")
def pair(shop):
    equipment = Equipment(
        shop.database.endpoint, shop.namespace, cache=shop.endpoints.cache.arguments
    )
    with LocalWorkers(equipment, at_once=2) as pair:
        yield pair


def run(shop, driver, **how):
    usual = {"seconds": 1.0, "rate": 50.0, "threads": 4}
    report = run_stream(shop.database, driver, **(usual | how))
    assert report.reconciles
    assert report.planned == report.succeeded + report.failed + report.dropped
    assert len(report.moments) == report.succeeded + report.dropped + report.failed
    assert delete_transactions(shop.database, report.run) == report.in_table
    return report


def inserts(report):
    stream = requests(report.rate, report.seconds, 0, report.run)
    return sum(request.action == "INSERT" for request in stream)


def test_without_a_cache_every_request_reaches_the_database(shop, pair):
    report = run(shop, pair)
    assert report.succeeded == report.planned
    assert {m.source for m in report.moments} == {"database"}
    assert report.hit_ratio == 0
    assert report.rows == report.in_table == inserts(report)
    assert [m.at for m in report.moments] == sorted(m.at for m in report.moments)


def test_with_a_cache_repeated_reads_do_not_reach_the_database(shop, pair):
    shop.clear_cache()
    report = run(shop, pair, rate=200.0, ttl_s=60.0)
    assert report.succeeded == report.planned
    asked = {
        (request.action, request.values)
        for request in requests(report.rate, report.seconds, 0, report.run)
    }
    sources = [m.source for m in report.moments]
    # One load of each answer, and every INSERT. Waiters for a load are answered by the cache; where
    # it is slower than its time limit, which is short, the database is asked instead.
    assert len(asked) <= sources.count("database") < report.planned
    assert report.hit_ratio == pytest.approx(1 - sources.count("database") / report.planned)


def test_latency_counts_from_the_planned_arrival(shop):
    one = Worker(Equipment(shop.database.endpoint, shop.namespace))
    # It begins a second late, as if the worker had been held up: nobody may fail to see that.
    job = StreamJob(
        run=7, worker=0, of=1, begins_at=time.time() - 1.0, rate=40, seconds=0.5, threads=1
    )
    answer = one.do(to_event(job))
    one.close()
    assert len(answer["at_us"]) == len(list(requests(40, 0.5, 0, 7)))
    answers = zip(answer["at_us"], answer["wait_us"], strict=True)
    assert all(at + wait >= 1_000_000 for at, wait in answers)
    assert set(answer["source"]) == {"database"}
    delete_transactions(shop.database, 7)


def test_who_has_waited_too_long_has_left(shop):
    one = Worker(Equipment(shop.database.endpoint, shop.namespace))
    job = StreamJob(
        run=8, worker=0, of=1, begins_at=time.time() - 5.0, rate=40, seconds=0.5, give_up_s=1.0
    )
    answer = one.do(to_event(job))
    one.close()
    assert set(answer["source"]) == {"dropped"}
    assert count_transactions(shop.database, 8) == answer["rows"] == 0


def test_a_closed_loop_sends_when_it_has_an_answer(shop, pair):
    report = run(shop, pair, seconds=0.5, rate=0.0, closed=True, threads=2)
    assert report.closed
    assert report.succeeded == report.planned > 10
    # Four threads: never more than four requests under way at a time.
    for m in report.moments[:: max(1, len(report.moments) // 50)]:
        assert sum(o.at <= m.at < o.end for o in report.moments) <= 4


def test_half_way_something_can_be_done(shop, pair):
    done = []
    begun = time.time()
    run(shop, pair, half_way=lambda: done.append(time.time()))
    assert len(done) == 1
    assert done[0] - begun > 0.5


def test_a_cache_that_is_away_costs_no_answer(shop):
    nowhere = {**shop.endpoints.cache.arguments, "port": 1}
    with LocalWorkers(Equipment(shop.database.endpoint, shop.namespace, cache=nowhere), 1) as one:
        report = run(shop, one, ttl_s=10.0)
    assert report.succeeded == report.planned
    assert {m.source for m in report.moments} == {"database"}


def test_a_database_that_is_away_fails_requests_and_no_request_is_lost(ws):
    box = ws.sandbox(database=True)
    for name in ("type", "transactions"):
        box.load_table(name)
    one = Worker(Equipment(box.database.endpoint, box.namespace))
    one.do(to_event(Ping()))
    box.stop("database")
    job = StreamJob(
        run=9, worker=0, of=1, begins_at=time.time(), rate=30, seconds=0.5, give_up_s=0.5
    )
    answer = one.do(to_event(job))
    one.close()
    box.close()
    assert len(answer["source"]) == len(list(requests(30, 0.5, 0, 9)))
    assert set(answer["source"]) <= {"error", "dropped"}
    assert answer["source"].count("error") >= 1
    assert "No connection to the database" in answer["errors"][0]


def test_a_worker_that_is_killed_fails_its_share(shop):
    before = set(psutil.Process().children(recursive=True))
    with LocalWorkers(Equipment(shop.database.endpoint, shop.namespace), at_once=2) as two:
        victims = [
            process
            for process in set(psutil.Process().children(recursive=True)) - before
            if "spawn_main" in " ".join(process.cmdline())
        ]
        killer = threading.Timer(0.8, lambda: os.kill(victims[0].pid, signal.SIGKILL))
        killer.start()
        report = run_stream(shop.database, two, seconds=1.5, rate=60.0)
        killer.join()
    share = sum(1 for _ in requests(60.0, 1.5, 0, report.run)) / 2
    assert report.failed == pytest.approx(share, abs=1)
    assert report.planned == report.succeeded + report.failed + report.dropped
    assert report.reconciles
    assert any("killed" in error for error in report.errors)
    delete_transactions(shop.database, report.run)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"rate": 0.0}, "above 0 a second"),
        ({"seconds": 0.0}, "seconds"),
        ({"threads": 0}, "threads"),
        ({"ttl_s": -1.0}, "ttl_s"),
        ({"rate": 1e9}, "rate"),
    ],
)
def test_a_stream_out_of_range_is_refused(shop, pair, how, says):
    with pytest.raises(DataError, match=says):
        run_stream(shop.database, pair, **({"seconds": 1.0, "rate": 10.0} | how))


# --- on paper


def report(waits, rate=10.0, sources=None, planned=None):
    sources = sources or ["database"] * len(waits)
    moments = tuple(
        Moment(n / 10, wait, source)
        for n, (wait, source) in enumerate(zip(waits, sources, strict=True))
    )
    served = sum(s in {"cache", "database"} for s in sources)
    return StreamReport(
        run=0, closed=False, rate=rate, seconds=1.0, planned=planned or len(waits),
        succeeded=served, failed=0, dropped=len(waits) - served, moments=moments, rows=0,
        in_table=0, cpu_share=0.0, limited_by="database", errors=(), interrupted=False,
    )  # fmt: skip


def test_percentiles_count_those_that_were_dropped():
    found = report([0.1] * 9 + [2.0], sources=["database"] * 9 + ["dropped"])
    assert found.percentile(90) == 0.1
    assert found.percentile(95) == 2.0
    assert len(found.answered) == 9


def test_percentiles_over_time_and_queries_by_when_they_ended():
    found = report([0.05] * 5 + [0.25] * 5, sources=["cache"] * 5 + ["database"] * 5)
    assert found.over_time(50, 0.5) == ([0.25, 0.75], [0.05, 0.25])
    # Sent at 0.5 … 0.9, ended at 0.75 … 1.15: three before 1.0, two after.
    assert found.queries_per_second(0.5) == ([0.25, 0.75, 1.25], [0.0, 6.0, 4.0])


def test_saturation_is_the_last_rate_before_the_first_that_was_not_served_well():
    good, slow = [0.01] * 20, [0.01] * 10 + [0.5] * 10
    assert saturation({10: report(good), 20: report(good), 30: report(slow)}, 0.1) == 20
    assert saturation({10: report(good), 20: report(slow), 30: report(good)}, 0.1) == 10
    assert saturation({10: report(slow)}, 0.1) is None
    lost = report(good, sources=["database"] * 19 + ["dropped"])
    assert saturation({10: report(good), 20: lost}, 0.1) == 10


def test_no_answers_have_no_throughput():
    empty = report([1.0], sources=["dropped"])
    assert (empty.throughput, empty.hit_ratio) == (0.0, 0.0)
