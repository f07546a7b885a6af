"""A mixed load through a queue: every message is accounted for, whatever happens on the way."""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import pandas as pd
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from helpers import fail, records

from workshop_lib.errors import DataError, ServiceUnreachableError, WorkshopError
from workshop_lib.load import messages, mixed
from workshop_lib.load.clients import ClientConfig
from workshop_lib.load.jobs import Message, Ping, to_event
from workshop_lib.load.mixed import MixedScenario, Queue, read_metrics, run_mixed
from workshop_lib.load.poison import follow_poison_message
from workshop_lib.load.rows import count_transactions, delete_transactions
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
NUMBERS = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]


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


@pytest.fixture
def none_can_be_inserted(shop):
    """Rows of load tests break a rule of the table."""
    shop.database.query(
        "ALTER TABLE transactions ADD CONSTRAINT none CHECK (id < 4611686018427387904) NOT VALID"
    )
    yield
    shop.database.query("ALTER TABLE transactions DROP CONSTRAINT none")


def scenario(**changes):
    usual = {"duration_s": 0.2, "wait_s": 0.1, "messages_per_batch": 3, "statements_per_message": 2}
    usual |= {"visibility_timeout_s": 1, "max_receives": 2, "drain_s": 60.0}
    return MixedScenario(**(usual | changes))


def load(shop, queue, driver, changes=None, **faults):
    """A load, by default of two rounds of nine messages, over a queue with faults."""
    faulty = Queue(Sqs(queue.sqs, **faults), queue.url, queue.dead)
    report = run_mixed(shop.database, faulty, scenario(**(changes or {})), driver)
    accounted = report.unsent + report.queued + report.unknown
    assert report.planned == report.succeeded + report.failed + accounted
    assert report.dropped == accounted
    shop.sqs.purge_queue(QueueUrl=queue.url)
    delete_transactions(shop.database, report.run)
    return report


def message(**changes):
    return {"run": 1, "number": 0, "action": "INSERT", "statements": 3} | changes


# --- the worker


def test_each_message_is_processed_by_itself_and_twice_stores_its_rows_once(
    shop, alone, monkeypatch
):
    monkeypatch.setitem(messages.STATEMENTS, "SELECT2", "SELECT no_such_column FROM transactions")
    batch = records(
        message(run=21),
        message(run=21, number=1, action="SELECT2"),
        message(run=21, number=2, action="SELECT", statements=2),
        "no JSON",
        message(action="DROP"),
        message(statements=0),
    )
    first, again = (alone.do(batch) for _ in range(2))
    failed = [f"m{n}" for n in (1, 3, 4, 5)]
    assert [f["itemIdentifier"] for f in first["batchItemFailures"]] == failed
    done = [(d["action"], d["rows"], len(d["durations_us"])) for d in first["done"]]
    assert done == [("INSERT", 3, 3), ("SELECT2", 0, 0), ("SELECT", 0, 2)]
    assert "no_such_column" in first["done"][1]["error"]
    assert first["metrics"] == ""
    assert again["done"][0]["rows"] == 0
    assert delete_transactions(shop.database, 21) == 3


def test_messages_that_there_is_no_time_for_go_back_to_the_queue(shop, alone):
    answer = alone.do(records(message(run=24)), until=time.monotonic() + 0.5)
    assert answer["batchItemFailures"] == [{"itemIdentifier": "m0"}]
    assert count_transactions(shop.database, 24) == 0


def test_think_time_is_outside_the_duration(shop, alone):
    began = time.perf_counter()
    answer = alone.do(records(message(run=25, think_ms=100.0)))
    took = time.perf_counter() - began
    assert took - sum(answer["done"][0]["durations_us"]) / 1e6 > 0.3
    delete_transactions(shop.database, 25)


def test_reads_go_to_the_endpoint_for_reads_and_a_worker_says_what_it_has(
    shop, equipment, monkeypatch
):
    # Another endpoint of the same data: here the same server, of which connections are counted.
    one = Worker(replace(equipment, reader=equipment.database))
    one.do(records(message(run=26), message(run=26, number=1, action="SELECT", target="reader")))
    assert one.clients.reader is not one.clients.database
    assert one.clients.reader.stats().connections == 1
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
    said = one.do(to_event(Ping()))
    assert said == {"ready": True, "memory_mb": 256, "reader": equipment.database.host}
    one.close()
    delete_transactions(shop.database, 26)


def test_lost_metrics_are_said_and_fail_nothing(shop, alone, monkeypatch):
    monkeypatch.setattr(alone.clients.cloudwatch, "put_metric_data", lambda **_: fail(THROTTLED))
    answer = alone.do(records(message(run=27)))
    assert answer["batchItemFailures"] == []
    assert "slower" in answer["metrics"]
    delete_transactions(shop.database, 27)


def test_a_worker_keeps_the_connections_of_few_namespaces(shop):
    one = Worker(ClientConfig(shop.database.endpoint, shop.namespace))
    counted = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    before = shop.database.query(counted)[0][0]
    for number in range(10):
        assert one.do({"job": "ping", "namespace": f"run_{number}"}) == {"ready": True}
    assert shop.database.query(counted)[0][0] - before <= 6  # the last one may be on its way out
    one.close()


# --- the whole


def test_every_message_is_processed_and_every_statement_is_in_the_metrics(shop, queue, pair):
    time.sleep(1.01 - time.time() % 1)  # metrics are kept by the second: one of its own
    began = datetime.now(UTC)
    # Two workers pause for longer than rounds wait: these are sent on time all the same.
    report = load(shop, queue, pair, {"think_ms": 100.0, "visibility_timeout_s": 30})
    assert report.reconciles
    assert (report.planned, report.succeeded, report.failed, report.dropped) == (18, 18, 0, 0)
    assert {action: len(found) for action, found in report.durations.items()} == {
        "SELECT": 12,
        "INSERT": 12,
        "SELECT2": 12,
    }
    assert report.rows_reported == report.in_table == 12
    assert sum(number for _, _, number in report.executions) >= 18
    assert max(waiting + flying for _, waiting, flying in report.depth) > 6
    metrics = read_metrics(shop.cloudwatch, shop.namespace, began, report.seconds + 1)
    if not report.redelivered:
        assert set(metrics.groupby("action").completions.sum()) == {12}
    assert (metrics[metrics.completions > 0].duration_ms > 0).all()


@pytest.mark.usefixtures("none_can_be_inserted")
def test_messages_that_always_fail_end_in_the_dead_letter_queue(shop, queue, here):
    report = load(shop, queue, here, {"duration_s": 0.1})
    assert report.reconciles
    assert (report.planned, report.succeeded, report.failed, report.dropped) == (9, 6, 3, 0)
    assert report.redelivered >= 3
    assert report.in_table == report.rows_reported == 0
    assert "none" in report.errors[0]


def test_a_worker_that_is_killed_costs_a_redelivery_and_no_message(shop, pair, kill_a_worker):
    urls = shop.open_queue("killed", visibility_timeout_s=5, max_receives=5)
    killer = threading.Timer(0.6, kill_a_worker)
    killer.start()
    # Both are busy all the time: each message pauses for 240 ms.
    report = load(
        shop, Queue(shop.sqs, *urls), pair, {"think_ms": 120.0, "visibility_timeout_s": 5}
    )
    killer.join()
    assert report.reconciles
    assert (report.succeeded, report.failed, report.dropped) == (18, 0, 0)
    assert report.redelivered >= 1
    assert any("killed" in error for error in report.errors)
    assert report.in_table == report.rows_reported == 12
    for url in urls:
        shop.sqs.delete_queue(QueueUrl=url)


def test_interrupt_ends_it_with_a_report(shop, queue, here, interrupt):
    def press():
        counted = "SELECT count(*) FROM transactions WHERE id >= 4611686018427387904"
        wait_until(lambda: shop.database.query(counted)[0][0] > 12, 60)
        interrupt()

    interrupter = threading.Thread(target=press)
    interrupter.start()
    report = load(shop, queue, here, {"duration_s": 60.0})
    interrupter.join()
    assert report.interrupted
    assert report.reconciles
    assert report.succeeded > 0
    assert report.dropped >= report.unsent > 1_000
    assert f"{report.unsent:,} were not sent." in str(report)


@pytest.mark.parametrize("worked_off", [True, False])
def test_an_emptied_queue_of_a_function_is_told_from_one_that_nobody_processes(
    shop, queue, alone, worked_off
):
    ended = threading.Event()

    def event_source_mapping():
        """What Lambda does on its own: receive, invoke, delete what did not fail."""
        while worked_off and not ended.is_set():
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
    report = load(shop, queue, None, {} if worked_off else {"drain_s": 0.1})
    ended.set()
    thread.join()
    assert report.by_others
    assert report.reconciles
    if worked_off:
        assert (report.succeeded, report.in_table, report.rows_reported) == (18, 12, 12)
    else:
        assert (report.succeeded, report.queued, report.unknown) == (0, 18, 0)
        assert "18 are still in the queue." in str(report)
        assert "Nobody worked off a message" in str(report)


# --- a queue that fails

EMPTY = {"Attributes": dict.fromkeys(NUMBERS, "0")}
SILENT = {
    "throttled": lambda *_: fail(THROTTLED),
    "without numbers": lambda *_: {},
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
    assert "It is not known what became of 18." in str(report)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        # Refused: certainly not sent. Broken before or after the queue had them: not known, but
        # what is processed has been sent.
        (lambda *_: fail(THROTTLED), {"succeeded": 9, "unsent": 9, "unknown": 0}),
        (lambda *_: fail(BROKEN), {"succeeded": 9, "unsent": 0, "unknown": 9}),
        (lambda _, real, __: (real(), fail(BROKEN)), {"succeeded": 18, "unsent": 0, "unknown": 0}),
    ],
)
def test_a_request_that_breaks_leaves_it_open_whether_messages_were_sent(
    shop, queue, here, fault, expected
):
    report = load(shop, queue, here, send_message_batch=at_first(fault))
    assert {name: getattr(report, name) for name in expected} == expected
    assert report.reconciles


def test_a_queue_that_loses_messages_is_told_by_how_many(shop, queue, here):
    def accept(_, __, asked):
        return {"Successful": [{"Id": entry["Id"]} for entry in asked["Entries"]]}

    report = load(shop, queue, here, {"drain_s": 2.0}, send_message_batch=at_first(accept))
    assert (report.succeeded, report.unknown, report.dropped) == (9, 9, 9)
    assert report.reconciles


def test_what_could_not_be_received_or_deleted_comes_again_and_counts_once(shop, queue, here):
    report = load(
        shop, queue, here, {"max_receives": 5},
        delete_message_batch=at_first(lambda *_: fail(BROKEN)),
        receive_message=lambda n, real, _: fail(THROTTLED) if n % 2 else real(),
    )  # fmt: skip
    assert (report.succeeded, report.failed, report.dropped) == (18, 0, 0)
    assert report.redelivered >= 1
    assert report.in_table == report.rows_reported == 12


def test_what_no_worker_said_is_done_is_no_success(shop, queue, here):
    here.spoil = lambda _: {"statusCode": 200}
    report = load(shop, queue, here, {"drain_s": 0.5})
    assert (report.succeeded, report.dropped) == (0, 18)


def test_a_table_that_cannot_be_counted_is_said_and_loses_no_report(shop, queue, here, monkeypatch):
    monkeypatch.setattr(
        mixed, "count_by_message", lambda *_: fail(ServiceUnreachableError("No answer."))
    )
    report = load(shop, queue, here)
    assert (report.succeeded, report.in_table, report.rows_unreported) == (18, None, None)
    assert not report.reconciles
    assert "The rows could not be counted." in str(report)


def test_a_queue_that_is_not_empty_or_does_not_say_so_is_refused(shop, queue, here):
    silent = Sqs(queue.sqs, get_queue_attributes=lambda *_: fail(THROTTLED))
    with pytest.raises(WorkshopError, match=r"cannot be found out.*slower.*Nothing was sent"):
        run_mixed(shop.database, Queue(silent, queue.url, queue.dead), scenario(), here)
    shop.sqs.send_message(QueueUrl=queue.url, MessageBody="of somebody else")
    with pytest.raises(WorkshopError, match="holds 1 messages already"):
        run_mixed(shop.database, queue, scenario(), here)


# --- on paper


def test_a_scenario_says_what_it_will_send_and_is_checked(shop, queue, here):
    made = scenario(duration_s=1.0, wait_s=0.25, reads_elsewhere=True).messages(5)
    assert [len(each) for each in made] == [9] * 4
    found = [one for each in made for one in each]
    assert [one.number for one in found] == list(range(36))
    assert {one.target for one in found if one.action == "INSERT"} == {"writer"}
    assert {one.target for one in found if one.action != "INSERT"} == {"reader"}
    assert isinstance(found[0], Message)
    for name, value in {"wait_s": 0.0, "statements_per_message": 1_001, "max_receives": 0}.items():
        with pytest.raises(DataError, match=name):
            run_mixed(shop.database, queue, scenario(**{name: value}), here)


def test_metrics_that_come_late_are_waited_for_and_given_up_in_the_end(shop, monkeypatch):
    monkeypatch.setattr(mixed, "ASK_AGAIN_S", 0.01)
    shown = iter([0, 40, 100])
    with monkeypatch.context() as patch:
        patch.setattr(
            mixed, "_read_metrics", lambda *_: pd.DataFrame({"completions": [next(shown)]})
        )
        asked, said = (shop.cloudwatch, "nobody", datetime.now(UTC), 1), []
        found = read_metrics(*asked, statements=100, say=said.append)
    assert found.completions.sum() == 100
    assert "shows 0 of 100 statements so far" in said[0]
    assert said[1].endswith("it shows 100 of 100.")
    assert len(read_metrics(*asked, statements=7, late_s=0.1, say=said.append)) == 0
    assert said[-1].endswith("it shows 0 of 7.")


class Pages:
    """A CloudWatch that answers in pages, or fails at one of them."""

    def __init__(self, *pages):
        self.pages = pages

    def get_paginator(self, _):
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


def test_metrics_that_come_in_pages_are_all_counted_and_none_that_cannot_be_read_is_zero():
    found = read_metrics(Pages(0, 3.0), "n", datetime.now(UTC), 1)
    assert found.completions.sum() == 9  # three actions, three of each
    denied = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "GetMetricData")
    with pytest.raises(ServiceUnreachableError, match=r"no metrics: .*AccessDenied"):
        read_metrics(Pages(3.0, denied), "n", datetime.now(UTC), 1)


# --- a message that always fails


def held(shop, url):
    found = shop.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=NUMBERS)["Attributes"]
    return sum(int(found[name]) for name in NUMBERS)


def test_a_poison_message_is_delivered_twice_then_set_aside_and_both_queues_are_empty(
    shop, queue, here
):
    rows = follow_poison_message(queue, here, message(action="DANCE"))
    assert list(rows["received from"]) == ["the queue", "the queue", "the dead-letter queue"]
    assert list(rows["delivery"]) == ["1", "2", ""]
    assert rows["seconds"].is_monotonic_increasing
    assert rows["seconds"][1] >= 1
    with pytest.raises(WorkshopError, match="Use one that fails"):
        follow_poison_message(queue, here, message(action="SELECT"))
    assert held(shop, queue.url) == held(shop, queue.dead) == 0


def test_where_that_would_take_too_long_it_is_said_and_nothing_is_sent(shop, here):
    urls, said = shop.open_queue("slow", visibility_timeout_s=720, max_receives=3), []
    assert len(follow_poison_message(Queue(shop.sqs, *urls), here, {}, say=said.append)) == 0
    assert "hides a message for 720 s" in said[0]
    assert held(shop, urls[0]) == 0
    for url in urls:
        shop.sqs.delete_queue(QueueUrl=url)
