"""Queues and metrics: the local emulation through its life, and the way to the real services."""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import boto3
import psutil
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from workshop_lib import Workshop, open_workshop
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.namespaces import wipe_namespace
from workshop_lib.queues import messaging_error
from workshop_lib.services import local, messaging_runs
from workshop_lib.services.processes import wait_until
from workshop_lib.services.state_folder import StateFolder, state_folder

QUEUE = "https://sqs.us-east-1.amazonaws.com/123456789012/load-test"
LABEL = "local emulation of SQS and CloudWatch (moto, in memory, signatures not checked)"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[StateFolder]:
    """This file's own state folder, in which no emulation runs at first."""
    folder = state_folder(tmp_path_factory.mktemp("messaging"))
    yield folder
    local.reset(folder)


@pytest.fixture
def workshops(home, tmp_path, monkeypatch):
    """Opens workshops in that folder, each with its own namespace; closes them all."""
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(home.path.parent))
    opened: list[Workshop] = []

    def open_one(**settings) -> Workshop:
        name = f"run_{secrets.token_hex(4)}_m"
        # The engines outlive each test, so that the next one finds them running.
        ours = {"workshop_namespace": name, "dsql_pool_min": 1, "workshop_linger_seconds": 60}
        file = tmp_path / f"{name}.json"
        opened.append(open_workshop(name, workshop_result_file=file, **{**ours, **settings}))
        return opened[-1]

    yield open_one
    for workshop in opened:
        workshop.close()


@pytest.fixture
def mq(workshops) -> Workshop:
    return workshops()


def report(folder):
    return next((one for one in local.status(folder).engines if one.name == "aws"), None)


def send(workshop, queue, *bodies):
    entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies)]
    found = workshop.sqs.send_message_batch(QueueUrl=queue, Entries=entries)
    assert (len(found["Successful"]), found["Failed"]) == (len(bodies), [])


def receive(workshop, queue):
    found = workshop.sqs.receive_message(QueueUrl=queue).get("Messages", [])
    return [message["Body"] for message in found]


def queues_of(workshop):
    found = workshop.sqs.list_queues(QueueNamePrefix=workshop.namespace).get("QueueUrls", [])
    return {url.rsplit("/", 1)[1].removeprefix(workshop.namespace) for url in found}


def test_it_is_started_by_the_first_use_and_by_nothing_else(home, mq):
    """The first test of the file: nothing has started it yet."""
    mq.wipe()
    assert not messaging_runs(mq.settings)
    assert (report(home), mq.result.services.get("messaging")) == (None, None)
    assert mq.sqs is mq.sqs
    assert (report(home).status, report(home).emulated) == ("up", True)
    assert mq.result.services["messaging"]["label"] == LABEL


def test_another_access_key_and_a_request_without_one_are_refused(mq):
    for changed in (
        {"aws_access_key_id": "0" * 40},
        {"config": Config(signature_version=UNSIGNED, proxies={})},
    ):
        client = boto3.client("sqs", **{**mq.messaging.arguments, **changed})
        with pytest.raises(ClientError) as refused:
            client.list_queues()
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


# --- what a queue promises ---


def test_a_message_that_is_never_deleted_goes_to_the_dead_letter_queue(mq):
    queue, dead = mq.open_queue("load", visibility_timeout_s=0, max_receives=2)
    assert queues_of(mq) == {"-load", "-load-dead"}
    send(mq, queue, "poison")
    assert [receive(mq, queue) for _ in range(3)] == [["poison"], ["poison"], []]
    assert receive(mq, dead) == ["poison"]


def test_many_threads_receive_every_message_once_though_some_wait(mq):
    queue, _ = mq.open_queue("load", visibility_timeout_s=30, max_receives=2)
    mq.sqs.list_queues()  # so that the client is whole before threads use it
    bodies: list[str] = []

    def work(_):
        ask = {"QueueUrl": queue, "MaxNumberOfMessages": 10, "WaitTimeSeconds": 1}
        while len(bodies) < 120:
            for message in mq.sqs.receive_message(**ask).get("Messages", []):
                for _ in range(2):  # deleting again is no error
                    mq.sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
                bodies.append(message["Body"])

    with ThreadPoolExecutor(5) as threads:
        receivers = threads.map(work, range(4))
        for start in range(0, 120, 10):
            send(mq, queue, *map(str, range(start, start + 10)))
        list(receivers)
    assert sorted(map(int, bodies)) == list(range(120))


def test_metrics_come_back_summed_and_what_moto_cannot_do_is_said_at_once(mq):
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=60)
    metric = {"MetricName": "latency", "Dimensions": [{"Name": "Run", "Value": mq.namespace}]}
    datum = {**metric, "Timestamp": start, "Values": [1.0, 2.0], "Counts": [3.0, 1.0]}
    mq.cloudwatch.put_metric_data(Namespace="Workshop", MetricData=[datum])

    def ask(stat):
        asked = {"Metric": {"Namespace": "Workshop", **metric}, "Period": 1, "Stat": stat}
        queries, end = [{"Id": "it", "MetricStat": asked}], start + timedelta(seconds=10)
        span = {"StartTime": start, "EndTime": end}
        found = mq.cloudwatch.get_metric_data(MetricDataQueries=queries, **span)
        return found["MetricDataResults"][0]["Values"]

    assert (ask("Sum"), ask("SampleCount"), ask("Average")) == ([5.0], [4.0], [1.25])
    with pytest.raises(ClientError, match="moto cannot do this"):
        ask("p99")


# --- side by side, and its end ---


def test_two_workshops_share_the_emulation_and_not_the_queues(workshops):
    one = workshops()
    two = workshops(workshop_namespace=f"{one.namespace}_2")  # whose name begins alike
    queues = [w.open_queue("load", visibility_timeout_s=30, max_receives=3)[0] for w in (one, two)]
    assert one.messaging.port == two.messaging.port
    send(one, queues[0], "for one")
    assert receive(two, queues[1]) == []
    wipe_namespace(one.namespace)
    assert queues_of(two) == {"-load", "-load-dead"}
    with pytest.raises(ClientError):
        receive(one, queues[0])


def test_a_killed_emulation_comes_back_empty_at_the_same_address(home, mq):
    queue, _ = mq.open_queue("load", visibility_timeout_s=30, max_receives=2)
    victim = report(home).pid
    os.kill(victim, signal.SIGKILL)
    assert wait_until(lambda: report(home).pid not in {0, victim}, 30.0)
    with pytest.raises(ClientError) as gone:
        send(mq, queue, "lost")
    assert "ws.open_queue(…) makes it again" in str(messaging_error(gone.value, mq.messaging))
    assert mq.open_queue("load", visibility_timeout_s=30, max_receives=3)[0] == queue
    send(mq, queue, "found")
    assert receive(mq, queue) == ["found"]


def test_a_stopped_emulation_is_a_clear_error_and_closing_leaves_no_process(home, workshops):
    local.stop(home)  # those before asked for an idle time
    mq = workshops(workshop_linger_seconds=0)
    mq.open_queue("load", visibility_timeout_s=30, max_receives=3)
    local.stop(home)
    with pytest.raises(ServiceUnreachableError, match="No answer from local emulation of SQS") as e:
        mq.open_queue("load", visibility_timeout_s=30, max_receives=3)
    assert "next open_workshop()" in str(e.value)
    mq = workshops(workshop_linger_seconds=0)
    assert mq.sqs
    pid = report(home).pid
    mq.close()
    assert local.wait_gone(home)
    assert not psutil.pid_exists(pid)


# --- on AWS ---


def test_the_given_queue_is_used_with_the_dead_letter_queue_that_it_names(
    clean_environment, mq, workshops
):
    """What goes to Amazon SQS ends at the emulation instead."""
    given = mq.messaging.arguments
    for name, value in {
        **{name.upper(): given[name] for name in ("aws_access_key_id", "aws_secret_access_key")},
        "AWS_ENDPOINT_URL_SQS": given["endpoint_url"],
        "AWS_REGION": "us-east-1",
        "QUEUE_URL": QUEUE,
        "WORKSHOP_STATE_DIR": str(mq.settings.workshop_state_dir),
    }.items():
        clean_environment.setenv(name, value)
    workshop = workshops()
    endpoint = workshop.messaging
    assert endpoint.label == "Amazon SQS and CloudWatch in us-east-1"
    assert (endpoint.embedded, endpoint.emulated, endpoint.tls) == (False, False, True)
    assert "123456789012" not in repr(endpoint)
    dead = mq.sqs.create_queue(QueueName="load-test-failed")["QueueUrl"]
    arn = "arn:aws:sqs:us-east-1:123456789012:load-test-failed"
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "4"})
    mq.sqs.create_queue(QueueName="load-test", Attributes={"RedrivePolicy": policy})
    opened = workshop.open_queue("anything", visibility_timeout_s=30, max_receives=3)
    assert opened == (QUEUE, dead)
    assert workshop.result.services["messaging"]["region"] == "us-east-1"
    workshop.wipe()
    assert len(mq.sqs.list_queues(QueueNamePrefix="load-test")["QueueUrls"]) == 2
