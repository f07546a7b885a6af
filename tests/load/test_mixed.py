"""A mixed load through a queue: every message is accounted for, whatever happens on the way."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import pandas as pd
import psutil
import pytest
from botocore.exceptions import ClientError

from workshop_lib.errors import DataError, ServiceUnreachableError, WorkshopError
from workshop_lib.load import messages, mixed
from workshop_lib.load.drivers import LocalWorkers
from workshop_lib.load.jobs import Message
from workshop_lib.load.means import Equipment
from workshop_lib.load.mixed import MixedScenario, Queue, read_metrics, run_mixed
from workshop_lib.load.rows import count_transactions, delete_transactions
from workshop_lib.load.worker import Worker
from workshop_lib.services import local
from workshop_lib.services.engines import CloudEmulation
from workshop_lib.services.processes import wait_until


@pytest.fixture(scope="module")
def equipment(shop):
    return Equipment(shop.database.endpoint, shop.namespace, messaging=shop.messaging)


@pytest.fixture(scope="module")
def pair(equipment):
    with LocalWorkers(equipment, at_once=2) as pair:
        yield pair


@pytest.fixture
def alone(equipment):
    one = Worker(equipment)
    yield one
    one.close()


@pytest.fixture
def queue(shop):
    opened = shop.open_queue("mixed", visibility_timeout_s=10, max_receives=2)
    yield Queue(shop.sqs, *opened)
    for url in opened:
        shop.sqs.delete_queue(QueueUrl=url)


def scenario(**changes):
    usual = {"duration_s": 0.6, "wait_s": 0.2, "messages_per_batch": 2, "statements_per_message": 3}
    usual |= {"visibility_timeout_s": 10, "max_receives": 2, "drain_s": 60.0}
    return MixedScenario(**(usual | changes))


def run(shop, queue, driver, **changes):
    report = run_mixed(shop.database, queue, scenario(**changes), driver)
    assert report.reconciles
    assert report.planned == report.succeeded + report.failed + report.dropped
    assert report.in_table == report.rows_reported + report.rows_unreported
    return report


def records(*made):
    return {
        "Records": [
            {"messageId": f"m{n}", "body": one if isinstance(one, str) else json.dumps(one)}
            for n, one in enumerate(made)
        ]
    }


def message(**changes):
    made = {"run": 1, "number": 0, "action": "INSERT", "statements": 3}
    return made | changes


# --- the worker


def test_each_message_runs_its_statements_and_counts_new_rows(shop, alone):
    answer = alone.do(
        records(
            message(run=21),
            message(run=21, number=1, action="SELECT", statements=2),
            message(run=21, number=2, action="SELECT2", statements=1),
        )
    )
    assert answer["batchItemFailures"] == []
    assert [(d["action"], d["rows"], len(d["durations_us"])) for d in answer["done"]] == [
        ("INSERT", 3, 3),
        ("SELECT", 0, 2),
        ("SELECT2", 0, 1),
    ]
    assert answer["metrics"] == ""
    assert delete_transactions(shop.database, 21) == 3


def test_a_message_that_comes_twice_stores_its_rows_once(shop, alone):
    answers = [alone.do(records(message(run=22))) for _ in range(2)]
    assert [answer["done"][0]["rows"] for answer in answers] == [3, 0]
    assert all(answer["batchItemFailures"] == [] for answer in answers)
    assert delete_transactions(shop.database, 22) == 3


def test_one_message_that_fails_does_not_take_the_others_with_it(shop, alone, monkeypatch):
    monkeypatch.setitem(messages.STATEMENTS, "SELECT2", "SELECT no_such_column FROM transactions")
    actions = enumerate(("INSERT", "SELECT2", "SELECT"))
    answer = alone.do(records(*(message(run=23, number=n, action=a) for n, a in actions)))
    assert answer["batchItemFailures"] == [{"itemIdentifier": "m1"}]
    assert [bool(d["error"]) for d in answer["done"]] == [False, True, False]
    assert "no_such_column" in answer["done"][1]["error"]
    assert delete_transactions(shop.database, 23) == 3


@pytest.mark.parametrize(
    "body", ["no JSON", "{}", json.dumps(message(action="DROP")), json.dumps(message(statements=0))]
)
def test_what_is_no_message_of_ours_goes_back_to_the_queue(alone, body):
    answer = alone.do(records(body))
    assert answer["batchItemFailures"] == [{"itemIdentifier": "m0"}]
    assert answer["done"] == []


def test_messages_that_there_is_no_time_for_go_back_to_the_queue(shop, alone):
    answer = alone.do(records(message(run=24)), until=time.monotonic() + 0.5)
    assert answer["batchItemFailures"] == [{"itemIdentifier": "m0"}]
    assert count_transactions(shop.database, 24) == 0


def test_think_time_is_outside_the_transaction_and_the_duration(shop, alone):
    began = time.perf_counter()
    answer = alone.do(records(message(run=25, think_ms=200.0)))
    assert time.perf_counter() - began > 0.6
    assert sum(answer["done"][0]["durations_us"]) < 600_000
    with alone.means.database.connection() as connection:
        assert connection.autocommit
    delete_transactions(shop.database, 25)


def test_reads_go_to_the_endpoint_for_reads(shop, equipment):
    # Another endpoint of the same data: here the same server, of which connections are counted.
    one = Worker(replace(equipment, reader=equipment.database))
    one.do(records(message(run=26), message(run=26, number=1, action="SELECT", target="reader")))
    assert one.means.reader is not one.means.database
    assert one.means.reader.stats().connections == 1
    one.close()
    delete_transactions(shop.database, 26)


def test_lost_metrics_are_said_and_fail_nothing(shop, alone, monkeypatch):
    def refuse(**_):
        raise messages.ClientError({"Error": {"Code": "Throttling", "Message": "slower"}}, "Put")

    monkeypatch.setattr(alone.means.cloudwatch, "put_metric_data", refuse)
    answer = alone.do(records(message(run=27)))
    assert answer["batchItemFailures"] == []
    assert "slower" in answer["metrics"]
    delete_transactions(shop.database, 27)


# --- the whole


def test_every_message_is_worked_off_and_every_statement_is_in_the_metrics(shop, queue, pair):
    time.sleep(1.01 - time.time() % 1)  # metrics are kept by the second: one of its own
    began = datetime.now(UTC)
    report = run(shop, queue, pair)
    assert (report.planned, report.succeeded, report.failed, report.dropped) == (18, 18, 0, 0)
    assert report.redelivered == 0
    assert {action: len(found) for action, found in report.durations.items()} == {
        "SELECT": 18,
        "INSERT": 18,
        "SELECT2": 18,
    }
    assert report.rows_reported == report.in_table == 18
    assert sum(number for _, _, number in report.executions) == 18
    metrics = read_metrics(shop.cloudwatch, shop.namespace, began, report.seconds + 1)
    assert metrics.groupby("action").completions.sum().to_dict() == {
        "SELECT": 18,
        "INSERT": 18,
        "SELECT2": 18,
    }
    assert (metrics[metrics.completions > 0].duration_ms > 0).all()
    assert len(metrics) == 3 * metrics.second.nunique()
    assert delete_transactions(shop.database, report.run) == 18


def test_rounds_are_sent_on_time_whether_or_not_they_are_worked_off(shop, queue, pair):
    shop.open_queue("mixed", visibility_timeout_s=30, max_receives=2)
    report = run(shop, queue, pair, think_ms=100.0, messages_per_batch=4, visibility_timeout_s=30)
    assert report.succeeded == report.planned == 36
    # 36 messages × 3 pauses of 0.1 s by two workers: the queue cannot have been empty all along.
    assert max(waiting + flying for _, waiting, flying in report.depth) > 12
    delete_transactions(shop.database, report.run)


def test_messages_that_always_fail_end_in_the_dead_letter_queue(shop, queue, pair):
    # Their rows break a rule of the table, so they fail at each delivery.
    shop.open_queue("mixed", visibility_timeout_s=4, max_receives=2)
    shop.database.query(
        "ALTER TABLE transactions ADD CONSTRAINT none CHECK (id < 4611686018427387904) NOT VALID"
    )
    try:
        report = run(shop, queue, pair, duration_s=0.2, visibility_timeout_s=4)
    finally:
        shop.database.query("ALTER TABLE transactions DROP CONSTRAINT none")
    assert (report.planned, report.succeeded, report.failed, report.dropped) == (6, 4, 2, 0)
    assert report.redelivered == 2
    assert report.in_table == report.rows_reported == 0
    assert "none" in report.errors[0]


def test_a_worker_that_is_killed_costs_a_redelivery_and_no_message(shop, queue, equipment):
    shop.open_queue("mixed", visibility_timeout_s=10, max_receives=5)
    before = set(psutil.Process().children(recursive=True))
    with LocalWorkers(equipment, at_once=2) as two:
        victims = [
            process
            for process in set(psutil.Process().children(recursive=True)) - before
            if "spawn_main" in " ".join(process.cmdline())
        ]
        killer = threading.Timer(0.7, lambda: os.kill(victims[0].pid, signal.SIGKILL))
        killer.start()
        # Both are busy all the time: 18 messages × 3 pauses of 60 ms.
        report = run(
            shop, queue, two, think_ms=60.0, visibility_timeout_s=10, max_receives=5,
            duration_s=0.2, messages_per_batch=6,
        )  # fmt: skip
        killer.join()
    assert (report.succeeded, report.failed, report.dropped) == (18, 0, 0)
    assert report.redelivered >= 1
    assert any("killed" in error for error in report.errors)
    assert report.in_table == report.rows_reported == 18
    delete_transactions(shop.database, report.run)


def test_a_queue_that_is_killed_loses_messages_and_the_report_says_how_many(
    shop, queue, pair, state
):
    def kill():
        engines = local.status(state).engines
        report = next(one for one in engines if one.name == CloudEmulation.kind)
        os.kill(report.pid, signal.SIGKILL)

    killer = threading.Timer(0.5, kill)
    killer.start()
    report = run(shop, queue, pair, think_ms=100.0, drain_s=3.0, duration_s=1.5)
    killer.join()
    assert report.dropped > 0
    assert report.succeeded + report.dropped == report.planned
    assert report.errors
    delete_transactions(shop.database, report.run)
    # It is there again, and empty.
    shop.open_queue("mixed", visibility_timeout_s=10, max_receives=2)
    again = run(shop, queue, pair, duration_s=0.2)
    assert again.succeeded == again.planned
    delete_transactions(shop.database, again.run)


def all_transactions(database):
    return database.query("SELECT count(*) FROM transactions")[0][0]


def test_interrupt_ends_it_with_a_report(shop, queue, pair):
    main = threading.main_thread().ident

    def interrupt():
        # Each round has six: by the third, batches of the first have been answered.
        wait_until(lambda: all_transactions(shop.database) > before + 12, 60)
        signal.pthread_kill(main, signal.SIGINT)

    before = all_transactions(shop.database)
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    report = run(shop, queue, pair, duration_s=60.0)
    interrupter.join()
    assert report.interrupted
    assert report.succeeded > 0
    assert report.dropped > 1_000
    assert report.dropped >= report.unsent > 1_000
    assert f"{report.unsent:,} were not sent." in str(report)
    shop.sqs.purge_queue(QueueUrl=queue.url)
    delete_transactions(shop.database, report.run)


def test_a_queue_with_messages_of_others_is_refused(shop, queue, pair):
    shop.sqs.send_message(QueueUrl=queue.url, MessageBody="of somebody else")
    with pytest.raises(WorkshopError, match="holds 1 messages already"):
        run_mixed(shop.database, queue, scenario(), pair)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"wait_s": 0.0}, "wait_s"),
        ({"messages_per_batch": 0}, "messages_per_batch"),
        ({"statements_per_message": 1_001}, "statements_per_message"),
        ({"max_receives": 0}, "max_receives"),
    ],
)
def test_a_scenario_out_of_range_is_refused(shop, queue, pair, changes, says):
    with pytest.raises(DataError, match=says):
        run_mixed(shop.database, queue, scenario(**changes), pair)


def test_a_scenario_says_what_it_will_send():
    made = scenario(duration_s=1.0, wait_s=0.25, reads_elsewhere=True).messages(5)
    assert len(made) == 4
    assert [len(each) for each in made] == [6] * 4
    found = [one for each in made for one in each]
    assert [one.number for one in found] == list(range(24))
    assert {one.target for one in found if one.action == "INSERT"} == {"writer"}
    assert {one.target for one in found if one.action != "INSERT"} == {"reader"}
    assert isinstance(found[0], Message)


def test_a_function_that_the_queue_is_mapped_to_works_it_off(shop, queue, alone):
    ended = threading.Event()

    def event_source_mapping():
        """What Lambda does on its own: receive, invoke, delete what did not fail."""
        while not ended.is_set():
            found = shop.sqs.receive_message(
                QueueUrl=queue.url, MaxNumberOfMessages=10, WaitTimeSeconds=1
            ).get("Messages", [])
            made = [{"messageId": m["MessageId"], "body": m["Body"]} for m in found]
            failed = alone.do({"Records": made})["batchItemFailures"] if found else []
            for m in found:
                if {"itemIdentifier": m["MessageId"]} not in failed:
                    shop.sqs.delete_message(QueueUrl=queue.url, ReceiptHandle=m["ReceiptHandle"])

    thread = threading.Thread(target=event_source_mapping)
    thread.start()
    report = run(shop, queue, None)
    ended.set()
    thread.join()
    assert (report.planned, report.succeeded, report.failed, report.dropped) == (18, 18, 0, 0)
    assert report.in_table == report.rows_reported == 18
    delete_transactions(shop.database, report.run)


def test_a_queue_that_nobody_works_off_is_said_to_be_full(shop, queue):
    report = run(shop, queue, None, drain_s=0.5)
    assert (report.planned, report.succeeded, report.dropped) == (18, 0, 18)
    assert "Nobody worked off a message" in str(report)
    shop.sqs.purge_queue(QueueUrl=queue.url)


def test_metrics_that_come_late_are_waited_for_and_it_is_said(shop, monkeypatch):
    monkeypatch.setattr(mixed, "ASK_AGAIN_S", 0.01)
    shown = iter([0, 40, 100])
    monkeypatch.setattr(
        mixed, "_read_metrics", lambda *_: pd.DataFrame({"completions": [next(shown)]})
    )
    said = []
    found = read_metrics(
        shop.cloudwatch, shop.namespace, datetime.now(UTC), 1, statements=100, say=said.append
    )
    assert found.completions.sum() == 100
    assert len(said) == 2
    assert "shows 0 of 100 statements so far" in said[0]
    assert said[1].endswith("it shows 100 of 100.")


def test_metrics_that_do_not_come_are_given_up_and_it_is_said(shop):
    said = []
    found = read_metrics(
        shop.cloudwatch, "nobody", datetime.now(UTC), 1, statements=7, late_s=0.1, say=said.append
    )
    assert len(found) == 0
    assert said[-1].endswith("it shows 0 of 7.")


class Pages:
    """A CloudWatch that answers in pages, or fails at one of them."""

    def __init__(self, *pages):
        self.pages = pages

    def get_paginator(self, name):
        assert name == "get_metric_data"
        return self

    def paginate(self, **asked):
        for page in self.pages:
            if isinstance(page, Exception):
                raise page
            results = [
                {"Id": one["Id"], "Timestamps": [asked["StartTime"]], "Values": [page]}
                for one in asked["MetricDataQueries"]
                if one["Id"].startswith("completions")
            ]
            yield {"MetricDataResults": results[: int(page)]}


def test_metrics_that_come_in_pages_are_all_counted():
    found = read_metrics(Pages(0, 3.0), "n", datetime.now(UTC), 1)
    assert found.completions.sum() == 9  # three actions, three of each


def test_metrics_that_cannot_be_read_are_no_zeros():
    denied = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "GetMetricData")
    with pytest.raises(ServiceUnreachableError, match=r"no metrics: .*AccessDenied"):
        read_metrics(Pages(3.0, denied), "n", datetime.now(UTC), 1)
