"""The books of a load test balance whatever fails on the way, and say what cannot be known."""

import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from workshop_lib import dataset
from workshop_lib.errors import DataError, ServiceUnreachableError, WorkshopError
from workshop_lib.load import inserts, mixed, streams
from workshop_lib.load.drivers import run_jobs
from workshop_lib.load.inserts import delete_rows, run_inserts, save_reports
from workshop_lib.load.jobs import InsertJob, Ping, to_event
from workshop_lib.load.means import Equipment
from workshop_lib.load.mixed import MixedScenario, Queue, run_mixed
from workshop_lib.load.rows import delete_transactions
from workshop_lib.load.scenario import Storm
from workshop_lib.load.streams import run_stream
from workshop_lib.load.worker import Worker

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


class Here:
    """A driver that works in this process; `spoil` may change what becomes of a batch."""

    label, at_once, here = "here", 1, True

    def __init__(self, worker, spoil=lambda answer: answer):
        self.worker, self.spoil = worker, spoil
        self.threads = ThreadPoolExecutor(1)

    def start(self, event, limit_s):  # noqa: ARG002 -- as a driver is called
        return self.threads.submit(lambda: self.spoil(self.worker.do(event)))


def fail(error):
    raise error


def after(number, fault):
    """The first answers are right."""
    return lambda n, real, asked: real() if n <= number else fault(n, real, asked)


def first(fault):
    """All answers but the first are right."""
    return lambda n, real, asked: fault(n, real, asked) if n == 1 else real()


@pytest.fixture
def queue(shop):
    opened = shop.open_queue("books", visibility_timeout_s=1, max_receives=2)
    yield Queue(shop.sqs, *opened)
    for url in opened:
        shop.sqs.delete_queue(QueueUrl=url)


@pytest.fixture
def here(shop):
    dataset.create_table(shop.database, "business_events")
    worker = Worker(Equipment(shop.database.endpoint, shop.namespace))
    driver = Here(worker)
    yield driver
    driver.threads.shutdown()
    worker.close()


def load(shop, queue, driver, changes=None, **faults):
    """A load of 18 messages over a queue with faults."""
    usual = {"duration_s": 0.4, "wait_s": 0.2, "messages_per_batch": 3, "statements_per_message": 2}
    usual |= {"visibility_timeout_s": 1, "max_receives": 2, "drain_s": 8.0}
    faulty = Queue(Sqs(queue.sqs, **faults), queue.url, queue.dead)
    report = run_mixed(shop.database, faulty, MixedScenario(**(usual | (changes or {}))), driver)
    assert report.planned == 18
    accounted = report.unsent + report.queued + report.unknown
    assert report.planned == report.succeeded + report.failed + accounted
    assert report.dropped == accounted
    shop.sqs.purge_queue(QueueUrl=queue.url)
    delete_transactions(shop.database, report.run)
    return report


SILENT = {
    "throttled": lambda *_: fail(THROTTLED),
    "broken": lambda *_: fail(BROKEN),
    "without numbers": lambda *_: {},
    "with one number": lambda *_: {"Attributes": {"ApproximateNumberOfMessages": "0"}},
    "empty for a moment": lambda *_: {
        "Attributes": {
            "ApproximateNumberOfMessages": "0",
            "ApproximateNumberOfMessagesNotVisible": "0",
        }
    },
}


@pytest.mark.parametrize("silent", SILENT.values(), ids=SILENT)
def test_a_queue_that_does_not_say_what_it_holds_ends_no_load_early(shop, queue, here, silent):
    report = load(shop, queue, here, get_queue_attributes=after(1, silent))
    assert (report.succeeded, report.dropped) == (18, 0)
    assert report.reconciles


@pytest.mark.parametrize("silent", SILENT.values(), ids=SILENT)
def test_what_nobody_worked_off_is_no_success_whatever_the_queue_says(shop, queue, silent):
    faults = {"get_queue_attributes": after(1, silent)}
    report = load(shop, queue, None, {"drain_s": 2.5}, **faults)
    assert (report.succeeded, report.unknown, report.in_table) == (0, 18, 0)
    assert "It is not known what became of 18." in str(report)


def test_what_is_left_is_said_to_be_in_the_queue(shop, queue):
    report = load(shop, queue, None, {"drain_s": 0.1})
    assert (report.succeeded, report.queued, report.unknown) == (0, 18, 0)
    assert "18 are still in the queue." in str(report)


def test_a_queue_that_cannot_be_looked_at_gets_no_message(shop, queue, here):
    faulty = Queue(
        Sqs(queue.sqs, get_queue_attributes=lambda *_: fail(THROTTLED)), *queue_of(queue)
    )
    with pytest.raises(WorkshopError, match=r"cannot be found out.*slower.*Nothing was sent"):
        run_mixed(shop.database, faulty, MixedScenario(), here)


def queue_of(queue):
    return queue.url, queue.dead


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        # Refused: certainly not sent. Broken before or after the queue had them: not known, but
        # what is worked off has been sent.
        (lambda *_: fail(THROTTLED), {"succeeded": 9, "unsent": 9, "unknown": 0}),
        (lambda *_: fail(BROKEN), {"succeeded": 9, "unsent": 0, "unknown": 9}),
        (lambda _, real, __: (real(), fail(BROKEN)), {"succeeded": 18, "unsent": 0, "unknown": 0}),
        (lambda *_: {"Successful": []}, {"succeeded": 9, "unsent": 0, "unknown": 9}),
    ],
)
def test_a_request_that_breaks_leaves_it_open_whether_messages_were_sent(
    shop, queue, here, fault, expected
):
    report = load(shop, queue, here, send_message_batch=first(fault))
    assert {name: getattr(report, name) for name in expected} == expected
    assert report.reconciles


@pytest.mark.parametrize(
    "fault",
    [
        lambda *_: fail(BROKEN),
        lambda _, __, asked: {
            "Failed": [{"Id": e["Id"], "Message": "no"} for e in asked["Entries"]]
        },
    ],
)
def test_what_could_not_be_deleted_comes_again_and_counts_once(shop, queue, here, fault):
    report = load(shop, queue, here, {"max_receives": 5}, delete_message_batch=first(fault))
    assert (report.succeeded, report.failed, report.dropped) == (18, 0, 0)
    assert report.redelivered >= 1
    assert report.in_table == report.rows_reported == 12


def test_failing_receives_cost_time_and_no_message(shop, queue, here):
    def flaky(number, real, _):
        return fail(THROTTLED) if number % 2 else real()

    report = load(shop, queue, here, receive_message=flaky)
    assert (report.succeeded, report.dropped) == (18, 0)


def test_messages_in_a_dead_letter_queue_that_cannot_be_read_are_unknown(shop, queue, here):
    def all_fail(answer):
        return {**answer, "batchItemFailures": [{"itemIdentifier": "all"}], "done": []}

    here.spoil = all_fail

    def unread(_, real, asked):
        return fail(THROTTLED) if asked["QueueUrl"] == queue.dead else real()

    # Nothing is said to be done, though it is deleted from the queue.
    report = load(shop, queue, here, {"drain_s": 1.0}, receive_message=unread)
    assert (report.succeeded, report.failed, report.unknown) == (0, 0, 18)


def test_a_worker_s_answer_that_is_none_is_no_success(shop, queue, here):
    here.spoil = lambda _: {"statusCode": 200}
    report = load(shop, queue, here, {"drain_s": 0.5})
    assert report.succeeded == 0
    assert report.dropped == 18


def test_a_table_that_cannot_be_counted_is_said_and_loses_no_report(shop, queue, here, monkeypatch):
    monkeypatch.setattr(
        mixed, "count_by_message", lambda *_: fail(ServiceUnreachableError("No answer."))
    )
    report = load(shop, queue, here)
    assert (report.succeeded, report.in_table, report.rows_unreported) == (18, None, None)
    assert not report.reconciles
    assert "The rows could not be counted." in str(report)


def test_a_worker_says_what_it_has(shop, monkeypatch):
    endpoint = shop.database.endpoint
    alone = Worker(Equipment(endpoint, shop.namespace))
    assert alone.do(to_event(Ping())) == {"ready": True}
    alone.close()
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
    function = Worker(Equipment(endpoint, shop.namespace, reader=endpoint))
    said = function.do(to_event(Ping()))
    function.close()
    assert said == {"ready": True, "memory_mb": 256, "reader": endpoint.host}


# --- storms and streams


def storm(shop, driver, **what):
    report = run_inserts(shop.database, Storm(**what), driver, progress=False)
    assert report.planned == report.succeeded + report.failed + report.dropped
    delete_rows(shop.database, report.run)
    return report


def test_a_storm_whose_rows_cannot_be_counted_is_reported_as_such(shop, here, monkeypatch):
    monkeypatch.setattr(
        inserts, "count_by_worker", lambda *_: fail(ServiceUnreachableError("No answer."))
    )
    report = storm(shop, here, workers=2, iterations=3)
    assert (report.succeeded, report.unknown, report.in_table) == (6, 0, None)
    assert not report.reconciles
    assert "could not be counted" in str(report)
    assert report.errors[0] == "No answer."


def test_another_function_s_answer_is_no_success(shop, here):
    here.spoil = lambda _: {"statusCode": 200, "body": "Hello from Lambda!"}
    report = storm(shop, here, workers=2, iterations=3)
    # It had stored them all the same: the table has the last word.
    assert (report.succeeded, report.unreported, report.workers_failed) == (6, 6, 2)
    assert "no answer of a load worker" in report.errors[0]
    assert report.reconciles


def test_rows_that_are_committed_after_their_worker_was_lost_are_counted(shop, here, monkeypatch):
    here.spoil = lambda _: fail(RuntimeError("lost"))
    seen = iter([{}, {0: 1}, {0: 4}, {0: 4}])
    monkeypatch.setattr(inserts, "count_by_worker", lambda *_: next(seen))
    monkeypatch.setattr(inserts, "SETTLED_S", 0.0)
    report = storm(shop, here, workers=1, iterations=4)
    assert (report.succeeded, report.unreported, report.failed) == (4, 4, 0)
    assert report.reconciles


def test_a_run_s_name_is_used_once(shop, here):
    run_inserts(shop.database, Storm(workers=1, iterations=2), here, run="once", progress=False)
    with pytest.raises(DataError, match="2 rows of a run once already"):
        run_inserts(shop.database, Storm(workers=1, iterations=2), here, run="once")
    delete_rows(shop.database, "once")


def test_copy_takes_rows_for_stored_only_if_all_of_them_are(shop, here):
    shop.database.query(
        "INSERT INTO business_events VALUES "
        "('part/00000/0000000/0001', 'e', 'e', now(), now(), '{}')"
    )
    job = InsertJob(run="part", worker=0, iterations=2, rows=3, how="copy")
    answer = here.worker.do(to_event(job))
    assert (answer["success_count"], answer["already_there"], answer["error_count"]) == (3, 0, 3)
    assert "duplicate key" in answer["errors"][0]
    assert delete_rows(shop.database, "part") == 4


def test_a_stream_whose_rows_cannot_be_counted_does_not_reconcile(shop, here, monkeypatch):
    monkeypatch.setattr(
        streams, "count_transactions", lambda *_: fail(ServiceUnreachableError("No answer."))
    )
    report = run_stream(shop.database, here, seconds=0.3, rate=40)
    assert report.succeeded == report.planned
    assert report.in_table is None
    assert not report.reconciles
    delete_transactions(shop.database, report.run)


def test_requests_of_a_worker_that_was_lost_are_unknown(shop, here):
    here.spoil = lambda _: fail(RuntimeError("lost"))
    report = run_stream(shop.database, here, seconds=0.3, rate=40)
    assert (report.succeeded, report.failed, report.unknown) == (0, report.planned, report.planned)
    assert report.reconciles
    delete_transactions(shop.database, report.run)


def test_two_results_of_one_second_are_two_files(tmp_path):
    paths = {save_reports({}, tmp_path) for _ in range(5)}
    assert len(paths) == len(list(tmp_path.glob("results_*.json"))) == 5


# --- jobs


class LateCallbacks(Future):
    """Whoever waits for it is woken before its callbacks run."""

    def add_done_callback(self, call):
        super().add_done_callback(lambda future: (time.sleep(0.02), call(future)))


class Instant:
    """A driver that needs no time; `refuse` are the numbers of jobs that cannot be begun."""

    label, at_once, here = "instant", 3, True

    def __init__(self, refuse=()):
        self.refuse, self.begun, self.threads = refuse, 0, ThreadPoolExecutor(3)

    def start(self, event, limit_s):  # noqa: ARG002 -- as a driver is called
        self.begun += 1
        if self.begun - 1 in self.refuse:
            raise RuntimeError("can't start new thread")
        future = LateCallbacks()
        future.set_running_or_notify_cancel()
        self.threads.submit(lambda: (time.sleep(0.01), future.set_result({"ready": True})))
        return future


def test_every_outcome_is_there_when_jobs_have_been_run():
    told = []
    found = run_jobs(Instant(), [Ping()] * 7, 1.0, told.append)
    assert [one.answer for one in found.each] == [{"ready": True}] * 7
    assert [one.number for one in found.each] == sorted(told) == list(range(7))
    assert not found.interrupted


def test_a_job_that_cannot_be_begun_fails_alone():
    found = run_jobs(Instant(refuse={1, 4}), [Ping()] * 6, 1.0)
    assert [bool(one.error) for one in found.each] == [False, True, False, False, True, False]
    assert "can't start new thread" in found.each[1].error


@pytest.mark.parametrize("number", [1, 3, 200])
def test_after_an_interrupt_each_job_is_counted_once(number):
    main = threading.main_thread().ident
    driver = Instant()
    start = driver.start

    def interrupt(event, limit_s):
        if driver.begun == number - 1:
            signal.pthread_kill(main, signal.SIGINT)
        return start(event, limit_s)

    driver.start = interrupt
    found = run_jobs(driver, [Ping()] * 5_000, 1.0)
    assert found.interrupted
    assert [one.number for one in found.each] == list(range(5_000))
    assert number <= sum(one.begun for one in found.each) == driver.begun < 5_000
