"""Streams served by real workers: every request is accounted for, and waiting is not hidden."""

import threading
import time

import pytest
from helpers import fail

from workshop_lib.errors import DataError, ServiceUnreachableError
from workshop_lib.load import streams
from workshop_lib.load.jobs import Ping, StreamJob, to_event
from workshop_lib.load.means import Equipment
from workshop_lib.load.rows import count_transactions, delete_transactions
from workshop_lib.load.streams import StreamReport, run_stream, saturation, warm_cache
from workshop_lib.load.traffic import requests
from workshop_lib.load.worker import Worker
from workshop_lib.measure import Moment


def run(shop, driver, **how):
    report = run_stream(shop.database, driver, **({"seconds": 0.6, "rate": 50.0} | how))
    assert report.planned == report.succeeded + report.failed + report.dropped
    delete_transactions(shop.database, report.run)
    return report


def ask(worker, **changes):
    usual = {"worker": 0, "of": 1, "begins_at": time.time(), "rate": 40, "seconds": 0.5}
    return worker.do(to_event(StreamJob(**(usual | changes))))


def test_without_a_cache_every_request_reaches_the_database(shop, pair):
    done = []
    report = run(shop, pair, half_way=lambda: done.append(time.monotonic()))
    assert report.reconciles
    assert report.succeeded == report.planned == len(report.moments)
    assert {m.source for m in report.moments} == {"database"}
    assert report.hit_ratio == 0
    stream = requests(report.rate, report.seconds, 0, report.run)
    assert report.rows == report.in_table == sum(r.action == "INSERT" for r in stream)
    assert [m.at for m in report.moments] == sorted(m.at for m in report.moments)
    assert len(done) == 1


def test_with_a_cache_repeated_reads_do_not_reach_the_database(shop, pair):
    shop.clear_cache()
    cold = run(shop, pair, rate=100.0, ttl_s=60.0)
    assert cold.reconciles
    assert cold.succeeded == cold.planned
    assert 0 < cold.hit_ratio < 1
    assert warm_cache(pair, 60) == 101
    warm = run(shop, pair, rate=100.0, ttl_s=60.0)
    stream = requests(100.0, 0.6, 0, warm.run)
    assert {m.source for m in warm.moments} <= {"cache", "database"}
    inserts = sum(r.action == "INSERT" for r in stream)
    assert [m.source for m in warm.moments].count("database") == inserts


def test_latency_counts_from_the_planned_arrival_and_who_waits_too_long_leaves(shop, alone):
    # It begins a second late, as if the worker had been held up: nobody may fail to see that.
    late = ask(alone, run=7, begins_at=time.time() - 1.0, threads=1)
    assert len(late["at_us"]) == len(list(requests(40, 0.5, 0, 7)))
    pairs = zip(late["at_us"], late["wait_us"], strict=True)
    assert all(at + wait >= 1_000_000 for at, wait in pairs)
    assert set(late["source"]) == {"database"}
    gone = ask(alone, run=8, begins_at=time.time() - 5.0, give_up_s=1.0)
    assert set(gone["source"]) == {"dropped"}
    assert count_transactions(shop.database, 8) == gone["rows"] == 0
    delete_transactions(shop.database, 7)


def test_a_closed_loop_sends_when_it_has_an_answer(shop, pair):
    report = run(shop, pair, seconds=0.4, rate=0.0, closed=True, threads=2)
    assert report.reconciles
    assert report.closed
    assert report.succeeded == report.planned > 10
    # Four threads: never more than four requests under way at a time.
    for m in report.moments[:: max(1, len(report.moments) // 50)]:
        assert sum(o.at <= m.at < o.end for o in report.moments) <= 4


def test_a_cache_that_is_away_costs_no_answer(shop):
    nowhere = {**shop.endpoints.cache.arguments, "port": 1}
    one = Worker(Equipment(shop.database.endpoint, shop.namespace, cache=nowhere))
    assert set(ask(one, run=9, ttl_s=10.0)["source"]) == {"database"}
    one.close()
    delete_transactions(shop.database, 9)


def test_a_database_that_is_away_fails_requests_and_no_request_is_lost(ws):
    box = ws.sandbox(database=True)
    one = Worker(Equipment(box.database.endpoint, box.namespace))
    one.do(to_event(Ping()))
    box.stop("database")
    answer = ask(one, run=9, rate=30, give_up_s=0.5)
    one.close()
    box.close()
    assert len(answer["source"]) == len(list(requests(30, 0.5, 0, 9)))
    assert set(answer["source"]) <= {"error", "dropped"}
    assert answer["source"].count("error") >= 1
    assert "No connection to the database" in answer["errors"][0]


def test_a_worker_that_is_killed_fails_its_share(shop, pair, kill_a_worker):
    killer = threading.Timer(0.8, kill_a_worker)
    killer.start()
    report = run(shop, pair, seconds=1.5, rate=40.0)
    killer.join()
    share = sum(1 for _ in requests(40.0, 1.5, 0, report.run)) / 2
    assert report.reconciles
    assert report.failed == pytest.approx(share, abs=1)
    assert report.unknown == report.failed
    assert any("killed" in error for error in report.errors)


def test_a_stream_whose_rows_cannot_be_counted_does_not_reconcile(shop, here, monkeypatch):
    monkeypatch.setattr(
        streams, "count_transactions", lambda *_: fail(ServiceUnreachableError("No answer."))
    )
    report = run(shop, here, seconds=0.3)
    assert report.succeeded == report.planned
    assert report.in_table is None
    assert not report.reconciles


def test_a_stream_out_of_range_is_refused(shop, pair):
    wrong = {"rate": 0.0, "seconds": 0.0, "threads": 0, "ttl_s": -1.0}
    for name, value in wrong.items():
        with pytest.raises(DataError, match=name):
            run(shop, pair, **{name: value})


# --- on paper


def report(waits, sources=None):
    sources = sources or ["database"] * len(waits)
    moments = tuple(
        Moment(n / 10, wait, source)
        for n, (wait, source) in enumerate(zip(waits, sources, strict=True))
    )
    served = sum(s in {"cache", "database"} for s in sources)
    return StreamReport(
        run=0, closed=False, rate=10.0, seconds=1.0, planned=len(waits),
        succeeded=served, failed=0, dropped=len(waits) - served, moments=moments, rows=0,
        in_table=0, cpu_share=0.0, limited_by="database", errors=(), interrupted=False,
    )  # fmt: skip


def test_percentiles_count_those_that_were_dropped():
    found = report([0.1] * 9 + [2.0], sources=["database"] * 9 + ["dropped"])
    assert found.percentile(90) == 0.1
    assert found.percentile(95) == 2.0
    assert len(found.answered) == 9
    empty = report([1.0], sources=["dropped"])
    assert (empty.throughput, empty.hit_ratio) == (0.0, 0.0)


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
