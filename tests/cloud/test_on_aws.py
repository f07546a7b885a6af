"""The notebooks, the checks and the commands on AWS, as far as this machine has it.

The package takes the path that it takes there, and knows nothing of the stand-in (`standin/`).
"""

import json
import os
import socket
from contextlib import ExitStack, closing

import pytest
import redis
import trustme
from aws import ACCOUNT
from botocore.config import Config
from stand_in import OTHER_REGION, REGION, STACK, teach_names

from workshop_lib import checks, notebooks, open_workshop
from workshop_lib.aws.outputs import read_outputs
from workshop_lib.checks import LIMIT_S, check_deployment
from workshop_lib.services import resolve
from workshop_lib.settings import load_settings

SECRET = (ACCOUNT, "STANDINHOST", "secret-of", "X-Amz-Signature", "X-Amz-Credential")

# --- notebooks ---

ONLY_HERE = ("00", "01", "12", "13")
"""Those that make calls which a local run does not: the checks, tables as a user of its own, the
function, the queue. MORE_ON_AWS="03 08" adds some, MORE_ON_AWS=all runs every one."""
MORE = os.environ.get("MORE_ON_AWS", "").split()
NAMES = [] if MORE == ["all"] else [*ONLY_HERE, *MORE]
CHOSEN = [one.name for one in notebooks.choose(NAMES, notebooks.find_notebooks())]
SELDOM = {
    "cloudwatch:PutMetricData",  # a load test by processes of the host
    "sqs:DeleteMessage",  # one that finds dead letters of its own
}
BY_LAMBDA_ITSELF = {
    "ec2:AssignPrivateIpAddresses", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets", "ec2:UnassignPrivateIpAddresses",
    "logs:CreateLogStream", "logs:PutLogEvents", "sqs:GetQueueAttributes",
}  # fmt: skip


def held(aws):
    """What a run may use and has to leave as it was."""
    s3, sqs = aws.client("s3"), aws.client("sqs")
    bucket, waiting = aws.outputs["BucketName"], "ApproximateNumberOfMessages"
    asked = {"QueueUrl": aws.outputs["QueueUrl"], "AttributeNames": [waiting]}
    return {
        "objects": [o["Key"] for o in s3.list_objects_v2(Bucket=bucket).get("Contents", [])],
        "queues": sqs.list_queues()["QueueUrls"],
        "waiting": sqs.get_queue_attributes(**asked)["Attributes"][waiting],
        "keys": list(aws.cache.client().scan_iter(match="run_*")),
    }


@pytest.fixture(scope="module")
def executed(aws, tmp_path_factory):
    """A quick run of notebooks as they are committed, with the notebooks' policy alone."""
    folder = tmp_path_factory.mktemp("run on aws")
    before = held(aws)
    done = aws.run("run", "--out", str(folder), *CHOSEN)
    return folder, done, before


@pytest.fixture(scope="module")
def results(executed):
    folder, _, _ = executed
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def test_the_notebooks_pass_and_leave_nothing_behind(aws, executed, shared):
    _, done, before = executed
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    passed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("✓")]
    assert sorted(passed) == sorted(CHOSEN)
    assert held(aws) == before
    schemas = shared.database.query("SELECT nspname FROM pg_namespace WHERE nspname ~ '^run_'")
    assert list(schemas) == []


def test_the_results_say_that_it_was_aws_and_where(results):
    for result in results.values():
        services = result["services"]
        found = [services[one] for one in ("database", "cache", "store")]
        assert [one["label"] for one in found] == [
            f"Aurora DSQL in {REGION}", "ElastiCache for Valkey", f"Amazon S3 in {REGION}",
        ]  # fmt: skip
        assert not any(one["embedded"] for one in found)


def test_the_stacks_function_did_the_work_of_the_load_tests(aws, results):
    if "LoadFunctionName" not in aws.outputs:
        pytest.skip("the wheels of the function's package cannot be had here")
    queue = results["13_work_through_a_queue"]["measurements"]
    assert queue["messages_succeeded"]["value"] == queue["messages_planned"]["value"] > 0
    assert sum(aws.mapping.batches) >= queue["messages_planned"]["value"]
    assert aws.function.calls > len(aws.mapping.batches) > 0  # notebook 12 invoked it as well
    assert {one.poll() for one in aws.environments.processes} == {None}


def test_neither_account_nor_key_nor_token_is_kept_anywhere(executed):
    folder, done, _ = executed
    texts = {str(file): file.read_text("latin-1") for file in folder.rglob("*") if file.is_file()}
    assert len(texts) > 3 * len(CHOSEN)
    for name, text in {**texts, "output": done.stdout}.items():
        assert [word for word in SECRET if word in text] == [], name


@pytest.mark.parametrize(("who", "unused"), [("host", SELDOM), ("function", BY_LAMBDA_ITSELF)])
def test_a_policy_allows_what_was_used_and_nothing_else(aws, executed, check, who, unused):
    if "LoadFunctionName" not in aws.outputs:
        pytest.skip("the wheels of the function's package cannot be had here")
    check()
    identity = aws.account.identities[who]
    actions = [one["Action"] for one in identity.statements if one["Effect"] == "Allow"]
    allowed = {name for one in actions for name in ([one] if isinstance(one, str) else one)}
    assert allowed - identity.used == unused


def test_no_latency_is_added_to_services_that_have_their_own(become, capsys):
    become()
    with closing(open_workshop()) as ws:
        assert ws.possible_latencies([0.002]) == [0.0]
    assert "Skipped: an emulated latency of 2 ms" in capsys.readouterr().out


# --- the checks: refusals, permissions, silence ---


@pytest.fixture
def become(aws, monkeypatch):
    """Puts this process on the stand-in's AWS, signed in as one of its identities."""
    teach_names(monkeypatch.setattr)
    read_outputs.cache_clear()

    def put_on(who="host", **environment):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in {**aws.signed_in(who), **environment}.items():
            monkeypatch.setenv(name, value)

    yield put_on
    read_outputs.cache_clear()


@pytest.fixture
def check(become):
    """Go through the checks as an identity; gives what did not pass, by name."""

    def run(who="host", **environment):
        become(who, **environment)
        report = check_deployment()
        said = json.dumps(report.to_json()) + report._repr_html_()
        assert [word for word in SECRET if word in said] == []
        assert all(one.seconds < LIMIT_S + 1 for one in report.checks)
        failed = [one for one in report.checks if one.ok is False]
        return {one.name.split(" at ")[0]: f"{one.detail} | {one.advice}" for one in failed}

    return run


@pytest.fixture
def endpoints(aws):
    """The stack's services as settings, in the place of its name."""
    return {
        "WORKSHOP_STACK": "",
        "DSQL_ENDPOINT": aws.outputs["DSQLClusterEndpoint"],
        "VALKEY_ENDPOINT": aws.outputs["ValkeyEndpoint"],
        "BUCKET_NAME": aws.outputs["BucketName"],
        "QUEUE_URL": aws.outputs["QueueUrl"],
        "WORKSHOP_NAMESPACE": aws.outputs["WorkshopNamespace"],
    }


@pytest.fixture
def silent_port():
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def only(found):
    """The one thing that is wrong."""
    ((name, said),) = found.items()
    return name, said


def test_all_is_well_with_the_stack_as_with_its_addresses(check, endpoints):
    assert check() == check(**endpoints) == {}


def test_without_credentials_each_line_says_how_to_sign_in(check, endpoints, silent_port):
    # A machine's role that never answers is waited for within the limit.
    never = f"http://127.0.0.1:{silent_port}/"
    metadata = {"AWS_EC2_METADATA_DISABLED": "", "AWS_EC2_METADATA_SERVICE_ENDPOINT": never}
    failed = check(**endpoints, **metadata, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    asked = {"AWS identity", "Object store is writable", "Queue answers", "Metrics can be read"}
    assert failed.keys() >= asked
    assert all("aws sso login" in said for said in failed.values())


def test_a_bucket_elsewhere_and_a_queue_without_dead_letters_are_not_what_is_needed(aws, check):
    place = {"LocationConstraint": OTHER_REGION}
    aws.client("s3", OTHER_REGION).create_bucket(Bucket="far", CreateBucketConfiguration=place)
    queue = aws.client("sqs").create_queue(QueueName="plain")["QueueUrl"]
    plain = aws.outputs["QueueUrl"].rsplit("/", 1)[0] + "/plain"
    failed = check("admin", BUCKET_NAME="far", QUEUE_URL=plain, IAM_USERNAME="admin")
    assert failed.keys() == {"Object store is writable", "Queue answers"}
    assert f"'far' is in {OTHER_REGION}, not in {REGION}" in failed["Object store is writable"]
    assert "no dead-letter queue" in failed["Queue answers"]
    aws.client("s3").delete_bucket(Bucket="far")
    aws.client("sqs").delete_queue(QueueUrl=queue)


def test_a_wrong_region_is_asked_about(check):
    """A policy for one stack refuses in the same way where there is none."""
    name, said = only(check(AWS_REGION=OTHER_REGION))
    assert name == "Settings"
    assert f"Is {OTHER_REGION} the Region in which it was deployed (AWS_REGION)?" in said


def test_silence_is_explained_for_each_service_by_what_lets_its_packets_through(
    aws, check, endpoints, monkeypatch, silent_port
):
    quick = Config(read_timeout=1, connect_timeout=1, retries={"total_max_attempts": 1})
    monkeypatch.setattr(checks, "BRIEF", quick)
    monkeypatch.setattr(checks, "ANSWER_S", 1.0)
    with ExitStack() as stack:
        for name in ("*.on.aws:5432", "*.cache.amazonaws.com:6379", "*:443"):
            stack.enter_context(aws.led(name, silent_port))
        failed = check(**endpoints)
    for name, words in {
        "Database answers": "security group",
        "Cache answers": "drops the packets to port 6379",
        "AWS identity": f"no way to the sign-in service of AWS (STS) in {REGION}",
        "Object store is writable": f"no way to Amazon S3 in {REGION}",
        "Queue answers": f"no way to Amazon SQS and CloudWatch in {REGION}",
        "Metrics can be read": f"no way to Amazon SQS and CloudWatch in {REGION}",
    }.items():
        assert words in failed[name], name


def test_a_certificate_of_an_unknown_authority_or_for_another_name_is_refused(
    aws, check, endpoints, monkeypatch, tmp_path
):
    strange = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(strange)
    found = check(**endpoints, AWS_CA_BUNDLE=str(strange))
    assert found.keys() >= {"AWS identity", "Certificate of ElastiCache for Valkey"}
    assert found.keys() >= {f"Certificate of Amazon S3 in {REGION}", "Database answers"}
    assert all("certificate" in said.lower() for said in found.values())
    monkeypatch.setattr(aws.dsql.cluster, "tls", aws.certificate("another.name.example"))
    name, said = only(check())
    assert name == "Database answers"
    assert "certificate" in said


# --- the database and the cache ---


def test_a_cluster_that_is_waking_up_is_waited_for(aws, become):
    become()
    aws.dsql.asleep = 3
    with closing(open_workshop()) as ws:
        assert list(ws.database.query("SELECT 1")) == [(1,)]
    assert aws.dsql.asleep == 0


def test_a_new_connection_is_not_taken_for_one_with_an_answer_left_in_it(become):
    """As redis-py 8.1 does where nothing has been read yet of what TLS 1.3 sends by itself."""
    become()
    arguments = resolve(load_settings().values).cache.arguments
    for _ in range(50):
        with closing(redis.Redis(**arguments)) as client:
            assert client.ping()


# --- the commands ---


def test_a_learner_may_not_change_the_stack_and_is_told_so(aws):
    done = aws.run("aws", "deploy", "--stack", STACK)
    assert done.returncode == 1
    assert "is not authorized to perform: cloudformation:CreateChangeSet" in done.stderr
    assert "You are signed in, but may not do this" in done.stderr
    assert ACCOUNT not in done.stdout + done.stderr
