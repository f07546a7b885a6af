"""A mixed load through a queue: every message is accounted for, whatever happens on the way."""

import time
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from helpers import ALL_TRANSACTIONS, fail, records, when_more_than, worker_processes

from workshop_lib.errors import ServiceUnreachableError, WorkshopError
from workshop_lib.load import (
    ClientConfig,
    MixedScenario,
    Queue,
    count_rows,
    delete_rows,
    metrics_namespace,
    run as runs,
    run_mixed,
    traffic,
)
from workshop_lib.load.worker import Worker
from workshop_lib.services.processes import wait_until

THROTTLED = ClientError(
    {
        "Error": {"Code": "RequestThrottled", "Message": "slower"},
        "ResponseMetadata": {"HTTPStatusCode": 400},
    },
    "any",
)
BROKEN = EndpointConnectionError(endpoint_url="https://sqs")


class Sqs:
    """A queue some of whose answers are replaced: by call, what gets the real one and the words."""

    def __init__(self, real, **faults):
        self.real, self.faults = real, faults
        self.calls = dict.fromkeys(faults, 0)

    def __getattr__(self, name):
        real = getattr(self.real, name)
        if name not in self.faults:
            return real

        def call(**asked):
            self.calls[name] += 1
            return self.faults[name](self.calls[name], lambda: real(**asked), asked)

        return call


def after_the_first(fault):
    return lambda n, real, asked: real() if n <= 1 else fault(n, real, asked)


def at_first(fault):
    return lambda n, real, asked: fault(n, real, asked) if n == 1 else real()


def scenario(**changes):
    usual = {"duration_s": 0.2, "wait_s": 0.1, "messages_per_batch": 3, "statements_per_message": 2}
    return MixedScenario(**(usual | {"drain_s": 60.0} | changes))


def load(shop, queue, driver, changes=None, **faults):
    """A load, by default of two rounds of nine messages, over a queue with faults."""
    faulty = Queue(Sqs(queue.sqs, **faults), queue.url, queue.dead)
    report = run_mixed(shop.database, faulty, scenario(**(changes or {})), driver)
    assert report.planned == report.succeeded + report.failed + report.dropped
    shop.sqs.purge_queue(QueueUrl=queue.url)
    delete_rows(shop.database, report.run)
    return report


PING = {"run": "ping", "number": 0, "action": "EVENTS", "statements": 0}


def message(**changes):
    return {"run": "by-hand", "number": 0, "action": "INSERT", "statements": 3} | changes


# --- the worker


def test_each_message_is_processed_by_itself_and_twice_stores_its_rows_once(
    shop, alone, monkeypatch
):
    monkeypatch.setitem(traffic.STATEMENTS, "SELECT2", "SELECT no_such_column FROM transactions")
    batch = records(
        message(run="m21"),
        message(run="m21", number=1, action="SELECT2"),
        message(run="m21", number=2, action="SELECT", statements=2),
        "no JSON",
        message(action="DROP"),
        message(statements=-1),
    )
    first, again = (alone.do(batch) for _ in range(2))
    failed = [f["itemIdentifier"] for f in first["batchItemFailures"]]
    assert failed == [f"m{n}" for n in (1, 3, 4, 5)]
    done = [(d["number"], d["success_count"], d["error_count"]) for d in first["done"]]
    assert done == [(0, 3, 0), (1, 0, 3), (2, 2, 0)]
    assert "no_such_column" in first["done"][1]["errors"][0]
    assert again["batchItemFailures"] == first["batchItemFailures"]
    assert delete_rows(shop.database, "m21") == 3


def test_messages_that_there_is_no_time_for_go_back_to_the_queue(shop, alone):
    answer = alone.do(records(message(run="m24")), until=time.monotonic() + 0.5)
    assert answer["batchItemFailures"] == [{"itemIdentifier": "m0"}]
    assert count_rows(shop.database, "m24") == 0


def test_think_time_is_outside_the_duration(shop, alone):
    began = time.perf_counter()
    answer = alone.do(records(message(run="m25", think_ms=100.0)))
    took = time.perf_counter() - began
    assert took - sum(us for _, us in answer["done"][0]["calls"]) / 1e6 > 0.3
    delete_rows(shop.database, "m25")


def test_reads_go_to_the_endpoint_for_reads_and_nowhere_else_if_there_is_none(
    shop, config, alone, monkeypatch
):
    # Another endpoint of the same data: here the same server, of which connections are counted.
    one = Worker(replace(config, reader=config.database))
    read = message(run="m26", number=1, action="SELECT", target="reader")
    answer = one.do(records(message(run="m26"), read))
    assert answer["batchItemFailures"] == []
    assert one.reader.database.stats().connections == 1
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
    said = one.do(PING)
    assert (said["memory_mb"], said["reader"]) == (256, config.database.host)
    one.close()
    answer = alone.do(records(read))
    assert answer["batchItemFailures"] == [{"itemIdentifier": "m0"}]
    assert "DSQL_READ_ENDPOINT" in answer["done"][0]["errors"][0]
    delete_rows(shop.database, "m26")


def test_lost_metrics_are_said_and_fail_nothing(shop, alone, monkeypatch):
    monkeypatch.setattr(alone.cloudwatch, "put_metric_data", lambda **_: fail(THROTTLED))
    answer = alone.do(records(message(run="m27")))
    assert answer["batchItemFailures"] == []
    assert "slower" in answer["done"][0]["errors"][0]
    delete_rows(shop.database, "m27")


def test_a_worker_keeps_the_connections_of_one_namespace(shop):
    one = Worker(ClientConfig(shop.database.endpoint, shop.namespace))
    counted = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    before = shop.database.query(counted)[0][0]
    for number in range(10):
        assert one.do(PING | {"namespace": f"run_{number}"})["state"] == "answered"
    # What was closed may still be on its way out.
    assert wait_until(lambda: shop.database.query(counted)[0][0] - before <= 1, 60)
    one.close()


# --- the whole


def test_every_message_is_processed_and_every_statement_is_in_the_metrics(shop, queue, pair):
    # Two workers pause for longer than rounds wait: these are sent on time all the same.
    urls = shop.open_queue("load", visibility_timeout_s=30, max_receives=2)
    assert urls == (queue.url, queue.dead)
    report = load(shop, queue, pair, {"think_ms": 100.0})
    assert report.reconciles
    assert (report.planned, report.succeeded, report.failed, report.dropped) == (18, 18, 0, 0)
    counted = report.by_action().statements
    assert dict(counted) == {"SELECT": 12, "INSERT": 12, "SELECT2": 12}
    assert report.rows == report.in_table == 12
    assert (report.depth.waiting + report.depth.processed).max() > 6
    found = shop.cloudwatch.list_metrics(Namespace=metrics_namespace(shop.namespace))
    assert {one["MetricName"] for one in found["Metrics"]} == {"COMPLETIONS", "DURATION"}


@pytest.fixture
def none_can_be_inserted(shop):
    """Rows of load tests break a rule of the table."""
    shop.database.query(
        "ALTER TABLE transactions ADD CONSTRAINT none CHECK (id < 4611686018427387904) NOT VALID"
    )
    yield
    shop.database.query("ALTER TABLE transactions DROP CONSTRAINT none")


@pytest.mark.usefixtures("none_can_be_inserted")
def test_messages_that_always_fail_end_in_the_dead_letter_queue(shop, queue, here):
    report = load(shop, queue, here, {"duration_s": 0.1})
    assert report.reconciles
    assert (report.planned, report.succeeded, report.failed, report.dropped) == (9, 6, 3, 0)
    assert report.redelivered >= 3
    assert report.in_table == report.rows == 0
    assert "none" in report.errors[0]


def test_workers_that_are_killed_cost_a_redelivery_and_no_message(shop, pair):
    urls = shop.open_queue("killed", visibility_timeout_s=10, max_receives=5)

    def kill():
        for worker in worker_processes():  # one of them is busy
            worker.kill()

    killer = when_more_than(shop, 0, ALL_TRANSACTIONS, kill)
    report = load(shop, Queue(shop.sqs, *urls), pair, {"think_ms": 120.0})
    killer.join()
    assert report.reconciles
    assert (report.succeeded, report.failed, report.dropped) == (18, 0, 0)
    assert report.redelivered >= 1
    assert any("killed" in error for error in report.errors)
    assert report.in_table == report.rows == 12
    for url in urls:
        shop.sqs.delete_queue(QueueUrl=url)


def test_interrupt_ends_it_with_a_report(shop, queue, here, interrupt):
    interrupter = when_more_than(shop, 12, ALL_TRANSACTIONS, interrupt)
    report = load(shop, queue, here, {"duration_s": 60.0})
    interrupter.join()
    assert report.interrupted
    assert report.reconciles
    assert report.succeeded > 0
    assert report.dropped > 1_000


# --- a queue that fails

EMPTY = {"Attributes": dict.fromkeys(runs.NUMBERS, "0")}
SILENT = {
    "throttled": lambda *_: fail(THROTTLED),
    "empty for a moment": lambda *_: EMPTY,
}


@pytest.mark.parametrize("silent", SILENT.values(), ids=SILENT)
def test_a_queue_that_does_not_say_what_it_holds_ends_no_load_early(shop, queue, here, silent):
    report = load(shop, queue, here, get_queue_attributes=after_the_first(silent))
    assert (report.succeeded, report.dropped) == (18, 0)
    assert report.reconciles


def test_what_nobody_processed_is_no_success_whatever_the_queue_says(shop, queue):
    faults = {"get_queue_attributes": after_the_first(SILENT["empty for a moment"])}
    report = load(shop, queue, None, {"drain_s": 2.5}, **faults)
    assert (report.succeeded, report.unknown, report.in_table) == (0, 18, 0)
    assert "Of these, 18 may have been done" in str(report)
    assert "Nothing processed a message" in str(report)


LOSES = {"Successful": [{"Id": str(number)} for number in range(9)]}
REFUSES = {"Failed": [{"Id": str(number), "Message": "no"} for number in range(9)]}


@pytest.mark.parametrize(
    ("fault", "drain_s", "expected"),
    [
        # Refused: certainly not sent. Broken before or after the queue had them, or lost by it: not
        # known, but what is processed has been sent. What will never come is not waited for long.
        (lambda *_: REFUSES, 60, {"succeeded": 9, "dropped": 9, "unknown": 0}),
        (lambda *_: fail(BROKEN), 6, {"succeeded": 9, "failed": 9, "unknown": 9}),
        (lambda *_: LOSES, 6, {"succeeded": 9, "failed": 9, "unknown": 9}),
        (
            lambda _, real, __: (real(), fail(BROKEN)),
            60,
            {"succeeded": 18, "failed": 0, "unknown": 0},
        ),
    ],
    ids=["refused", "broken", "lost", "broken afterwards"],
)
def test_a_request_that_breaks_leaves_it_open_whether_messages_were_sent(
    shop, queue, here, fault, drain_s, expected
):
    report = load(shop, queue, here, {"drain_s": drain_s}, send_message_batch=at_first(fault))
    assert {name: getattr(report, name) for name in expected} == expected
    assert report.reconciles


def test_what_could_not_be_received_or_deleted_comes_again_and_counts_once(shop, queue, here):
    shop.open_queue("load", visibility_timeout_s=1, max_receives=5)
    report = load(
        shop, queue, here,
        delete_message_batch=at_first(lambda *_: fail(BROKEN)),
        receive_message=lambda n, real, _: fail(THROTTLED) if n % 2 else real(),
    )  # fmt: skip
    assert (report.succeeded, report.failed, report.dropped) == (18, 0, 0)
    assert report.redelivered >= 1
    assert report.in_table == report.rows == 12


def test_what_no_worker_said_is_done_is_no_success(shop, queue, here):
    here.spoil = lambda _: {"statusCode": 200}
    report = load(shop, queue, here, {"drain_s": 0.5})
    assert (report.succeeded, report.unknown) == (0, 18)


def test_a_table_that_cannot_be_counted_is_said_and_loses_no_report(shop, queue, here, monkeypatch):
    monkeypatch.setattr(
        runs, "count_by_message", lambda *_: fail(ServiceUnreachableError("No answer."))
    )
    report = load(shop, queue, here)
    assert (report.succeeded, report.in_table) == (18, None)
    assert not report.reconciles
    assert "could not be counted" in str(report)


def test_a_queue_that_is_not_empty_or_does_not_say_so_is_refused(shop, queue, here):
    silent = Sqs(queue.sqs, get_queue_attributes=lambda *_: fail(THROTTLED))
    with pytest.raises(WorkshopError, match=r"slower.*nothing was sent"):
        run_mixed(shop.database, Queue(silent, queue.url, queue.dead), scenario(), here)
    shop.sqs.send_message(QueueUrl=queue.url, MessageBody="of another program")
    with pytest.raises(WorkshopError, match="holds 1 messages already"):
        run_mixed(shop.database, queue, scenario(), here)
