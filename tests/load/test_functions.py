"""The load worker as a Lambda function: its package, and the load tests that it does."""

import json
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
from helpers import fail, records
from lambda_service import EventSourceMapping, LambdaService

from workshop_lib.aws import lambda_package
from workshop_lib.aws.lambda_package import build_package
from workshop_lib.errors import SettingsError, WorkshopError
from workshop_lib.load import (
    ClientConfig,
    InsertLoad,
    LambdaWorkers,
    MixedScenario,
    Queue,
    delete_rows,
    drivers,
    handler,
    metrics_namespace,
    run_inserts,
    run_mixed,
    worker,
)
from workshop_lib.services import exports
from workshop_lib.services.processes import wait_until

WAIT_S = 60
CLUSTER = "abc.dsql.us-east-1.on.aws"
QUEUE = "https://sqs.us-east-1.amazonaws.com/123456789012/load"
KEYS = {"AWS_ACCESS_KEY_ID": "of-the-role", "AWS_SECRET_ACCESS_KEY": "of-the-role"}
PING = {"run": "ping", "number": 0, "action": "EVENTS", "statements": 0}
PROBE = """
import json, sys
from importlib.metadata import packages_distributions
from workshop_lib.load.worker import endpoints, handler, load_settings
known, database = packages_distributions(), endpoints.external_database(load_settings().values)
tops = {name.partition(".")[0] for name in sys.modules}
print(json.dumps({
    "user": [database.arguments[name] for name in ("user", "dbname", "port")],
    "token": database.token(),
    "imported": sorted(one for name in tops for one in known.get(name, ())),
}))
"""


# --- the package


def test_the_package_is_the_same_each_time_and_needs_only_what_is_put_in(tmp_path, monkeypatch):
    """Without the wheels: the tests of the stack run the function from its whole package."""
    monkeypatch.setattr(lambda_package, "_install", lambda *_: None)
    one, two = (build_package(tmp_path / "deep" / f"{n}.zip").read_bytes() for n in (1, 2))
    assert one == two
    with zipfile.ZipFile(tmp_path / "deep" / "1.zip") as archive:
        names = set(archive.namelist())
    assert {"workshop_lib/load/worker.py", "workshop_lib/load/__init__.pyi"} <= names
    assert not [n for n in names if not n.startswith("workshop_lib/")]
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=KEYS | {"AWS_REGION": "us-east-1", "DSQL_ENDPOINT": CLUSTER, "IAM_USERNAME": "loader",
                    "DATABASE_NAME": "shop", "AURORA_DSQL_PORT": "6432"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["user"] == ["loader", "shop", 6432]
    assert found["token"].startswith(f"{CLUSTER}/?Action=DbConnect&")
    # The handler imports none of what is large and not in the package.
    assert not {"pandas", "matplotlib", "moto", "papermill", "click"} & set(found["imported"])


def test_a_package_that_cannot_be_is_refused_in_words_and_not_written(tmp_path, monkeypatch):
    out = tmp_path / "x.zip"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(WorkshopError, match=r"for Python 3\.\d+ on Linux, arm64, could not be had"):
        build_package(out, architecture="arm64")
    assert list(tmp_path.iterdir()) == []


# --- the function


@pytest.fixture
def service(shop, monkeypatch):
    """A function of two execution environments, for a namespace that is not ours."""
    free = SimpleQueue()
    config = ClientConfig(shop.database.endpoint, "of_the_stack", messaging=shop.messaging)
    workers = [worker.Worker(config) for _ in range(2)]
    for one in workers:
        free.put(one)

    def call(event):
        one = free.get_nowait()
        try:
            return one.do(event)
        finally:
            free.put(one)

    function = LambdaService(call)
    for name, value in (KEYS | {"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", function.url)
    yield function
    function.close()
    for one in workers:
        one.close()


@pytest.fixture
def on_aws(shop, service, monkeypatch):
    """The workshop as on AWS: there is a function, and it processes the queue."""
    changed = shop.settings.model_copy(
        update={"load_function": service.name, "queue_url": QUEUE, "aws_region": "us-east-1"}
    )
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(shop, "settings", changed)
    return shop


@pytest.fixture
def driver(shop, service):
    with LambdaWorkers(service.name, 2, region="us-east-1") as driver:
        yield driver


def insert(shop, driver, **what):
    report = run_inserts(shop.database, InsertLoad(**what), driver)
    assert report.reconciles
    delete_rows(shop.database, report.run)
    return report


def test_the_function_s_executions_are_the_workers(on_aws):
    workers = on_aws.load_workers(2)
    assert isinstance(workers, LambdaWorkers)
    assert workers.label == "2 executions of the AWS Lambda function load-worker"
    assert workers.memory_mb == 512
    report = insert(on_aws, workers, workers=4, iterations=3, statements=2, rows=5, warm_up=1)
    # In our schema, and not in the stack's.
    assert (report.succeeded, report.in_table, report.successful) == (120, 120, 4)
    batch = records(
        *({"run": "hand", "number": 0, "action": action, "namespace": on_aws.namespace}
          for action in ("SELECT", "DANCE"))
    )  # fmt: skip
    answer = workers.do(batch, WAIT_S)
    assert answer["batchItemFailures"] == [{"itemIdentifier": "m1"}]


def test_the_function_processes_the_queue_and_its_metrics_are_ours(on_aws, service):
    assert on_aws.queue_function == service.name
    urls = on_aws.open_queue("by-function", visibility_timeout_s=4, max_receives=2)
    queue = Queue(on_aws.sqs, *urls)
    scenario = MixedScenario(
        duration_s=0.4, wait_s=0.2, messages_per_batch=2, statements_per_message=3, drain_s=20.0
    )
    mapping = EventSourceMapping(service, on_aws.sqs, queue.url)
    try:
        report = run_mixed(on_aws.database, queue, scenario, None)
    finally:
        mapping.close()
    assert report.reconciles
    assert (report.planned, report.succeeded, report.in_table) == (12, 12, 12)
    assert (report.redelivered, report.errors) == (None, ())
    found = on_aws.cloudwatch.list_metrics(Namespace=metrics_namespace(on_aws.namespace))
    assert {one["MetricName"] for one in found["Metrics"]} == {"COMPLETIONS", "DURATION"}
    delete_rows(on_aws.database, report.run)
    for url in urls:
        on_aws.sqs.delete_queue(QueueUrl=url)


def test_the_handler_reads_from_the_endpoint_that_its_environment_names(shop, monkeypatch):
    monkeypatch.setattr(worker, "_worker", None)
    monkeypatch.setenv("DATABASE_URL", exports(shop.settings, shop.endpoints)["DATABASE_URL"])
    # The name of the other endpoint leads to the same server.
    reader = shop.endpoints.database
    monkeypatch.setattr(worker.endpoints, "external_reader", lambda _: reader)
    context = SimpleNamespace(get_remaining_time_in_millis=lambda: 60_000)
    assert handler(PING, context)["reader"] == reader.host
    worker._worker.close()


def test_a_function_that_is_not_there_or_cannot_be_called_says_so(on_aws, monkeypatch):
    on_aws.settings = on_aws.settings.model_copy(update={"load_function": "nobody"})
    with pytest.raises(WorkshopError, match=r"not found.*LOAD_FUNCTION.*load_function=\"\""):
        on_aws.load_workers(2)
    for at_once in (0, 1_001):
        with pytest.raises(WorkshopError, match="from 1 to 1,000"):
            LambdaWorkers("f", at_once, region="us-east-1")
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    with pytest.raises(WorkshopError, match=r"function f did not get ready.*profile \(nosuch\)"):
        LambdaWorkers("f", 1)


def test_one_that_ends_in_mid_work_leaves_a_report_that_reconciles(shop, driver, service):
    """As where it is killed, or reaches its time limit: some of its rows are in the table."""
    call = service.function

    def end(event):
        if event["number"] == 1:
            call(event | {"statements": 3})
            fail(RuntimeError("Task timed out after 5.00 seconds"))
        return call(event)

    service.function = end
    report = insert(shop, driver, workers=2, iterations=10)
    assert "Task timed out after 5.00 seconds" in report.errors[0]
    assert sorted(report.jobs.state) == ["answered", "lost"]
    assert (report.succeeded, report.failed, report.in_table) == (13, 7, 13)


def test_an_interrupt_lets_functions_that_have_begun_end_and_begins_no_more(
    shop, driver, service, interrupt
):
    def press():
        assert wait_until(lambda: len(service.working) == 2, WAIT_S)
        interrupt()

    interrupter = threading.Thread(target=press)
    interrupter.start()
    report = insert(shop, driver, workers=5, iterations=100_000, time_limit_s=1.5)
    interrupter.join()
    assert report.interrupted
    assert report.failed == 0
    assert service.calls - 1 == (report.jobs.state == "answered").sum() == 2
    assert not service.working


def test_an_invocation_for_which_there_is_no_room_is_tried_again_and_given_up_in_time(
    driver, service, monkeypatch
):
    monkeypatch.setattr(drivers, "THROTTLED_S", 0.1)
    call, go_on = service.function, threading.Event()
    service.most, service.function = 1, lambda event: go_on.wait(WAIT_S) and call(event)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(driver.do, PING, WAIT_S)
        assert wait_until(lambda: service.working, WAIT_S)
        with pytest.raises(WorkshopError, match=r"TooManyRequestsException.*Rate Exceeded"):
            driver.do(PING, 0.5)
        calls = service.calls
        waits = threads.submit(driver.do, PING, WAIT_S)
        assert wait_until(lambda: service.calls > calls + 3, WAIT_S)
        assert not waits.done()
        go_on.set()
        assert [one.result(WAIT_S)["memory_mb"] for one in (first, waits)] == [512, 512]


def test_no_engine_is_started_for_a_worker_that_is_told_no_database(clean_environment, tmp_path):
    clean_environment.setenv("WORKSHOP_STATE_DIR", str(tmp_path / "state"))
    with pytest.raises(SettingsError, match=r"not told which database.*set DSQL_ENDPOINT"):
        handler(PING, None)
    assert not (tmp_path / "state").exists()
