"""A workshop whose load tests are done by a Lambda function, which has a namespace of its own."""

import json
import sys
import time
from datetime import UTC, datetime

import pytest
from lambda_runtime import EventSourceMapping, LambdaService

from workshop_lib.errors import WorkshopError
from workshop_lib.load.drivers import LambdaWorkers, LocalWorkers
from workshop_lib.load.inserts import delete_rows, run_inserts
from workshop_lib.load.mixed import MixedScenario, Queue, read_metrics, run_mixed
from workshop_lib.load.package import HANDLER
from workshop_lib.load.rows import delete_transactions
from workshop_lib.load.scenario import Storm
from workshop_lib.load.streams import run_stream, warm_cache
from workshop_lib.services import exports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Lambda's runtime is for Linux")

QUEUE = "https://sqs.us-east-1.amazonaws.com/123456789012/load"
MARK = "sitecustomize_was_here"


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory):
    """A folder whose sitecustomize an environment imports before all else."""
    folder = tmp_path_factory.mktemp("further")
    (folder / "sitecustomize.py").write_text(f"print({MARK!r}, flush=True)\n")
    return folder


@pytest.fixture(scope="module")
def service(shop, task, runtime, preloaded, tmp_path_factory):
    """The function of a stack: told where everything is, and a namespace that is not ours."""
    addresses = exports(shop.settings, shop.endpoints)
    messaging = shop.messaging.arguments
    settings = {
        "DATABASE_URL": addresses["DATABASE_URL"],
        "VALKEY_URL": addresses["VALKEY_URL"],
        "QUEUE_URL": QUEUE,
        "WORKSHOP_NAMESPACE": "of_the_stack",
        # The queue of that name is the emulation's.
        "AWS_ENDPOINT_URL_SQS": messaging["endpoint_url"],
        "AWS_ENDPOINT_URL_CLOUDWATCH": messaging["endpoint_url"],
        "AWS_ACCESS_KEY_ID": messaging["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": messaging["aws_secret_access_key"],
    }
    function = LambdaService(
        task,
        runtime,
        tmp_path_factory.mktemp("function"),
        settings,
        handler=HANDLER,
        paths=[preloaded],
        preload="sitecustomize",
    )
    yield function
    function.close()
    sys.stdout.write(function.logs())


@pytest.fixture
def on_aws(shop, service, monkeypatch):
    """The workshop as on AWS: there is a function, and it works off the queue."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", service.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-notebook")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-notebook")
    changed = shop.settings.model_copy(
        update={"load_function": service.name, "queue_url": QUEUE, "aws_region": "us-east-1"}
    )
    monkeypatch.setattr(shop, "settings", changed)
    yield shop
    if shop._workers is not None:
        shop._workers.close()
        shop._workers = None


@pytest.fixture
def queue(shop):
    opened = shop.open_queue("by-function", visibility_timeout_s=4, max_receives=2)
    yield Queue(shop.sqs, *opened)
    for url in opened:
        shop.sqs.delete_queue(QueueUrl=url)


@pytest.fixture
def mapped(service, shop, queue):
    mapping = EventSourceMapping(service, shop.sqs, queue.url)
    yield queue
    mapping.close()
    assert max(mapping.batches, default=0) <= 10


def scenario(**changes):
    usual = {"duration_s": 0.6, "wait_s": 0.2, "messages_per_batch": 2, "statements_per_message": 3}
    return MixedScenario(**({**usual, "drain_s": 20.0} | changes))


def metrics_of_a_second_of_their_own():
    time.sleep(1.01 - time.time() % 1)
    return datetime.now(UTC)


def test_the_functions_executions_are_the_workers(on_aws, service):
    workers = on_aws.load_workers(2)
    assert isinstance(workers, LambdaWorkers)
    assert workers.label == "2 executions of the AWS Lambda function load-worker"
    assert len(service.working()) == 0
    assert 1 <= len(service.environments) <= 2
    assert MARK in service.logs()
    report = run_inserts(on_aws.database, Storm(workers=2, iterations=3, rows=5), workers)
    assert report.reconciles
    assert report.in_table == 30  # in our schema, and not in the stack's
    assert str(report).endswith("by 2 executions of the AWS Lambda function load-worker.")
    delete_rows(on_aws.database, report.run)


def test_a_job_made_by_hand_is_for_the_workshop_s_namespace_too(on_aws):
    workers = on_aws.load_workers(1)
    job = {"job": "insert", "run": "hand", "worker": 0, "iterations": 2}
    assert workers.start(job, 60).result()["success_count"] == 2
    assert delete_rows(on_aws.database, "hand") == 2


def test_a_stream_by_function_uses_the_cache(on_aws, ws):
    workers = on_aws.load_workers(1)
    assert warm_cache(workers, 30) == 101
    assert on_aws.inventory()["keys"] == 101
    report = run_stream(on_aws.database, workers, seconds=0.6, rate=50, ttl_s=30)
    assert report.reconciles
    assert report.hit_ratio > 0.7
    delete_transactions(on_aws.database, report.run)
    assert on_aws.clear_cache() == 101


def test_a_cache_of_ones_own_is_for_processes_here(on_aws):
    workers = on_aws.load_workers(1, cache=on_aws.endpoints.cache.arguments)
    assert isinstance(workers, LocalWorkers)
    assert on_aws.load_workers(1).label == "1 execution of the AWS Lambda function load-worker"


def test_a_function_that_is_not_there_is_an_error_that_says_what_names_it(on_aws):
    on_aws.settings = on_aws.settings.model_copy(update={"load_function": "nobody"})
    with pytest.raises(WorkshopError, match=r"not found.*LOAD_FUNCTION.*load_function=\"\""):
        on_aws.load_workers(2)
    assert on_aws._workers is None


def test_who_works_the_queue_off(on_aws, service):
    assert on_aws.queue_function == service.name
    on_aws.settings = on_aws.settings.model_copy(update={"queue_url": None})
    assert not on_aws.queue_function


def test_the_function_works_the_queue_off_and_its_metrics_are_ours(on_aws, mapped):
    began = metrics_of_a_second_of_their_own()
    report = run_mixed(on_aws.database, mapped, scenario(), None)
    assert report.reconciles
    assert report.by_others
    assert (report.planned, report.succeeded, report.failed, report.dropped) == (18, 18, 0, 0)
    assert report.in_table == report.rows_reported == 18
    assert report.redelivered is None
    assert not report.errors
    assert report.describe()["executions"] is None
    found = read_metrics(
        on_aws.cloudwatch, on_aws.namespace, began, report.seconds, statements=report.statements
    )
    assert found.completions.sum() == report.statements == 54
    delete_transactions(on_aws.database, report.run)


def test_what_the_function_cannot_work_off_ends_in_the_dead_letter_queue(on_aws, mapped):
    on_aws.database.query(
        "ALTER TABLE transactions ADD CONSTRAINT none CHECK (id < 4611686018427387904) NOT VALID"
    )
    try:
        report = run_mixed(on_aws.database, mapped, scenario(duration_s=0.2), None)
    finally:
        on_aws.database.query("ALTER TABLE transactions DROP CONSTRAINT none")
    assert report.reconciles
    assert (report.planned, report.succeeded, report.failed, report.dropped) == (6, 4, 2, 0)
    assert report.in_table == 0


def test_a_batch_with_a_bad_message_can_be_handed_to_the_function(on_aws):
    workers = on_aws.load_workers(1)
    good = {"run": 1, "number": 0, "action": "SELECT", "namespace": on_aws.namespace}
    bodies = [good, {**good, "action": "DANCE"}]
    records = [{"messageId": f"m{n}", "body": json.dumps(body)} for n, body in enumerate(bodies)]
    answer = workers.start({"Records": records}, 30).result()
    assert answer["batchItemFailures"] == [{"itemIdentifier": "m1"}]
    assert len(answer["done"]) == 1
