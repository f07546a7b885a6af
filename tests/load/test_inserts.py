"""Insert loads against the real database: every planned row is accounted for, whatever happens."""

import contextlib
import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import psutil
import psycopg2
import pytest
from helpers import Here, fail, worker_processes
from psycopg2 import sql

from workshop_lib import dataset
from workshop_lib.errors import DataError, ServiceUnreachableError, WorkshopError
from workshop_lib.load import drivers, events, inserts
from workshop_lib.load.clients import ClientConfig
from workshop_lib.load.drivers import LocalWorkers, run_jobs
from workshop_lib.load.inserts import (
    compare_loads,
    count_by_worker,
    count_rows,
    delete_rows,
    run_inserts,
    save_reports,
)
from workshop_lib.load.jobs import InsertJob, Ping, Ready, to_event
from workshop_lib.load.scenario import InsertLoad
from workshop_lib.load.worker import Worker
from workshop_lib.services.processes import wait_until

SOON_S = 60.0


def job(**changes):
    return to_event(InsertJob(**{"run": "run", "worker": 0, "iterations": 3, "rows": 4} | changes))


def storm(database, driver, **what):
    report = run_inserts(database, InsertLoad(**what), driver, progress=False)
    assert report.planned == report.succeeded + report.failed + report.dropped
    return report


# --- what is stored


@pytest.mark.parametrize(
    "what",
    [
        {"workers": 3, "iterations": 2, "statements": 2, "rows": 10, "event_type": "Mixed"},
        {"workers": 2, "iterations": 2, "rows": 3_000, "how": "copy"},
    ],
)
def test_every_planned_row_is_in_the_table_and_goes_again(shop, pair, what, tmp_path):
    report = storm(shop.database, pair, **what, warm_up=2)
    workers, rows = what["workers"], report.planned
    assert rows == workers * what["iterations"] * what.get("statements", 1) * what["rows"]
    assert report.reconciles
    assert (report.succeeded, report.failed, report.dropped, report.unreported) == (rows, 0, 0, 0)
    assert (report.workers_succeeded, report.workers_failed) == (workers, 0)
    assert len(report.statements) == rows // what["rows"]  # without the warm-up's
    assert len(report.worker_durations_s) == len(report.invocations) == workers
    assert count_by_worker(shop.database, report.run) == dict.fromkeys(
        range(workers), rows // workers
    )
    assert "by 2 processes on this machine" in str(report)
    written = json.loads(save_reports({"one": report}, tmp_path).read_text())["scenarios"]["one"]
    assert written["workers"] == {"total": workers, "successful": workers, "failed": 0}
    assert (written["success_rate"], written["total_inserts"]) == (1.0, rows)
    assert written["throughput"] == pytest.approx(rows / written["duration_s"])
    for name in ("statement_ms", "latency_ms", "worker_duration_ms", "worker_throughput"):
        assert set(written[name]) == {"min", "max", "avg", "median", "p95", "p99"}
        assert written[name]["min"] <= written[name]["median"] <= written[name]["max"]
    assert compare_loads({"one": report}).loc["rows", "one"] == f"{rows:,}"
    other = storm(shop.database, pair, workers=1, iterations=2)
    assert delete_rows(shop.database, report.run) == rows + 2 * what["rows"]
    assert count_rows(shop.database, report.run) == 0
    assert count_rows(shop.database, other.run) == delete_rows(shop.database, other.run) == 2


def test_rows_are_what_the_generator_made_and_a_job_done_twice_stores_them_once(shop, alone):
    for how in ("insert", "copy"):
        asked = job(run=f"exact-{how}", event_type="Mixed", how=how)
        first, second = (alone.do(asked) for _ in range(2))
        assert (first["success_count"], first["already_there"]) == (12, 0)
        assert (second["success_count"], second["already_there"]) == (0, 12)
        assert len(first["latencies_us"]) == 3
        assert first["inserts_per_second"] == pytest.approx(12e3 / first["duration_ms"])
        found = shop.database.query(
            "SELECT id, event_name, event_type, event_data FROM business_events "
            "WHERE id LIKE %s ORDER BY id",
            (f"exact-{how}/%",),
        )
        place = f"exact-{how}/00000/0000002"
        ids = [f"{place}/{row:04d}" for row in range(4)]
        made = events("Mixed", iter(ids), place, datetime.now(UTC))
        for (key, name, entity, _, _, data), stored in zip(made, list(found)[8:], strict=True):
            assert stored == (key, name, entity, json.loads(data))
        assert delete_rows(shop.database, f"exact-{how}") == 12


def test_copy_takes_rows_for_stored_only_if_all_of_them_are(shop, alone):
    shop.database.query(
        "INSERT INTO business_events VALUES "
        "('part/00000/0000000/0001', 'e', 'e', now(), now(), '{}')"
    )
    answer = alone.do(job(run="part", iterations=2, rows=3, how="copy"))
    assert (answer["success_count"], answer["already_there"], answer["error_count"]) == (3, 0, 3)
    assert "duplicate key" in answer["errors"][0]
    assert delete_rows(shop.database, "part") == 4


def test_two_results_of_one_second_are_two_files(tmp_path):
    paths = {save_reports({}, tmp_path) for _ in range(5)}
    assert len(paths) == len(list(tmp_path.glob("results_*.json"))) == 5


# --- what goes wrong in a worker


def test_what_is_not_begun_in_time_is_dropped(alone, shop):
    answer = alone.do(job(run="late", iterations=1_000_000, time_limit_s=0.2))
    done = answer["success_count"]
    assert 0 < done < answer["planned"]
    assert answer["dropped"] == answer["planned"] - done
    assert delete_rows(shop.database, "late") == done
    # Lambda's remaining time is a limit as well.
    answer = alone.do(job(run="none"), until=time.monotonic() + 0.5)
    assert (answer["success_count"], answer["dropped"]) == (0, 12)


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ([], "object"),
        ({"job": "dance"}, "dance"),
        ({"job": "insert", "run": "r"}, "worker"),
        (job() | {"rows": 3_001}, "<= 3000"),
        (job() | {"run": "a/b"}, "regex"),
        ({"job": "ping", "namespace": 'a"; DROP'}, r"no job.*namespace"),
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
        answer = alone.do(job(run="constrained"))
    finally:
        shop.database.query("ALTER TABLE business_events DROP CONSTRAINT few")
    assert (answer["success_count"], answer["error_count"], answer["dropped"]) == (8, 4, 0)
    assert len(answer["errors"]) == 1
    assert "few" in answer["errors"][0]
    delete_rows(shop.database, "constrained")


@contextlib.contextmanager
def row_held(endpoint, schema, key):
    """Another transaction has written this row and not said whether it will keep it."""
    holder = psycopg2.connect(**endpoint.arguments)
    with holder.cursor() as cursor:
        cursor.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(schema)))
        cursor.execute("SET workshop.dsql_rules = 'off'")
        holder.commit()
        cursor.execute(
            "INSERT INTO business_events VALUES (%s, 'held', 'held', now(), now(), '{}')", (key,)
        )
    yield
    holder.close()


def test_a_conflict_is_tried_again_and_counted(shop, alone):
    with row_held(shop.database.endpoint, shop.namespace, "hot/00000/0000000/0000"):
        answer = alone.do(job(run="hot", iterations=1, time_limit_s=0.5))
    assert (answer["error_count"], answer["planned"]) == (4, 4)
    assert answer["conflicts"] >= 1
    assert alone.do(job(run="hot", iterations=1))["success_count"] == 4
    delete_rows(shop.database, "hot")


def test_a_statement_without_an_answer_is_given_up(shop):
    patient = replace(shop.database.endpoint, dsql_rules=False)  # there the second writer waits
    one = Worker(ClientConfig(patient, shop.namespace, statement_limit_s=0.3))
    with row_held(patient, shop.namespace, "stuck/00000/0000000/0000"):
        answer = one.do(job(run="stuck", iterations=2, time_limit_s=1.0))
    one.close()
    # The database was lost for the first statement, so the second was not begun.
    assert (answer["success_count"], answer["error_count"], answer["dropped"]) == (0, 4, 4)
    assert answer["reconnects"] >= 1


def test_a_database_that_restarts_costs_time_and_one_that_stays_away_ends_the_run(ws):
    box = ws.sandbox(database=True)
    dataset.create_table(box.database, "business_events")
    equipment = ClientConfig(box.database.endpoint, box.namespace)
    one = Worker(equipment)
    driver = Here(one)

    def restart():
        wait_until(lambda: box.database.query("SELECT 1 FROM business_events LIMIT 1").rows, SOON_S)
        box.stop("database")
        box.start("database")

    with ThreadPoolExecutor(1) as threads:
        restarted = threads.submit(restart)
        report = storm(box.database, driver, workers=1, iterations=10**6, rows=5, time_limit_s=5)
        restarted.result()
    assert report.reconciles
    assert report.reconnects >= 1
    assert (report.failed, report.succeeded > 0) == (0, True)
    box.stop("database")
    answer = one.do(job(run="away", iterations=50, time_limit_s=1.0))
    assert (answer["success_count"], answer["error_count"], answer["dropped"]) == (0, 4, 196)
    assert "No connection to the database" in answer["errors"][0]
    assert str(equipment.database.arguments["password"]) not in answer["errors"][0]
    one.close()
    driver.threads.shutdown()
    box.close()


# --- what goes wrong with a worker


def test_a_worker_that_is_killed_ends_in_a_report_that_reconciles(shop, pair, kill_a_worker):
    threading.Timer(1.0, kill_a_worker).start()
    report = storm(shop.database, pair, workers=4, iterations=10**6, rows=20, time_limit_s=2.5)
    assert report.reconciles
    assert (report.workers_succeeded, report.workers_failed) == (0, 4)
    assert any("killed" in error for error in report.errors)
    assert report.unreported > 0
    assert report.dropped > 0
    assert report.failed > 0
    delete_rows(shop.database, report.run)
    # There is a new process in its place.
    again = storm(shop.database, pair, workers=4, iterations=2)
    assert (again.succeeded, again.workers_failed) == (8, 0)
    delete_rows(shop.database, again.run)


def test_interrupt_ends_it_and_what_was_done_is_reported(shop, pair, interrupt):
    threading.Timer(1.0, interrupt).start()
    report = storm(shop.database, pair, workers=20, iterations=10**6, rows=5)
    assert report.reconciles
    assert report.interrupted
    assert report.dropped >= 18 * 5_000_000
    assert report.unreported == report.succeeded
    assert (report.failed, report.errors) == (0, ())
    assert "not finished or not begun" in str(report)
    delete_rows(shop.database, report.run)
    # The workers are there for the next run.
    again = storm(shop.database, pair, workers=2, iterations=2)
    assert again.succeeded == 4
    delete_rows(shop.database, again.run)


def test_rows_that_cannot_be_counted_are_said_to_be_unknown(shop, here, monkeypatch):
    monkeypatch.setattr(
        inserts, "count_by_worker", lambda *_: fail(ServiceUnreachableError("No answer."))
    )
    report = storm(shop.database, here, workers=2, iterations=3)
    assert (report.succeeded, report.unknown, report.in_table) == (6, 0, None)
    assert not report.reconciles
    assert report.errors[0] == "No answer."
    delete_rows(shop.database, report.run)


def test_another_function_s_answer_is_no_success(shop, here):
    here.spoil = lambda _: {"statusCode": 200, "body": "Hello from Lambda!"}
    report = storm(shop.database, here, workers=2, iterations=3)
    # It had stored them all the same: the table has the last word.
    assert (report.succeeded, report.unreported, report.workers_failed) == (6, 6, 2)
    assert "no answer of a load worker" in report.errors[0]
    assert report.reconciles
    delete_rows(shop.database, report.run)


def test_rows_that_are_committed_after_their_worker_was_lost_are_counted(shop, here, monkeypatch):
    here.spoil = lambda _: fail(RuntimeError("lost"))
    seen = iter([{}, {0: 1}, {0: 4}, {0: 4}])
    monkeypatch.setattr(inserts, "count_by_worker", lambda *_: next(seen))
    monkeypatch.setattr(inserts, "SETTLED_S", 0.0)
    report = storm(shop.database, here, workers=1, iterations=4)
    assert (report.succeeded, report.unreported, report.failed) == (4, 4, 0)
    assert report.reconciles
    delete_rows(shop.database, report.run)


def test_a_run_s_name_is_used_once_and_is_a_name(shop, here):
    load = InsertLoad(workers=1, iterations=2)
    run_inserts(shop.database, load, here, run="once", progress=False)
    with pytest.raises(DataError, match="2 rows of a run once already"):
        run_inserts(shop.database, load, here, run="once")
    delete_rows(shop.database, "once")
    for run in ("", "a/b"):
        with pytest.raises(DataError, match="not the name of a run"):
            delete_rows(shop.database, run)
    with pytest.raises(DataError, match="<= 3000"):
        run_inserts(shop.database, InsertLoad(rows=9_999), here)


# --- jobs and processes


class Instant:
    """A driver that needs so many seconds a job."""

    label, here = "instant", True

    def __init__(self, at_once=3, seconds=0.001):
        self.at_once, self.seconds, self.begun = at_once, seconds, 0
        self.threads = ThreadPoolExecutor(at_once)

    def start(self, event, limit_s):  # noqa: ARG002 -- as a driver is called
        self.begun += 1
        future = Future()
        future.set_running_or_notify_cancel()
        self.threads.submit(lambda: (time.sleep(self.seconds), future.set_result({"ready": True})))
        return future


def test_every_outcome_is_there_when_jobs_have_been_run():
    told = []
    found = run_jobs(Instant(), [Ping()] * 6, 1.0, told.append)
    assert [one.answer for one in found.each] == [Ready(ready=True)] * 6
    assert [one.number for one in found.each] == sorted(told) == list(range(6))
    assert not found.interrupted


@pytest.mark.parametrize("number", [1, 200])
def test_after_an_interrupt_each_job_is_counted_once(number, interrupt):
    driver = Instant()
    start = driver.start

    def interrupting(event, limit_s):
        if driver.begun == number - 1:
            interrupt()
        return start(event, limit_s)

    driver.start = interrupting
    found = run_jobs(driver, [Ping()] * 5_000, 1.0)
    assert found.interrupted
    assert [one.number for one in found.each] == list(range(5_000))
    assert number <= sum(one.begun for one in found.each) == driver.begun < 5_000


@pytest.mark.parametrize(("seconds", "answered"), [(0.6, True), (1.5, False)])
def test_jobs_that_cannot_be_stopped_are_begun_whatever_comes_of_them(
    monkeypatch, seconds, answered, interrupt
):
    monkeypatch.setattr(drivers, "GRACE_S", 0.4)
    threading.Timer(0.2, interrupt).start()
    driver = Instant(at_once=2, seconds=seconds)
    found = run_jobs(driver, [Ping()] * 5, 0.1 if not answered else 1.0)
    driver.threads.shutdown()
    assert found.interrupted
    assert [outcome.begun for outcome in found.each] == [True, True, False, False, False]
    assert [outcome.answer is not None for outcome in found.each[:2]] == [answered, answered]


def test_processes_are_few_know_how_to_keep_a_secret_and_leave_none_behind(equipment):
    for number in (0, 65, 2.5):
        with pytest.raises(WorkshopError, match="1 to 64"):
            LocalWorkers(equipment, at_once=number)
    before = set(psutil.Process().children(recursive=True))
    with LocalWorkers(equipment, at_once=1) as one:
        assert set(psutil.Process().children(recursive=True)) - before
        password = str(equipment.database.arguments["password"])
        assert password not in f"{one!r} {one.config!r}"
    assert [one for one in worker_processes() if one not in before] == []
