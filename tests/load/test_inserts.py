"""Insert loads against the real database: every planned row is accounted for, whatever happens."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from random import Random
from types import SimpleNamespace

import pytest
from helpers import ALL_EVENTS, SOON_S, Here, fail, when_more_than, worker_processes

from workshop_lib import dataset
from workshop_lib.errors import ServiceUnreachableError, WorkshopError
from workshop_lib.load import (
    ClientConfig,
    InsertLoad,
    LocalWorkers,
    compare_loads,
    count_rows,
    delete_rows,
    drivers,
    events,
    load_cost,
    report as reports,
    run as runs,
    run_inserts,
    save_reports,
)
from workshop_lib.load.worker import Done, Worker
from workshop_lib.prices import load_prices
from workshop_lib.services.processes import wait_until


def job(run="run", **changes):
    return {"run": run, "number": 0, "action": "EVENTS", "statements": 3, "rows": 4} | changes


def insert(database, driver, **what):
    report = run_inserts(database, InsertLoad(**what), driver)
    assert report.planned == report.succeeded + report.failed + report.dropped
    return report


# --- what is stored


def test_every_planned_row_is_in_the_table_and_goes_again(shop, pair, tmp_path):
    what = {"workers": 3, "iterations": 2, "statements": 2, "rows": 10, "event_type": "Mixed"}
    report = insert(shop.database, pair, **what, warm_up=2)
    assert report.reconciles
    assert (report.planned, report.succeeded, report.in_table) == (120, 120, 120)
    assert len(report.calls) == 12  # without the warm-up's
    assert "by 2 processes on this machine" in str(report)
    written = json.loads(save_reports({"one": report}, tmp_path).read_text())["scenarios"]["one"]
    assert written["workers"] == {"total": 3, "successful": 3, "failed": 0}
    assert (written["success_rate"], written["total_inserts"]) == (1.0, 120)
    assert written["throughput"] == pytest.approx(120 / written["seconds"])
    for name in ("statement_ms", "latency_ms", "worker_duration_ms", "worker_throughput"):
        assert set(written[name]) == {"min", "max", "avg", "median", "p95", "p99"}
        assert written[name]["min"] <= written[name]["median"] <= written[name]["max"]
    assert compare_loads({"one": report}).loc["rows", "one"] == "120"
    other = insert(shop.database, pair, workers=1, iterations=2)
    assert delete_rows(shop.database, report.run) == 140  # those of the warm-up as well
    assert count_rows(shop.database, report.run) == 0
    assert count_rows(shop.database, other.run) == delete_rows(shop.database, other.run) == 2


def test_rows_are_what_the_generator_made_and_a_job_done_twice_stores_them_once(shop, alone):
    first, second = (alone.do(job("exact", event_type="Mixed")) for _ in range(2))
    assert (first["success_count"], first["already_there"]) == (12, 0)
    assert (second["success_count"], second["already_there"]) == (0, 12)
    assert len(first["calls"]) == 3
    assert first["inserts_per_second"] == pytest.approx(12e3 / first["duration_ms"])
    found = shop.database.query(
        "SELECT id, event_name, event_type, event_data FROM business_events "
        "WHERE id LIKE 'exact/%' ORDER BY id"
    )
    ids = [f"exact/00000/{number:07d}/{row:04d}" for number in range(3) for row in range(4)]
    made = events("Mixed", iter(ids), Random("exact/00000"), datetime.now(UTC))
    for (key, name, entity, _, _, data), stored in zip(made, found, strict=True):
        assert stored == (key, name, entity, json.loads(data))
    assert delete_rows(shop.database, "exact") == 12


# --- what goes wrong in a worker


def test_what_is_not_begun_in_time_is_not_done(alone, shop):
    answer = alone.do(job("late", statements=10**6, time_limit_s=0.2))
    assert 0 < answer["success_count"] < answer["planned"]
    assert delete_rows(shop.database, "late") == answer["success_count"]
    # Lambda's remaining time is a limit as well.
    answer = alone.do(job("none"), until=time.monotonic() + 0.5)
    assert (answer["success_count"], answer["error_count"]) == (0, 0)


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ([], "object"),
        (job(rows=3_001), "<= 3000"),
        (job(run="a/b"), "regex"),
        (job(action="INSERT", statements=1_001), "more than 1,000"),
        (job(namespace='a"; DROP'), r"not a job.*namespace"),
    ],
)
def test_what_is_no_job_is_refused_in_words(alone, event, says):
    with pytest.raises(WorkshopError, match=says):
        alone.do(event)


def test_a_statement_that_fails_counts_its_rows_as_failed_and_the_rest_goes_on(shop, alone):
    shop.database.query(
        "ALTER TABLE business_events ADD CONSTRAINT few CHECK (id NOT LIKE '%/0000001/%')"
    )
    try:
        answer = alone.do(job("constrained"))
    finally:
        shop.database.query("ALTER TABLE business_events DROP CONSTRAINT few")
    assert (answer["success_count"], answer["error_count"]) == (8, 4)
    assert len(answer["errors"]) == 1
    assert "few" in answer["errors"][0]
    delete_rows(shop.database, "constrained")


def test_a_conflict_is_tried_again_and_counted(shop, alone):
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    held = "VALUES ('hot/00000/0000000/0000', 'held', 'held', now(), now(), '{}')"
    with (
        closing(shop.database.connect()) as other,
        other.cursor() as cursor,
        ThreadPoolExecutor(1) as one,
    ):
        cursor.execute("SET workshop.dsql_rules = 'off'")
        cursor.execute("BEGIN")
        cursor.execute(f"INSERT INTO business_events {held}")
        answer = one.submit(alone.do, job("hot", statements=1))
        assert wait_until(lambda: shop.database.query(waits).rows != [(0,)], SOON_S)
        cursor.execute("COMMIT")
        found = answer.result(SOON_S)
    assert (found["retries"], found["success_count"], found["already_there"]) == (1, 3, 1)
    delete_rows(shop.database, "hot")


def test_a_database_that_restarts_costs_time_and_one_that_stays_away_ends_the_run(ws):
    box = ws.sandbox(database=True)
    dataset.create_table(box.database, "business_events")
    config = ClientConfig(box.database.endpoint, box.namespace)
    one = Worker(config)

    def restart():
        box.stop("database")
        box.start("database")

    restarting = when_more_than(box, 0, ALL_EVENTS, restart)
    load = {"workers": 1, "iterations": 10**6, "rows": 5, "time_limit_s": 5}
    report = insert(box.database, Here(one), **load)
    restarting.join()
    assert report.reconciles
    assert report.retries >= 1
    assert (report.failed, report.succeeded > 0) == (0, True)
    box.stop("database")
    answer = one.do(job("away", statements=50, time_limit_s=1.0))
    assert (answer["success_count"], answer["error_count"]) == (0, 4)
    assert "No connection to the database" in answer["errors"][0]
    assert str(config.database.arguments["password"]) not in answer["errors"][0]
    one.close()
    box.close()


# --- what goes wrong with a worker


def test_a_worker_that_is_killed_ends_in_a_report_that_reconciles(shop, pair):
    both = "SELECT count(DISTINCT split_part(id, '/', 2)) FROM business_events"
    thread = when_more_than(shop, 1, both, worker_processes()[0].kill)  # both have stored some
    load = {"workers": 2, "iterations": 10**6, "rows": 20, "time_limit_s": 5}
    report = insert(shop.database, pair, **load)
    thread.join()
    assert report.reconciles
    assert sorted(report.jobs.state) == ["answered", "lost"]
    assert any("killed" in error for error in report.errors)
    assert report.succeeded > report.jobs.success_count.sum()  # the table has the others
    assert report.dropped > 0
    assert report.failed > 0
    delete_rows(shop.database, report.run)
    # There is a new process in its place.
    again = insert(shop.database, pair, workers=4, iterations=2)
    assert (again.succeeded, again.successful) == (8, 4)
    delete_rows(shop.database, again.run)


def test_interrupt_ends_it_and_what_was_done_is_reported(shop, pair, interrupt):
    thread = when_more_than(shop, 50, ALL_EVENTS, interrupt)
    report = insert(shop.database, pair, workers=20, iterations=10**6, rows=5)
    thread.join()
    assert report.reconciles
    assert report.interrupted
    assert report.dropped >= 18 * 5_000_000
    assert report.succeeded > 50  # which only the table knows
    assert (report.failed, report.errors) == (0, ())
    assert "It was interrupted." in str(report)
    delete_rows(shop.database, report.run)
    # The workers are there for the next run.
    again = insert(shop.database, pair, workers=2, iterations=2)
    assert again.succeeded == 4
    delete_rows(shop.database, again.run)


def test_an_interrupt_of_the_warm_up_begins_nothing(shop, here, interrupt):
    def press(answer):
        interrupt()
        wait_until(here.stopped.is_set, SOON_S)
        return answer

    here.spoil = press
    with pytest.raises(KeyboardInterrupt):
        insert(shop.database, here, workers=2, iterations=5, warm_up=1)
    assert shop.database.query(ALL_EVENTS)[0][0] == 0


def lost(_):
    raise drivers.NoAnswerError("lost")


def test_rows_that_cannot_be_counted_are_said_to_be_unknown(shop, here, monkeypatch):
    rows = SimpleNamespace(count=lambda _: fail(ServiceUnreachableError("No answer.")))
    monkeypatch.setattr(runs, "measured_rows", lambda _: rows)
    stored = insert(shop.database, here, workers=2, iterations=3)
    assert (stored.succeeded, stored.unknown, stored.in_table) == (6, 0, None)
    assert not stored.reconciles
    assert stored.errors[0] == "No answer."
    here.spoil = lost
    unknown = insert(shop.database, here, workers=2, iterations=3)
    assert (unknown.succeeded, unknown.failed, unknown.unknown) == (0, 6, 6)
    assert "Of these, 6 may have been done" in str(unknown)
    for report in (stored, unknown):
        delete_rows(shop.database, report.run)


def test_another_function_s_answer_is_no_success(shop, here):
    here.spoil = lambda _: {"statusCode": 200}
    report = insert(shop.database, here, workers=2, iterations=3)
    # It had stored them all the same: the table has the last word.
    assert (report.succeeded, report.successful) == (6, 0)
    assert "not the answer of a load worker" in report.errors[0]
    assert report.reconciles
    delete_rows(shop.database, report.run)


def test_rows_that_are_committed_after_their_worker_was_lost_are_counted(shop, here, monkeypatch):
    here.spoil = lost
    seen = iter([0, 1, 4, 4])
    rows = SimpleNamespace(count=lambda _: next(seen))
    monkeypatch.setattr(runs, "measured_rows", lambda _: rows)
    monkeypatch.setattr(runs, "SETTLED_S", 0.0)
    report = insert(shop.database, here, workers=1, iterations=4)
    assert (report.succeeded, report.failed) == (4, 0)
    assert report.reconciles
    delete_rows(shop.database, report.run)


# --- the processes


def test_workers_that_cannot_be_had_are_said_and_none_is_left(config, shop, monkeypatch):
    for at_once in (0, 65):
        with pytest.raises(WorkshopError, match="from 1 to 64"):
            LocalWorkers(config, at_once)
    before = worker_processes()
    away = {**config.database.arguments, "port": 1}
    endpoint = type(config.database)("nowhere", "127.0.0.1", 1, away)
    with pytest.raises(WorkshopError, match=r"Not all of 2 .*: No connection to"):
        LocalWorkers(ClientConfig(endpoint, shop.namespace), 2)
    monkeypatch.setattr(drivers.subprocess, "Popen", lambda *_, **__: fail(OSError("no forks")))
    with pytest.raises(WorkshopError, match="no forks"):
        LocalWorkers(config, 2)
    assert worker_processes() == before


@pytest.mark.parametrize(
    ("seconds", "cpu_ms", "limited_by"),
    [
        (4.0, 15.0, "database"),  # forty jobs, of which a few ran at once
        (0.5, 15.0, "generator"),
        (4.0, 90.0, "generator"),
    ],
)
def test_the_load_generator_was_the_limit_if_it_took_the_time_that_there_was(
    alone, monkeypatch, seconds, cpu_ms, limited_by
):
    monkeypatch.setattr(reports.psutil, "cpu_count", lambda: 2)
    done = Done(number=0, planned=1, success_count=1, duration_ms=100.0, cpu_ms=cpu_ms)
    how = {"run": "r", "seconds": seconds}
    report = reports.make_report(Here(alone), InsertLoad(), [done] * 40, 40, **how)
    assert report.limited_by == limited_by
    assert ("the load generator was the limit" in str(report)) is (limited_by == "generator")


def test_a_function_s_time_is_paid_for_by_its_memory(alone):
    done = Done(number=0, planned=1, success_count=1, duration_ms=60_000.0)
    report = reports.make_report(Here(alone), InsertLoad(), [done], 1, run="r", seconds=1.0)
    prices = load_prices()
    for memory, usd in ((1_024, 60 * prices.lambda_gb_second), (None, 0.0)):
        cost = load_cost(report, prices, function_mb=memory)
        assert cost.items["functions", "time"] == pytest.approx(usd)
