"""Queues and metrics: the local emulation through its life, and the way to the real services."""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError, ConnectionError as NoConnectionError

from workshop_lib import Workshop, open_workshop
from workshop_lib.errors import ServiceUnreachableError, SettingsError
from workshop_lib.messaging import messaging_error
from workshop_lib.namespaces import wipe_namespace
from workshop_lib.services import local, resolve_messaging, running_messaging
from workshop_lib.services.processes import wait_until
from workshop_lib.services.state_folder import StateFolder
from workshop_lib.settings import load_settings

QUEUE = "https://sqs.us-east-1.amazonaws.com/123456789012/load-test"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[StateFolder]:
    """A state folder of this file's own, kept by one process that runs no emulation at first."""
    folder = StateFolder(tmp_path_factory.mktemp("messaging").resolve())
    yield folder
    local.reset(folder)


@pytest.fixture
def workshops(home, tmp_path, monkeypatch):
    """Opens workshops in that folder, each with a namespace of its own; closes them all."""
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(home.path))
    opened: list[Workshop] = []

    def open_one(**settings) -> Workshop:
        name = f"run_{secrets.token_hex(4)}_m"
        # The engines outlive each test, so that the next one finds them running.
        ours = {"workshop_namespace": name, "dsql_pool_min": 1, "workshop_linger_seconds": 60}
        settings = {**ours, **settings}
        file = tmp_path / f"{name}.json"
        opened.append(open_workshop(name, workshop_result_file=file, **settings))
        return opened[-1]

    yield open_one
    for workshop in opened:
        workshop.close()


@pytest.fixture
def mq(workshops) -> Workshop:
    return workshops()


def report(folder):
    return next((one for one in local.status(folder).engines if one.name == "aws"), None)


def texts(messages):
    return [message["Body"] for message in messages.get("Messages", [])]


def test_it_is_started_by_the_first_use_and_by_nothing_else(home, mq):
    local.stop(home)  # another test may have started it
    mq.close()
    workshop = open_workshop("messaging", workshop_namespace="run_00000000_m")
    try:
        workshop.wipe()
        assert running_messaging(workshop.settings) is None
        assert report(home) is None
        assert workshop.messaging.emulated
        assert (report(home).status, report(home).emulated) == ("up", True)
    finally:
        workshop.close()


def test_the_result_says_that_it_is_an_emulation(mq):
    assert "messaging" not in mq.result.services
    assert mq.sqs is mq.sqs
    assert mq.result.services["messaging"] == {
        "label": "local emulation of SQS and CloudWatch (moto, in memory, signatures not checked)",
        "version": "",
        "embedded": True,
        "emulated": True,
        "aws": False,
        "region": None,
    }


@pytest.mark.parametrize(
    ("service", "operation"),
    [("sqs", "list_queues"), ("cloudwatch", "list_metrics"), ("sts", "get_caller_identity")],
)
@pytest.mark.parametrize("key", ["AKIAEXAMPLE", "0" * 40])
def test_another_access_key_is_refused(mq, service, operation, key):
    client = boto3.client(service, **{**mq.messaging.arguments, "aws_access_key_id": key})
    with pytest.raises(ClientError) as refused:
        getattr(client, operation)()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    said = str(messaging_error(refused.value, mq.messaging))
    assert "is not this checkout's emulation" in said


def test_an_unsigned_request_is_refused(mq):
    connection = HTTPConnection("127.0.0.1", mq.messaging.port, timeout=30)
    for method in ("GET", "POST"):
        connection.request(
            method, "/", body=b"{}", headers={"X-Amz-Target": "AmazonSQS.ListQueues"}
        )
        answer = connection.getresponse()
        assert (answer.status, b"access key" in answer.read()) == (403, True)
    connection.close()


def test_it_runs_with_an_environment_of_its_own_and_on_loopback_only(home, mq, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "somebody")
    assert mq.messaging.host == "127.0.0.1"
    process = psutil.Process(report(home).pid)
    environment = process.environ()
    assert [name for name in environment if name.startswith("AWS")] == []
    assert environment["HOME"] == str(home.path)
    listening = [s for s in process.net_connections() if s.status == psutil.CONN_LISTEN]
    assert {s.laddr.ip for s in listening} == {"127.0.0.1"}
    assert not any(secret in " ".join(process.cmdline()) for secret in home.secrets().values())


def test_a_message_that_is_never_deleted_goes_to_the_dead_letter_queue(mq):
    queue, dead = mq.open_queue("load", visibility_timeout_s=0, max_receives=2)
    assert [url.rsplit("/", 1)[1] for url in (queue, dead)] == [
        f"{mq.namespace}-load",
        f"{mq.namespace}-load-dead",
    ]
    mq.sqs.send_message(QueueUrl=queue, MessageBody="poison")
    received = [texts(mq.sqs.receive_message(QueueUrl=queue)) for _ in range(3)]
    assert received == [["poison"], ["poison"], []]
    assert texts(mq.sqs.receive_message(QueueUrl=dead)) == ["poison"]


def test_a_deleted_message_is_gone_and_one_in_flight_is_hidden(mq):
    queue, _ = mq.open_queue("load", visibility_timeout_s=600, max_receives=3)
    entries = [{"Id": str(n), "MessageBody": str(n)} for n in range(10)]
    sent = mq.sqs.send_message_batch(QueueUrl=queue, Entries=entries)
    assert (len(sent["Successful"]), sent["Failed"]) == (10, [])
    got = mq.sqs.receive_message(
        QueueUrl=queue, MaxNumberOfMessages=10, MessageSystemAttributeNames=["All"]
    )["Messages"]
    assert sorted(message["Body"] for message in got) == [str(n) for n in range(10)]
    assert {message["Attributes"]["ApproximateReceiveCount"] for message in got} == {"1"}
    assert texts(mq.sqs.receive_message(QueueUrl=queue)) == []
    done = [{"Id": m["Body"], "ReceiptHandle": m["ReceiptHandle"]} for m in got[:7]]
    deleted = mq.sqs.delete_message_batch(QueueUrl=queue, Entries=done)
    assert len(deleted["Successful"]) == 7
    assert counts(mq, queue) == (0, 3, 0)
    mq.sqs.change_message_visibility(
        QueueUrl=queue, ReceiptHandle=got[7]["ReceiptHandle"], VisibilityTimeout=0
    )
    assert texts(mq.sqs.receive_message(QueueUrl=queue)) == [got[7]["Body"]]


def test_a_receipt_that_never_was_is_refused_and_a_second_delete_is_not(mq):
    queue, _ = mq.open_queue("load", visibility_timeout_s=600, max_receives=3)
    mq.sqs.send_message(QueueUrl=queue, MessageBody="one")
    (message,) = mq.sqs.receive_message(QueueUrl=queue)["Messages"]
    for _ in range(2):
        mq.sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    with pytest.raises(ClientError, match="ReceiptHandleIsInvalid"):
        mq.sqs.delete_message(QueueUrl=queue, ReceiptHandle="invented")


def test_delayed_messages_are_counted_apart(mq):
    queue, _ = mq.open_queue("load", visibility_timeout_s=30, max_receives=3)
    mq.sqs.send_message(QueueUrl=queue, MessageBody="later", DelaySeconds=900)
    mq.sqs.send_message(QueueUrl=queue, MessageBody="now")
    assert counts(mq, queue) == (1, 0, 1)
    assert texts(mq.sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)) == ["now"]


def counts(workshop, queue):
    """Messages waiting, in flight, delayed."""
    names = ("", "NotVisible", "Delayed")
    found = workshop.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
    return tuple(int(found[f"ApproximateNumberOfMessages{name}"]) for name in names)


def test_many_threads_receive_every_message_once(mq):
    queue, _ = mq.open_queue("load", visibility_timeout_s=600, max_receives=3)
    bodies: list[str] = []

    def send(first):
        for start in range(first, first + 100, 10):
            entries = [{"Id": str(n), "MessageBody": str(n)} for n in range(start, start + 10)]
            mq.sqs.send_message_batch(QueueUrl=queue, Entries=entries)

    def receive():
        while len(bodies) < 400:
            found = mq.sqs.receive_message(
                QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=1
            ).get("Messages", [])
            for message in found:
                mq.sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
                bodies.append(message["Body"])

    threads = [threading.Thread(target=send, args=(first,)) for first in range(0, 400, 100)]
    threads += [threading.Thread(target=receive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, bodies)) == list(range(400))
    assert counts(mq, queue) == (0, 0, 0)


def test_a_waiting_receiver_does_not_keep_others_from_sending(mq):
    queue, _ = mq.open_queue("load", visibility_timeout_s=30, max_receives=3)
    mq.sqs.list_queues()  # so that the client is whole before two threads use it
    found: list[str] = []

    def wait():
        found.extend(texts(mq.sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=20)))

    waiting = threading.Thread(target=wait)
    waiting.start()
    mq.sqs.send_message(QueueUrl=queue, MessageBody="at last")
    waiting.join(15)
    assert found == ["at last"]


def test_opening_a_queue_again_keeps_messages_and_changes_its_settings(mq):
    queue, dead = mq.open_queue("load", visibility_timeout_s=30, max_receives=3)
    mq.sqs.send_message(QueueUrl=queue, MessageBody="kept")
    assert mq.open_queue("load", visibility_timeout_s=7, max_receives=5) == (queue, dead)
    found = mq.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
    assert found["VisibilityTimeout"] == "7"
    assert json.loads(found["RedrivePolicy"])["maxReceiveCount"] == 5
    assert texts(mq.sqs.receive_message(QueueUrl=queue)) == ["kept"]


@pytest.mark.parametrize(
    ("name", "visibility", "receives", "said"),
    [
        ("", 30, 3, "name"),
        ("a b", 30, 3, "name"),
        ("x" * 31, 30, 3, "name"),
        ("load", -1, 3, "visibility_timeout_s is -1"),
        ("load", 43_201, 3, "from 0 to 43,200"),
        ("load", 1.5, 3, "visibility_timeout_s is 1.5"),
        ("load", 30, 0, "max_receives is 0"),
        ("load", 30, True, "max_receives is True"),
    ],
)
def test_a_queue_out_of_range_is_refused(mq, name, visibility, receives, said):
    with pytest.raises(ValueError, match=said):
        mq.open_queue(name, visibility_timeout_s=visibility, max_receives=receives)


def test_metrics_of_each_second_come_back_summed_over_values_and_counts(mq):
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=60)
    mine = [{"Name": "Run", "Value": mq.namespace}]
    put = [(0.0, [1.0, 2.0], [3.0, 1.0]), (0.4, [10.0], [1.0]), (2.0, [5.0], [2.0])]
    for after, values, numbers in put:
        for dimensions in (mine, [{"Name": "Run", "Value": "another"}]):
            datum = {
                "MetricName": "latency",
                "Dimensions": dimensions,
                "Timestamp": start + timedelta(seconds=after),
                "Values": values,
                "Counts": numbers,
                "StorageResolution": 1,
                "Unit": "Milliseconds",
            }
            mq.cloudwatch.put_metric_data(Namespace="Workshop", MetricData=[datum])
    metric = {"Namespace": "Workshop", "MetricName": "latency", "Dimensions": mine}
    stats = ["Sum", "SampleCount", "Minimum", "Maximum", "Average"]
    found = mq.cloudwatch.get_metric_data(
        MetricDataQueries=[
            {"Id": stat.lower(), "MetricStat": {"Metric": metric, "Period": 1, "Stat": stat}}
            for stat in stats
        ],
        StartTime=start,
        EndTime=start + timedelta(seconds=10),
        ScanBy="TimestampAscending",
    )["MetricDataResults"]
    assert {one["Id"]: one["Values"] for one in found} == {
        "sum": [15.0, 10.0],
        "samplecount": [5.0, 2.0],
        "minimum": [1.0, 5.0],
        "maximum": [10.0, 5.0],
        "average": [3.0, 5.0],
    }
    seconds = [[(t - start).total_seconds() for t in one["Timestamps"]] for one in found]
    assert seconds == [[0.0, 2.0]] * 5


def test_what_moto_cannot_do_is_said_at_once(mq):
    metric = {"Namespace": "Workshop", "MetricName": "steady"}
    now = datetime.now(UTC)
    mq.cloudwatch.put_metric_data(
        Namespace="Workshop", MetricData=[{"MetricName": "steady", "Value": 1.0, "Timestamp": now}]
    )
    with pytest.raises(ClientError, match="moto cannot do this") as refused:
        mq.cloudwatch.get_metric_data(
            MetricDataQueries=[
                {"Id": "p", "MetricStat": {"Metric": metric, "Period": 1, "Stat": "p99"}}
            ],
            StartTime=now - timedelta(seconds=5),
            EndTime=now + timedelta(seconds=5),
        )
    assert refused.value.response["ResponseMetadata"].get("RetryAttempts", 0) == 0


def test_two_workshops_share_the_emulation_and_not_the_queues(home, workshops):
    one, two = workshops(), workshops()
    first, _ = one.open_queue("load", visibility_timeout_s=30, max_receives=3)
    second, _ = two.open_queue("load", visibility_timeout_s=30, max_receives=3)
    assert one.messaging.port == two.messaging.port
    one.sqs.send_message(QueueUrl=first, MessageBody="for one")
    assert texts(two.sqs.receive_message(QueueUrl=second)) == []
    one.wipe()
    assert queues_of(two) == {f"{two.namespace}-load", f"{two.namespace}-load-dead"}
    assert queues_of(one) == set()
    one.close()
    assert queues_of(two) == {f"{two.namespace}-load", f"{two.namespace}-load-dead"}


def queues_of(workshop):
    found = workshop.sqs.list_queues(QueueNamePrefix=workshop.namespace).get("QueueUrls", [])
    return {url.rsplit("/", 1)[1] for url in found}


def test_deleting_a_namespace_spares_one_whose_name_begins_alike(workshops):
    short = workshops()
    longer = workshops(workshop_namespace=f"{short.namespace}_2")
    for workshop in (short, longer):
        workshop.open_queue("load", visibility_timeout_s=30, max_receives=3)
    wipe_namespace(short.namespace)
    assert queues_of(longer) == {f"{longer.namespace}-load", f"{longer.namespace}-load-dead"}


def test_closing_leaves_no_lease_and_in_the_end_no_process(home, workshops):
    local.stop(home)  # those before asked for an idle time
    mq = workshops(workshop_linger_seconds=0)
    mq.open_queue("load", visibility_timeout_s=30, max_receives=3)
    _ = mq.cloudwatch
    pid = report(home).pid
    assert len(local.status(home).users) == 2
    mq.close()
    mq.close()
    assert local.status(home).users == ()
    assert local.wait_gone(home)
    assert not psutil.pid_exists(pid)


def test_a_killed_emulation_comes_back_empty_at_the_same_address(home, mq):
    queue, _ = mq.open_queue("load", visibility_timeout_s=30, max_receives=3)
    victim = report(home).pid
    os.kill(victim, signal.SIGKILL)
    assert wait_until(lambda: report(home).pid != victim and report(home).status == "up", 30)
    with pytest.raises(ClientError) as gone:
        mq.sqs.send_message(QueueUrl=queue, MessageBody="lost")
    assert "ws.open_queue(…) makes the queue again" in str(
        messaging_error(gone.value, mq.messaging)
    )
    assert mq.open_queue("load", visibility_timeout_s=30, max_receives=3)[0] == queue
    mq.sqs.send_message(QueueUrl=queue, MessageBody="found")
    assert texts(mq.sqs.receive_message(QueueUrl=queue)) == ["found"]


def test_a_stopped_emulation_is_a_clear_error(home, mq):
    queue, _ = mq.open_queue("load", visibility_timeout_s=30, max_receives=3)
    local.stop(home)
    with pytest.raises(ServiceUnreachableError, match="No answer from local emulation of SQS") as e:
        mq.open_queue("load", visibility_timeout_s=30, max_receives=3)
    assert "next open_workshop()" in str(e.value)
    with pytest.raises(NoConnectionError):
        mq.sqs.send_message(QueueUrl=queue, MessageBody="lost")


def test_its_key_stands_in_no_log_and_is_not_shown(home, mq):
    mq.open_queue("load", visibility_timeout_s=30, max_receives=3)
    assert not any(key in repr(mq.messaging) for key in home.secrets().values())
    logs = "".join(file.read_text() for file in home.logs.glob("*.log"))
    assert not any(key in logs for key in home.secrets().values())


# --- on AWS ---


@pytest.fixture
def on_aws(clean_environment, mq):
    """QUEUE_URL is set; what goes to Amazon SQS ends at the emulation instead."""
    given = mq.messaging.arguments
    for name, value in {
        "AWS_REGION": "us-east-1",
        "QUEUE_URL": QUEUE,
        "AWS_ENDPOINT_URL_SQS": given["endpoint_url"],
        "AWS_ACCESS_KEY_ID": given["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": given["aws_secret_access_key"],
        "WORKSHOP_STATE_DIR": str(mq.settings.workshop_state_dir),
    }.items():
        clean_environment.setenv(name, value)
    yield mq.sqs
    for url in mq.sqs.list_queues(QueueNamePrefix="load-test").get("QueueUrls", []):
        mq.sqs.delete_queue(QueueUrl=url)


def test_with_a_queue_url_it_is_amazons_own(on_aws):
    endpoint, release = resolve_messaging(load_settings().values)
    release()
    assert (endpoint.label, endpoint.region) == (
        "Amazon SQS and CloudWatch in us-east-1",
        "us-east-1",
    )
    assert (endpoint.embedded, endpoint.emulated, endpoint.tls) == (False, False, True)
    assert set(endpoint.arguments) == {"region_name", "config"}
    assert endpoint.arguments["config"].read_timeout > 20
    assert endpoint.queue_url == QUEUE
    assert "123456789012" not in repr(endpoint)


def test_the_given_queue_is_used_with_the_dead_letter_queue_that_it_names(on_aws, workshops):
    dead = on_aws.create_queue(QueueName="load-test-failed")["QueueUrl"]
    arn = "arn:aws:sqs:us-east-1:123456789012:load-test-failed"
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "4"})
    on_aws.create_queue(QueueName="load-test", Attributes={"RedrivePolicy": policy})
    workshop = workshops()
    opened = workshop.open_queue("anything", visibility_timeout_s=30, max_receives=3)
    assert opened == (QUEUE, dead)
    assert workshop.result.services["messaging"]["region"] == "us-east-1"
    workshop.wipe()
    assert len(on_aws.list_queues(QueueNamePrefix="load-test")["QueueUrls"]) == 2


def test_a_given_queue_without_a_dead_letter_queue_is_refused(on_aws, workshops):
    on_aws.create_queue(QueueName="load-test")
    with pytest.raises(ServiceUnreachableError, match="has no dead-letter queue"):
        workshops().open_queue("load", visibility_timeout_s=30, max_receives=3)


def test_a_given_queue_that_does_not_exist_is_a_clear_error(on_aws, workshops):
    with pytest.raises(ServiceUnreachableError, match="correct QUEUE_URL"):
        workshops().open_queue("load", visibility_timeout_s=30, max_receives=3)


def test_refused_credentials_are_a_clear_error(on_aws, workshops, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    with pytest.raises(ServiceUnreachableError, match="does not know this access key"):
        workshops().open_queue("load", visibility_timeout_s=30, max_receives=3)


@pytest.mark.parametrize(
    "url",
    [
        "load-test",
        "http://sqs.us-east-1.amazonaws.com/123456789012/q",
        "https://sqs.us-east-1.amazonaws.com/12345/q",
        "https://sqs.us-east-1.amazonaws.com/123456789012/",
        "https://sqs.us-east-1.amazonaws.com/123456789012/q.fifo",
        "https://sqs.us-east-1.example.com/123456789012/q",
        "https://key@sqs.us-east-1.amazonaws.com/123456789012/q",
    ],
)
def test_a_malformed_queue_url_is_refused_and_not_repeated(clean_environment, url):
    clean_environment.setenv("QUEUE_URL", url)
    clean_environment.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(SettingsError, match="<12 digits>/<name>") as refused:
        load_settings()
    assert url not in str(refused.value)


def test_a_queue_url_needs_the_region_that_it_is_in(clean_environment):
    clean_environment.setenv("QUEUE_URL", QUEUE)
    with pytest.raises(SettingsError, match="AWS_REGION is needed"):
        load_settings()
    clean_environment.setenv("AWS_REGION", "eu-west-1")
    with pytest.raises(SettingsError, match="QUEUE_URL is in us-east-1, AWS_REGION is eu-west-1"):
        load_settings()


def test_a_queue_url_is_masked_wherever_settings_are_shown(clean_environment):
    clean_environment.setenv("QUEUE_URL", QUEUE)
    clean_environment.setenv("AWS_REGION", "us-east-1")
    loaded = load_settings()
    assert "123456789012" not in repr(loaded) + repr(loaded.origins()) + loaded._repr_html_()
