"""The checks end to end on a made-up AWS: each fault comes with its explanation, and in time.

A local HTTP server answers as STS, S3, SQS and CloudWatch do, in their wire formats; the database
and the cache are the local engines behind the names and settings of AWS, until a test says else.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest
from botocore.config import Config
from click.testing import CliRunner

from workshop_lib import checks
from workshop_lib.cli import main
from workshop_lib.services import diagnose
from workshop_lib.services.endpoints import external_messaging, resolve

ACCOUNT = "123456789012"
ARN = f"arn:aws:sts::{ACCOUNT}:assumed-role/Learner/me"
DEAD = f"arn:aws:sqs:us-east-1:{ACCOUNT}:dead"
REDRIVE = {"deadLetterTargetArn": DEAD, "maxReceiveCount": 4}


@dataclass
class Fault:
    """What an operation is answered instead."""

    status: int
    code: str
    message: str = "made up"
    headers: dict[str, str] = field(default_factory=dict)


class MadeUpAws(ThreadingHTTPServer):
    """STS (query), S3 (rest-xml), SQS and CloudWatch (json) as far as the checks go."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.faults: dict[str, Fault] = {}
        self.attributes = {"VisibilityTimeout": "30", "ApproximateNumberOfMessages": "7"}
        self.attributes["RedrivePolicy"] = json.dumps(REDRIVE)
        self.region = "us-east-1"
        self.stored = b""
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: MadeUpAws
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        operation = self.operation(body)
        self.server.asked.append(operation)
        fault, headers = self.server.faults.get(operation), {}
        if fault:
            said, headers = self.error(fault), fault.headers
        elif operation == "HeadBucket":
            said, headers = "", {"x-amz-bucket-region": self.server.region}
        else:
            said = {
                "GetCallerIdentity": f"<R><GetCallerIdentityResult><Arn>{ARN}</Arn>"
                "</GetCallerIdentityResult></R>",
                "GetQueueAttributes": json.dumps({"Attributes": self.server.attributes}),
                "GetMetricData": "{}",
                "GetObject": self.server.stored.decode(),
            }.get(operation, "")
        if operation == "PutObject":
            self.server.stored = body
        self.send_response(fault.status if fault else 200)
        for name, value in {**headers, "Content-Length": str(len(said))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said.encode())

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815 -- as it is called

    def operation(self, body):
        if target := self.headers.get("X-Amz-Target"):
            return target.rpartition(".")[2]
        if self.command == "POST":
            return parse_qs(body.decode())["Action"][0]
        kind = {"HEAD": "HeadBucket"}.get(self.command, f"{self.command.capitalize()}Object")
        return "ListObjectsV2" if "list-type=2" in self.path else kind

    def error(self, fault):
        if self.command == "HEAD":
            return ""
        if self.headers.get("X-Amz-Target"):
            return json.dumps({"__type": f"x#{fault.code}", "message": fault.message})
        inner = f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>"
        return f"<ErrorResponse>{inner}</ErrorResponse>" if self.command == "POST" else inner

    def log_message(self, *args):
        pass


class Deployment:
    """Everything on AWS, as far as the settings know."""

    def __init__(self, aws, ws, monkeypatch):
        self.aws = aws
        self.changes: dict[str, dict] = {}
        self._ws = ws
        # The names of AWS lead here, whatever this machine knows of them.
        look_up = socket.getaddrinfo
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *args, **more: look_up(
                "127.0.0.1" if str(host).endswith((".aws", ".amazonaws.com")) else host,
                *args,
                **more,
            ),
        )
        monkeypatch.setattr(checks, "resolve", self._resolve)
        monkeypatch.setattr(checks, "external_messaging", self._given)

    def _resolve(self, settings):
        found = resolve(settings)
        database, cache = self._ws.endpoints.database, self._ws.endpoints.cache
        password = database.arguments["password"]
        ours = {
            "database": {"port": database.port, "arguments": dict(database.arguments)}
            | {"token": lambda: password},
            "cache": {"port": cache.port, "arguments": dict(cache.arguments)},
            "store": {"port": self.aws.server_port},
        }
        changed = {
            service: replace(
                getattr(found, service),
                **({"tls": False} | changes | self.changes.get(service, {})),
            )
            for service, changes in ours.items()
        }
        return replace(found, **changed)

    def _given(self, settings):
        found = external_messaging(settings)
        return found and replace(found, tls=False, port=self.aws.server_port)

    def change(self, service, **changes):
        arguments = changes.pop("arguments", {})
        given = getattr(self._ws.endpoints, service).arguments
        self.changes[service] = {**changes, "arguments": {**given, **arguments}}

    def failed(self, **settings):
        """Every ✗ of a round, which has to keep its limits and the account number to itself."""
        report = checks.check_deployment(**settings)
        assert all(check.seconds < checks.LIMIT_S + 1 for check in report.checks)
        assert ACCOUNT not in json.dumps(report.to_json()) + report._repr_html_()
        return {c.name.split(" at ")[0]: f"{c.detail} | {c.advice}" for c in report.failed().checks}


@pytest.fixture
def aws():
    server = MadeUpAws()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def deployment(ws, aws, clean_environment, tmp_path):
    """A deployment on which all is well."""
    for name, value in {
        "AWS_REGION": "us-east-1",
        "DSQL_ENDPOINT": "abcdefghij.dsql.us-east-1.on.aws",
        "VALKEY_ENDPOINT": "mine.serverless.use1.cache.amazonaws.com",
        "BUCKET_NAME": "my-bucket",
        "QUEUE_URL": f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/load",
        "WORKSHOP_NAMESPACE": ws.namespace,
        "WORKSHOP_STATE_DIR": str(ws.settings.workshop_state_dir),
        "AWS_ENDPOINT_URL": aws.url,
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "not-a-real-secret",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
    }.items():
        clean_environment.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        clean_environment.delenv(name, raising=False)
    return Deployment(aws, ws, clean_environment)


def denied(action, code="AccessDenied", status=403):
    return Fault(status, code, f"User: {ARN} is not authorized to perform: {action} on resource: x")


def test_all_is_well_on_a_whole_deployment(deployment):
    report = checks.check_deployment()
    assert report.failed().checks == []
    found = {check.name: check.detail for check in report.checks}
    assert found["AWS identity"] == "signed in as assumed-role/Learner/me"
    assert found["Queue answers"] == (
        "about 7 messages; one that was received stays hidden for 30 s, and after 4 times is a "
        "dead letter"
    )
    assert "CacheAsideWorkshop/" in found["Metrics can be read"]
    assert ACCOUNT not in json.dumps(report.to_json())


@pytest.mark.parametrize(
    ("operation", "fault", "check", "to_do"),
    [
        ("PutObject", denied("kms:Encrypt"), "Object store is writable", "it takes kms:Encrypt"),
        ("HeadBucket", Fault(403, ""), "Object store is writable", "it takes s3:ListBucket"),
        ("GetQueueAttributes", Fault(400, "QueueDoesNotExist", f"no queue {ACCOUNT}/load"),
         "Queue answers", "correct QUEUE_URL"),
        ("GetMetricData", denied("cloudwatch:GetMetricData"), "Metrics can be read",
         "it takes cloudwatch:GetMetricData"),
    ],
)  # fmt: skip
def test_a_refusal_of_aws_is_explained_by_its_code(deployment, operation, fault, check, to_do):
    deployment.aws.faults[operation] = fault
    failed = deployment.failed()
    assert list(failed) == [check]
    assert to_do in failed[check]
    assert fault.code in failed[check]


def test_a_refused_head_is_asked_again_in_a_way_that_has_room_for_the_reason(deployment):
    deployment.aws.faults |= {
        "HeadBucket": Fault(400, ""),
        "ListObjectsV2": Fault(400, "ExpiredToken", "The provided token has expired."),
    }
    assert "Sign in again" in deployment.failed()["Object store is writable"]


def test_a_bucket_in_another_region_is_called_that(deployment):
    deployment.aws.region = "eu-west-1"
    (said,) = deployment.failed().values()
    assert "'my-bucket' is in eu-west-1, not in us-east-1" in said
    there = {"x-amz-bucket-region": "eu-west-1"}
    deployment.aws.faults["HeadBucket"] = Fault(403, "", headers=there)
    (said,) = deployment.failed().values()
    assert "It is in eu-west-1, but AWS_REGION is us-east-1" in said


def test_a_queue_without_a_dead_letter_queue_is_not_for_load_tests(deployment):
    del deployment.aws.attributes["RedrivePolicy"]
    assert "no dead-letter queue" in deployment.failed()["Queue answers"]


def test_without_credentials_each_line_says_how_to_sign_in(deployment, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    failed = deployment.failed()
    assert set(failed) == {
        *("AWS identity", "Object store is writable", "Queue answers", "Metrics can be read")
    }
    assert all("aws sso login" in said for said in failed.values())
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert all("unset AWS_PROFILE" in said for said in deployment.failed().values())


def test_a_machine_role_that_never_answers_is_waited_for_within_the_limit(
    deployment, monkeypatch, silent
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{silent}/")
    assert "aws sso login" in deployment.failed(queue_url="")["AWS identity"]


def test_silence_is_explained_for_each_service_by_what_lets_its_packets_through(
    deployment, monkeypatch, silent
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent}")
    quick = Config(read_timeout=1, retries={"total_max_attempts": 1})
    monkeypatch.setattr(diagnose, "BRIEF", quick)
    deployment.change("database", port=silent, arguments={"port": silent, "connect_timeout": 2})
    deployment.change("cache", port=silent, arguments={"port": silent})
    failed = deployment.failed()
    for name in ("Database answers", "Cache answers"):
        assert f"drops the packets to port {silent}" in failed[name]
    assert "no way to the sign-in service of AWS (STS) in us-east-1" in failed["AWS identity"]
    assert "no way to Amazon S3 in us-east-1" in failed["Object store is writable"]
    for name in ("Queue answers", "Metrics can be read"):
        assert "no way to Amazon SQS and CloudWatch in us-east-1" in failed[name]


@pytest.mark.skipif(sys.platform == "darwin", reason="it has one loopback address, 127.0.0.1")
def test_a_name_with_many_silent_addresses_is_given_up_within_the_limit(deployment, monkeypatch):
    """Each address is waited for in turn; Amazon S3 has eight."""
    real = socket.getaddrinfo

    def many(host, port, *args, **kwargs):
        if host != "many.test":
            return real(host, port, *args, **kwargs)
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (f"127.0.0.{last}", port)) for last in range(2, 10)]

    monkeypatch.setattr(socket, "getaddrinfo", many)
    with deaf() as port:
        deployment.change("cache", host="many.test", port=port, arguments={"port": port})
        failed = deployment.failed()
    assert "drops the packets" in failed["Port of ElastiCache for Valkey"]


def test_the_lines_after_the_first_fault_of_a_place_are_not_asked(deployment):
    deployment.change("cache", host="no-such-host.invalid", tls=True)
    report = checks.check_deployment()
    cache = [check for check in report.checks if "of ElastiCache" in check.name]
    assert [(check.name.split()[0], check.mark) for check in cache] == [
        ("Name", "✗"),
        ("Port", "–"),
        ("Certificate", "–"),
    ]
    assert "Check VALKEY_ENDPOINT" in cache[0].advice


def test_the_command_says_the_same_in_words_and_as_json(deployment):
    deployment.aws.faults["PutObject"] = denied("s3:PutObject")
    shown = CliRunner().invoke(main, ["check"])
    listed = CliRunner().invoke(main, ["check", "--json"])
    assert (shown.exit_code, listed.exit_code) == (1, 1)
    assert "it takes s3:PutObject" in shown.output
    found = {check["name"]: check for check in json.loads(listed.output)["checks"]}
    assert "it takes s3:PutObject" in found["Object store is writable"]["advice"]
    assert ACCOUNT not in shown.output + listed.output
    assert "arn:aws:sts::…:assumed-role" in shown.output


# --- servers that are not what they should be ---


@pytest.fixture
def silent():
    """The port of a server that lets everybody in and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def deaf():
    """The port of a server, on all loopback addresses, that does not even let anybody in."""
    with socket.create_server(("0.0.0.0", 0), backlog=0) as listener:  # noqa: S104 -- 127.0.0.2 …
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield port
        for client in waiting:
            client.close()
