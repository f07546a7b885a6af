"""Insert storms against the real database: every planned row is accounted for, whatever happens."""

import contextlib
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import psutil
import psycopg2
import pytest
from psycopg2 import sql

from workshop_lib import dataset
from workshop_lib.errors import DataError, WorkshopError
from workshop_lib.load import events, worker as workers_module
from workshop_lib.load.drivers import LocalWorkers, run_jobs
from workshop_lib.load.inserts import (
    compare_storms,
    count_by_worker,
    count_rows,
    delete_rows,
    run_inserts,
    save_reports,
)
from workshop_lib.load.jobs import InsertJob, Ping, to_event
from workshop_lib.load.scenario import Storm
from workshop_lib.load.worker import Equipment, Worker


@pytest.fixture(scope="module")
def shop(shared):
    dataset.create_schema(shared.database)
    dataset.create_table(shared.database, "business_events")
    return shared


@pytest.fixture(scope="module")
def pair(shop):
    with LocalWorkers(Equipment(shop.database.endpoint, shop.namespace), at_once=2) as pair:
        yield pair


@pytest.fixture
def alone(shop):
    one = Worker(Equipment(shop.database.endpoint, shop.namespace))
    yield one
    one.close()


def job(**changes):
    return to_event(InsertJob(**{"run": "run", "worker": 0, "iterations": 3, "rows": 4} | changes))


def storm(database, driver, **what):
    report = run_inserts(database, Storm(**what), driver, progress=False)
    assert report.reconciles
    assert report.planned == report.succeeded + report.failed + report.dropped
    assert report.in_table == report.succeeded
    return report


@pytest.mark.parametrize(
    ("what", "rows"),
    [
        ({"workers": 2, "iterations": 5}, 10),
        ({"workers": 5, "iterations": 2, "statements": 3}, 30),
        ({"workers": 2, "iterations": 2, "rows": 100, "event_type": "Mixed"}, 400),
        ({"workers": 2, "iterations": 2, "rows": 3_000}, 12_000),
        ({"workers": 2, "iterations": 3, "rows": 50, "how": "copy"}, 300),
    ],
)
def test_every_planned_row_is_in_the_table(shop, pair, what, rows):
    report = storm(shop.database, pair, **what)
    assert (report.planned, report.succeeded, report.failed, report.dropped) == (rows, rows, 0, 0)
    assert (report.workers_succeeded, report.workers_failed) == (what["workers"], 0)
    assert report.unreported == 0
    assert len(report.statements) == rows // what.get("rows", 1)
    assert len(report.worker_durations_s) == len(report.invocations) == what["workers"]
    share = rows // what["workers"]
    assert count_by_worker(shop.database, report.run) == dict.fromkeys(
        range(what["workers"]), share
    )
    assert delete_rows(shop.database, report.run) == rows
    assert count_rows(shop.database, report.run) == 0


def test_a_report_says_how_many_worked(shop, pair):
    report = storm(shop.database, pair, workers=1, iterations=1)
    assert "by 1 at a time of 2 processes on this machine" in str(report)
    delete_rows(shop.database, report.run)


def test_rows_are_what_the_generator_made(shop, alone):
    alone.do(job(run="exact", event_type="Mixed"))
    found = shop.database.query(
        "SELECT id, event_name, event_type, event_data FROM business_events "
        "WHERE id LIKE 'exact/%%' ORDER BY id"
    )
    assert len(found) == 12
    for number in range(3):
        place = f"exact/00000/{number:07d}"
        ids = [f"{place}/{row:04d}" for row in range(4)]
        made = events("Mixed", iter(ids), place, datetime.now(UTC))
        rows = found[4 * number : 4 * number + 4]
        for (key, name, entity, _, _, data), stored in zip(made, rows, strict=True):
            assert stored == (key, name, entity, json.loads(data))
    delete_rows(shop.database, "exact")


def test_the_warm_up_is_kept_out_of_the_figures_and_cleaned_up_with_the_rest(shop, pair):
    report = storm(shop.database, pair, workers=2, iterations=4, rows=10, warm_up=3)
    assert report.succeeded == 80
    assert len(report.statements) == 8
    assert count_rows(shop.database, report.run) == 110
    assert "by 2 processes on this machine" in str(report)
    assert delete_rows(shop.database, report.run) == 110


def test_a_run_s_rows_go_and_another_run_s_stay(shop, pair):
    one, two = (storm(shop.database, pair, workers=2, iterations=2) for _ in range(2))
    assert delete_rows(shop.database, one.run) == 4
    assert count_rows(shop.database, two.run) == 4
    assert delete_rows(shop.database, two.run) == 4
    assert delete_rows(shop.database, two.run) == 0


@pytest.mark.parametrize("run", ["", "a/b"])
def test_cleaning_up_needs_the_name_of_a_run(shop, run):
    with pytest.raises(DataError, match="not the name of a run"):
        delete_rows(shop.database, run)


@pytest.mark.parametrize("how", ["insert", "copy"])
def test_a_job_done_twice_stores_its_rows_once_and_says_so(shop, alone, how):
    first, second = (alone.do(job(run=f"twice-{how}", how=how)) for _ in range(2))
    assert (first["success_count"], first["already_there"]) == (12, 0)
    assert (second["success_count"], second["already_there"]) == (0, 12)
    assert delete_rows(shop.database, f"twice-{how}") == 12


def test_a_worker_says_what_it_was_asked_for(alone, shop):
    answer = alone.do(job(run="answer"))
    assert answer["planned"] == 12
    assert len(answer["latencies_us"]) == 3
    assert answer["inserts_per_second"] == pytest.approx(12e3 / answer["duration_ms"])
    assert answer["errors"] == []
    delete_rows(shop.database, "answer")


def test_what_is_not_begun_in_time_is_dropped(alone, shop):
    answer = alone.do(job(run="late", iterations=1_000_000, time_limit_s=0.2))
    done = answer["success_count"]
    assert 0 < done < answer["planned"]
    assert answer["dropped"] == answer["planned"] - done
    assert count_rows(shop.database, "late") == done
    delete_rows(shop.database, "late")


def test_lambda_s_remaining_time_is_a_limit_as_well(alone):
    answer = alone.do(job(run="none"), until=time.monotonic() + 0.5)
    assert (answer["success_count"], answer["dropped"]) == (0, 12)


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ({}, "job"),
        ([], "object"),
        ({"job": "dance"}, "dance"),
        ({"job": "insert", "run": "r"}, "worker"),
        ({"job": "ping", "extra": 1}, "extra"),
        (job() | {"rows": 3_001}, "<= 3000"),
        (job() | {"run": "a/b"}, "regex"),
        (job() | {"how": "merge"}, "merge"),
    ],
)
def test_what_is_no_job_is_refused_in_words(alone, event, says):
    with pytest.raises(WorkshopError, match=says):
        alone.do(event)


def test_the_handler_is_the_same_worker(shop, monkeypatch):
    monkeypatch.setattr(workers_module, "_worker", None)
    workers_module.equip(Equipment(shop.database.endpoint, shop.namespace))
    assert workers_module.handler(to_event(Ping())) == {"ready": True}
    answer = workers_module.handler(job(run="handled"))
    assert answer["success_count"] == 12
    workers_module._worker.close()
    delete_rows(shop.database, "handled")


def test_a_statement_that_fails_counts_its_rows_as_failed_and_the_rest_goes_on(shop, alone):
    with shop.database.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "ALTER TABLE business_events ADD CONSTRAINT few CHECK (id NOT LIKE '%/0000001/%')"
        )
    try:
        answer = alone.do(job(run="constrained"))
    finally:
        with shop.database.connection() as connection, connection.cursor() as cursor:
            cursor.execute("ALTER TABLE business_events DROP CONSTRAINT few")
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
    again = alone.do(job(run="hot", iterations=1))
    assert again["success_count"] == 4
    delete_rows(shop.database, "hot")


def test_a_statement_without_an_answer_is_given_up(shop):
    patient = replace(shop.database.endpoint, dsql_rules=False)  # there the second writer waits
    one = Worker(Equipment(patient, shop.namespace, statement_limit_s=0.3))
    with row_held(patient, shop.namespace, "stuck/00000/0000000/0000"):
        answer = one.do(job(run="stuck", iterations=2, time_limit_s=1.0))
    one.close()
    # The database was lost for the first statement, so the second was not begun.
    assert (answer["success_count"], answer["error_count"], answer["dropped"]) == (0, 4, 4)
    assert answer["reconnects"] >= 1


def test_a_worker_that_is_killed_ends_in_a_report_that_reconciles(shop):
    with LocalWorkers(Equipment(shop.database.endpoint, shop.namespace), at_once=2) as two:
        seen = threading.Event()

        def kill():
            before = {p.pid for p in psutil.Process().children(recursive=True)}
            while not seen.is_set():
                for process in psutil.Process().children(recursive=True):
                    busy = process.cpu_times().user > idle.get(process.pid, 1e9) + 0.15
                    if process.pid in before and busy:
                        os.kill(process.pid, signal.SIGKILL)
                        return
                time.sleep(0.01)

        idle = {
            p.pid: p.cpu_times().user
            for p in psutil.Process().children(recursive=True)
            if "spawn_main" in " ".join(p.cmdline())
        }
        thread = threading.Thread(target=kill)
        thread.start()
        report = storm(
            shop.database, two, workers=4, iterations=1_000_000, rows=20, time_limit_s=3.0
        )
        seen.set()
        thread.join()
        # The pool has a new process in its place.
        assert storm(shop.database, two, workers=2, iterations=2).succeeded == 4
    assert (report.workers_succeeded, report.workers_failed) == (0, 4)
    assert any("killed" in error for error in report.errors)
    assert report.unreported > 0
    assert report.dropped > 0
    assert report.failed > 0
    delete_rows(shop.database, report.run)


def test_a_database_that_restarts_costs_time_and_no_rows(ws):
    box = ws.sandbox(database=True)
    dataset.create_table(box.database, "business_events")
    with LocalWorkers(Equipment(box.database.endpoint, box.namespace), at_once=2) as two:
        ended = threading.Event()

        def restart():
            ended.wait(0.3)
            box.stop("database")
            box.start("database")

        thread = threading.Thread(target=restart)
        thread.start()
        report = storm(box.database, two, workers=2, iterations=1_000_000, rows=5, time_limit_s=4.0)
        thread.join()
    assert report.reconnects >= 1
    assert report.failed == 0
    assert report.succeeded > 0
    box.close()


def test_a_database_that_stays_away_ends_the_run_and_not_the_report(ws):
    box = ws.sandbox(database=True)
    dataset.create_table(box.database, "business_events")
    equipment = Equipment(box.database.endpoint, box.namespace)
    box.stop("database")
    one = Worker(equipment)
    answer = one.do(job(run="away", iterations=50, time_limit_s=1.0))
    one.close()
    box.close()
    assert (answer["success_count"], answer["error_count"], answer["dropped"]) == (0, 4, 196)
    assert "No connection to the database" in answer["errors"][0]
    assert str(equipment.database.arguments["password"]) not in answer["errors"][0]


def test_interrupt_ends_it_and_what_was_done_is_reported(shop, pair):
    main = threading.main_thread().ident
    timer = threading.Timer(1.0, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    report = storm(shop.database, pair, workers=20, iterations=1_000_000, rows=5, time_limit_s=60.0)
    assert report.interrupted
    assert report.dropped >= 18 * 5_000_000
    assert report.unreported == report.succeeded
    assert (report.failed, report.errors) == (0, ())
    assert "not finished or not begun" in str(report)
    # The workers are there for the next run.
    assert storm(shop.database, pair, workers=2, iterations=2).succeeded == 4
    delete_rows(shop.database, report.run)


@pytest.mark.parametrize("number", [0, 65, 2.5])
def test_a_number_of_processes_out_of_range_is_refused(shop, number):
    with pytest.raises(WorkshopError, match="1 to 64"):
        LocalWorkers(Equipment(shop.database.endpoint, shop.namespace), at_once=number)


def test_a_storm_out_of_range_is_refused_before_anything_runs(shop, pair):
    with pytest.raises(DataError, match="<= 3000"):
        run_inserts(shop.database, Storm(rows=9_999), pair)


def test_closing_leaves_no_process(shop):
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with LocalWorkers(Equipment(shop.database.endpoint, shop.namespace), at_once=2):
        assert len({p.pid for p in psutil.Process().children(recursive=True)} - before) >= 2
    left = {p.pid for p in psutil.Process().children(recursive=True)} - before
    assert {p for p in left if "spawn_main" in " ".join(psutil.Process(p).cmdline())} == set()


def test_passwords_stay_out_of_what_is_shown(shop, pair):
    password = str(shop.database.endpoint.arguments["password"])
    assert password not in repr(pair)
    assert password not in repr(pair.equipment)


def test_the_results_file_has_what_the_original_s_had_and_more(shop, pair, tmp_path):
    one = storm(shop.database, pair, workers=2, iterations=5)
    two = storm(shop.database, pair, workers=2, iterations=5, rows=10)
    path = save_reports({"individual inserts": one, "multi-row inserts": two}, tmp_path)
    assert path.name.startswith("results_")
    found = json.loads(path.read_text())["scenarios"]["multi-row inserts"]
    assert found["workers"] == {"total": 2, "successful": 2, "failed": 0}
    assert (found["success_rate"], found["total_inserts"], found["total_errors"]) == (1.0, 100, 0)
    assert found["throughput"] == pytest.approx(100 / found["duration_s"])
    for name in ("statement_ms", "latency_ms", "worker_duration_ms", "worker_throughput"):
        assert set(found[name]) == {"min", "max", "avg", "median", "p95", "p99"}
        assert found[name]["min"] <= found[name]["median"] <= found[name]["max"]
    assert found["generator"]["limited_by"] in {"database", "generator"}
    table = compare_storms({"one": one, "many": two})
    assert list(table.columns) == ["one", "many"]
    assert table.loc["rows", "many"] == "100"
    for report in (one, two):
        delete_rows(shop.database, report.run)


class _Slow:
    """A driver whose jobs cannot be stopped, as Lambda functions cannot."""

    label, at_once = "slow", 2

    def __init__(self, seconds):
        self.seconds, self.threads = seconds, ThreadPoolExecutor(2)

    def start(self, event, limit_s):  # noqa: ARG002 -- as a driver is called
        return self.threads.submit(self._work, event)

    def _work(self, event):
        time.sleep(self.seconds)
        return event


@pytest.mark.parametrize(("seconds", "answered"), [(1.0, True), (2.5, False)])
def test_jobs_that_cannot_be_stopped_are_begun_whatever_comes_of_them(
    monkeypatch, seconds, answered
):
    monkeypatch.setattr("workshop_lib.load.drivers.GRACE_S", 1.0)
    main = threading.main_thread().ident
    threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    driver = _Slow(seconds)
    found = run_jobs(driver, [Ping()] * 5, 0.2)
    driver.threads.shutdown()
    assert found.interrupted
    assert [outcome.begun for outcome in found.each] == [True, True, False, False, False]
    assert [outcome.answer is not None for outcome in found.each[:2]] == [answered, answered]
