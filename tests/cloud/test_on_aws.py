"""The notebooks, the checks and the commands on AWS, as far as this machine has it.

The package takes the path that it takes there, and knows nothing of the stand-in (`standin/`).
"""

import json
import os
import socket
import sys
from contextlib import ExitStack, closing, contextmanager
from functools import partial

import boto3
import psycopg2
import pytest
import redis
import trustme
from botocore.config import Config
from dsql import MAX_SCHEMAS
from stand_in import NAMESPACE, OTHER_REGION, REGION, STACK, teach_names

from workshop_lib import open_workshop, runner
from workshop_lib.checks import LIMIT_S, check_deployment
from workshop_lib.services import diagnose, resolve
from workshop_lib.settings import load_settings
from workshop_lib.stack import read_outputs

ACCOUNT = "123456789012"
SECRET = (ACCOUNT, "STANDINHOST", "secret-of", "X-Amz-Signature", "X-Amz-Credential")

# --- notebooks ---

THE_SAME_THERE = ("02", "04", "05", "06", "07", "11", "14", "15", "16")
"""What these use of AWS, others use as well; some work in a sandbox of local engines anywhere."""
CHOSEN = [one.name for one in runner.find_notebooks() if not one.name.startswith(THE_SAME_THERE)]


@pytest.fixture(scope="module")
def executed(aws, function, tmp_path_factory):
    """A quick run of them as they are committed, with the notebooks' policy alone."""
    folder = tmp_path_factory.mktemp("run on aws")
    before = account(aws)
    done = aws.run("run", "--out", str(folder / "run"), *CHOSEN)
    return folder, [done], before


@pytest.fixture(scope="module")
def results(executed):
    folder, _, _ = executed
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*/*.json")}


def account(aws):
    """What a run may use and has to leave as it was."""
    s3, sqs = aws.client("s3"), aws.client("sqs")
    bucket, waiting = aws.outputs["BucketName"], "ApproximateNumberOfMessages"
    queues = [aws.outputs[name] for name in ("QueueUrl", "DeadLetterQueueUrl")]
    return {
        "objects": [o["Key"] for o in s3.list_objects_v2(Bucket=bucket).get("Contents", [])],
        "queues": sqs.list_queues()["QueueUrls"],
        "waiting": [
            sqs.get_queue_attributes(QueueUrl=url, AttributeNames=[waiting])["Attributes"][waiting]
            for url in queues
        ],
        "keys": list(aws.cache.client().scan_iter(match="run_*")),
    }


def test_the_notebooks_pass(executed):
    _, runs, _ = executed
    for done in runs:
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = [line for done in runs for line in done.stdout.splitlines()]
    assert sorted(line.split()[1] for line in lines if line.startswith("✓")) == CHOSEN


def test_the_results_say_that_it_was_aws_and_where(results):
    for name, result in results.items():
        services = result["services"]
        labels = [services[one]["label"] for one in ("database", "cache", "store")]
        assert labels == [
            f"Aurora DSQL in {REGION}", "ElastiCache for Valkey", f"Amazon S3 in {REGION}",
        ], name  # fmt: skip
        assert {one["embedded"] for one in list(services.values())[:3]} == {False}
        assert services["database"]["region"] == REGION
    queues = results["13_work_through_a_queue"]["services"]["messaging"]
    assert queues["label"] == f"Amazon SQS and CloudWatch in {REGION}"


def test_what_cannot_be_done_there_is_skipped_visibly(executed):
    folder, _, _ = executed
    (page,) = folder.glob("*/10_compare_cold_warm_pooled.html")
    assert "Skipped: an emulated latency of" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["latencies"] == []


def test_the_values_are_those_that_they_are_everywhere(results):
    figures = {
        name: {key: one["value"] for key, one in result["measurements"].items()}
        for name, result in results.items()
    }
    seeded = figures["01_seed_the_data"]
    assert (seeded["users_rows"], seeded["orders_rows"], seeded["objects"]) == (500, 2_500, 200)
    assert seeded["commits_for_transactions"] == 3  # 3,000 + 3,000 + 1,000
    checks = figures["00_check_the_deployment"]
    assert checks["checks"] == checks["checks_passed"] > 10  # AWS has more to be asked


def test_the_stacks_function_did_the_work_of_the_load_tests(aws, function, results):
    if not function:
        pytest.skip("the wheels of the function's package cannot be had here")
    queue = results["13_work_through_a_queue"]["measurements"]
    assert queue["messages_succeeded"]["value"] == queue["messages_planned"]["value"] > 0
    assert sum(aws.mapping.batches) >= queue["messages_planned"]["value"]
    assert aws.function.calls > len(aws.mapping.batches) > 0  # notebook 12 invoked it as well
    assert {one.alive for one in aws.function.environments} == {True}


def test_neither_account_nor_key_nor_token_is_kept_anywhere(executed):
    folder, runs, _ = executed
    texts = {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert len(texts) > 3 * len(CHOSEN)
    texts["output"] = "".join(done.stdout for done in runs).encode()
    for name, text in texts.items():
        assert [word for word in SECRET if word.encode() in text] == [], name


def test_a_run_leaves_nothing_behind(aws, executed, shared):
    *_, before = executed
    assert account(aws) == before
    schemas = shared.database.query("SELECT nspname FROM pg_namespace WHERE nspname ~ '^run_'")
    assert list(schemas) == []


# --- the checks: refusals, permissions, silence ---


@pytest.fixture
def become(aws, monkeypatch):
    """Be somebody on this AWS, in this process."""
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
    """Go through the checks as somebody; gives what did not pass, by name."""

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
    """The settings of S0-01 in the place of the stack's name."""
    return {
        "WORKSHOP_STACK": "",
        "DSQL_ENDPOINT": aws.outputs["DSQLClusterEndpoint"],
        "VALKEY_ENDPOINT": aws.outputs["ValkeyEndpoint"],
        "BUCKET_NAME": aws.outputs["BucketName"],
        "QUEUE_URL": aws.outputs["QueueUrl"],
        "WORKSHOP_NAMESPACE": NAMESPACE,
    }


@pytest.fixture
def without(aws):
    """Somebody who has the notebooks' policy without some of its statements."""

    def make(*sids):
        all_of_them = aws.policy("NotebookPolicyArn")
        mine = [one for one in all_of_them if one["Sid"] not in sids]
        assert len(mine) == len(all_of_them) - len(sids)
        aws.let("limited", "ASIALIMITED", mine, role=aws.outputs["NotebookRoleArn"])
        return "limited"

    return make


@pytest.fixture
def closed_port():
    """A port that lets nobody in: whoever knocks gets no answer, as from a firewall."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=0))  # noqa: S104 -- 127.0.0.2 …
        port = listener.getsockname()[1]
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield port


@pytest.fixture
def silent_port():
    """A port that lets everybody in and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def only(found):
    """The one thing that is wrong."""
    ((name, said),) = found.items()
    return name, said


def test_all_is_well_with_the_stack_as_with_its_addresses(check, endpoints):
    assert check() == check(**endpoints) == {}


def test_a_session_that_ended_a_key_that_is_unknown_and_nobody_are_told_apart(aws, check):
    aws.let("late", "ASIALATE", [], expired=True)
    for name, said, words in (
        (*only(check("late")), "session with AWS has ended"),
        (*only(check(AWS_ACCESS_KEY_ID="AKIANOBODY")), "does not know this access key"),
        (*only(check(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")), "aws sso login"),
    ):
        assert name == "Settings"
        assert words in said


def test_without_credentials_each_line_says_how_to_sign_in(check, endpoints, silent_port):
    nobody = {**endpoints, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    failed = check(**nobody)
    asked = {"AWS identity", "Object store is writable", "Queue answers", "Metrics can be read"}
    assert failed.keys() >= asked
    assert all("aws sso login" in said for said in failed.values())
    unset = check(**nobody, AWS_PROFILE="no").values()
    assert [said for said in unset if "AWS_PROFILE" not in said] == []
    # The role of a machine that never answers is waited for within the limit.
    never = f"http://127.0.0.1:{silent_port}/"
    metadata = {"AWS_EC2_METADATA_DISABLED": "", "AWS_EC2_METADATA_SERVICE_ENDPOINT": never}
    alone = {"DSQL_ENDPOINT": "", "VALKEY_ENDPOINT": "", "QUEUE_URL": ""}
    assert "aws sso login" in check(**nobody | metadata | alone)["AWS identity"]


@pytest.mark.parametrize(
    ("sid", "names", "action"),
    [
        ("ReadTheOutputs", "Settings", "cloudformation:DescribeStacks"),
        ("SignInToTheDatabase", "Database answers", "dsql:DbConnectAdmin"),
        ("UseTheBucket", "Object store is writable", "s3:PutObject"),
        ("ReadMetrics", "Metrics", "cloudwatch:GetMetricData"),
    ],
)
def test_a_missing_permission_is_named(check, without, sid, names, action):
    name, said = only(check(without(sid)))
    assert name.startswith(names)
    assert action in said


def test_a_bucket_elsewhere_and_a_queue_without_dead_letters_are_not_what_is_needed(aws, check):
    place = {"LocationConstraint": OTHER_REGION}
    aws.client("s3", OTHER_REGION).create_bucket(Bucket="far", CreateBucketConfiguration=place)
    aws.client("sqs").create_queue(QueueName="plain")
    queue = aws.outputs["QueueUrl"].rsplit("/", 1)[0] + "/plain"
    failed = check("admin", BUCKET_NAME="far", QUEUE_URL=queue, IAM_USERNAME="admin")
    assert failed.keys() == {"Object store is writable", "Queue answers"}
    assert f"'far' is in {OTHER_REGION}, not in {REGION}" in failed["Object store is writable"]
    assert "no dead-letter queue" in failed["Queue answers"]
    aws.client("s3").delete_bucket(Bucket="far")
    aws.client("sqs").delete_queue(QueueUrl=queue)


def test_a_wrong_region_is_asked_about(check, endpoints):
    """Who may read one stack only is refused in the same way where there is none."""
    name, said = only(check(AWS_REGION=OTHER_REGION))
    assert name == "Settings"
    assert f"Is {OTHER_REGION} the Region in which it was deployed (AWS_REGION)?" in said
    _, said = only(check(**endpoints | {"AWS_REGION": OTHER_REGION}))
    assert REGION in said
    assert OTHER_REGION in said


def test_silence_is_explained_for_each_service_by_what_lets_its_packets_through(
    aws, check, endpoints, monkeypatch, closed_port, silent_port
):
    quick = Config(read_timeout=1, connect_timeout=1, retries={"total_max_attempts": 1})
    monkeypatch.setattr(diagnose, "BRIEF", quick)
    monkeypatch.setattr(diagnose, "ANSWER_S", 1.0)
    with (
        aws.led("*.on.aws:5432", closed_port),
        aws.led("*.cache.amazonaws.com:6379", closed_port),
        aws.led("*:443", silent_port),
    ):
        failed = check(**endpoints)
    for name, words in {
        f"Port of Aurora DSQL in {REGION}": "drops the packets to port 5432",
        "Database answers": "security group",
        "Port of ElastiCache for Valkey": "drops the packets to port 6379",
        "Cache answers": "drops the packets to port 6379",
        "AWS identity": f"no way to the sign-in service of AWS (STS) in {REGION}",
        "Object store is writable": f"no way to Amazon S3 in {REGION}",
        "Queue answers": f"no way to Amazon SQS and CloudWatch in {REGION}",
        "Metrics can be read": f"no way to Amazon SQS and CloudWatch in {REGION}",
    }.items():
        assert words in failed[name], name


@pytest.mark.skipif(sys.platform == "darwin", reason="it has one loopback address, 127.0.0.1")
def test_a_name_with_many_silent_addresses_is_given_up_within_the_limit(
    check, monkeypatch, closed_port
):
    """Each address is waited for in turn; Amazon S3 has eight."""
    look_up = socket.getaddrinfo

    def many(host, port, *args, **kwargs):
        if port != 6379:
            return look_up(host, port, *args, **kwargs)
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (f"127.0.0.{last}", closed_port)) for last in range(2, 10)]

    monkeypatch.setattr(socket, "getaddrinfo", many)
    assert "drops the packets" in check()["Port of ElastiCache for Valkey"]


def test_the_lines_after_the_first_fault_of_a_place_are_not_asked(become, endpoints):
    become(**endpoints, VALKEY_URL="rediss://no-such-host.invalid:6379/0")
    os.environ.pop("VALKEY_ENDPOINT")
    report = check_deployment()
    cache = [check for check in report.checks if "of Valkey of your own" in check.name]
    found = [(check.name.split()[0], check.mark) for check in cache]
    assert found == [("Name", "✗"), ("Port", "–"), ("Certificate", "–")]
    assert "VALKEY_URL" in cache[0].advice


def test_certificates_of_somebody_else_are_refused(check, endpoints, tmp_path):
    strange = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(strange)
    found = check(**endpoints, AWS_CA_BUNDLE=str(strange))
    assert found.keys() >= {
        "AWS identity",
        "Certificate of ElastiCache for Valkey",
        f"Certificate of Amazon S3 in {REGION}",
        "Database answers",
    }
    for said in found.values():
        assert "certificate" in said.lower()


def test_a_certificate_for_another_name_is_refused(aws, check, monkeypatch):
    """Signed by the right authority, shown by the wrong server."""
    monkeypatch.setattr(aws.dsql.cluster, "tls", aws.certificate("somebody.else.example"))
    name, said = only(check())
    assert name == "Database answers"
    assert "certificate" in said


# --- the database ---


@pytest.fixture
def connect(aws, become):
    """Connect to the database by hand, with a new token; as a user of its own, or as admin."""

    @contextmanager
    def open_one(user="admin", who="host", action="generate_db_connect_admin_auth_token"):
        become(who)
        endpoint = resolve(load_settings().values).database
        make = getattr(boto3.Session().client("dsql", region_name=REGION), action)
        given = {**endpoint.arguments, "user": user, "password": make(endpoint.host, REGION)}
        with closing(psycopg2.connect(**given)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            yield cursor

    return open_one


def test_an_eleventh_schema_is_refused(connect):
    with connect() as cursor:
        for number in range(MAX_SCHEMAS):
            cursor.execute(f"CREATE SCHEMA one_of_many_{number}")
        with pytest.raises(psycopg2.errors.ProgramLimitExceeded, match="more than 10 schemas"):
            cursor.execute("CREATE SCHEMA one_too_many")
        for number in range(MAX_SCHEMAS):
            cursor.execute(f"DROP SCHEMA one_of_many_{number}")


def test_a_cluster_that_is_being_woken_is_waited_for(aws, become):
    become()
    aws.dsql.asleep = 3
    with closing(open_workshop()) as ws:
        assert list(ws.database.query("SELECT 1")) == [(1,)]
    assert aws.dsql.asleep == 0


def test_a_user_of_ones_own_signs_in_by_role_and_may_do_what_was_granted(aws, connect):
    role, action = f"arn:aws:iam::{ACCOUNT}:role/visitor", "generate_db_connect_auth_token"
    connects = {"Effect": "Allow", "Action": "dsql:DbConnect", "Resource": "*"}
    outputs = next(one for one in aws.policy("NotebookPolicyArn") if "Read" in one["Sid"])
    aws.let("visitor", "ASIAVISITOR", [connects, outputs], role=role)
    visit = partial(connect, "visitor", "visitor", action)
    with connect("admin", "host") as cursor:
        cursor.execute("CREATE ROLE visitor WITH LOGIN")
        cursor.execute("CREATE TABLE public.of_admin (id int PRIMARY KEY)")
        with pytest.raises(psycopg2.OperationalError, match="access denied"), visit():
            pass
        cursor.execute(f"AWS IAM GRANT visitor TO '{role}'")
        cursor.execute(
            "SELECT pg_role_name, arn FROM sys.iam_pg_role_mappings WHERE arn = %s", [role]
        )
        assert cursor.fetchall() == [("visitor", role)]
        with pytest.raises(psycopg2.OperationalError, match="access denied"):
            connect("admin", "visitor").__enter__()
        with visit() as visitor:
            for refused in ("CREATE SCHEMA visitors", "SELECT * FROM public.of_admin"):
                with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                    visitor.execute(refused)
        cursor.execute("GRANT CREATE ON DATABASE postgres TO visitor")
        with visit() as visitor:
            visitor.execute("CREATE SCHEMA visitors")
            visitor.execute("CREATE TABLE visitors.own (id int PRIMARY KEY, name text)")
            visitor.execute("INSERT INTO visitors.own VALUES (1, 'x')")
            visitor.execute("CREATE INDEX ASYNC ON visitors.own (name)")
            visitor.execute("DROP SCHEMA visitors CASCADE")
        cursor.execute("DROP TABLE public.of_admin")
        cursor.execute("REVOKE CREATE ON DATABASE postgres FROM visitor")
        cursor.execute("DROP ROLE visitor")


# --- the cache ---


def test_a_new_connection_is_not_taken_for_one_with_an_answer_left_in_it(become):
    """As redis-py 8.1 does where nothing has been read yet of what TLS 1.3 sends by itself."""
    become()
    arguments = resolve(load_settings().values).cache.arguments
    for _ in range(50):
        with closing(redis.Redis(**arguments)) as client:
            assert client.ping()


# --- the commands ---


def test_the_check_says_the_same_in_words_and_ends_with_1(aws, without):
    done = aws.run("check", who=without("SignInToTheDatabase", "UseTheBucket"))
    assert (done.returncode, done.stderr) == (1, "")
    assert "✗ Database answers" in done.stdout
    assert "dsql:DbConnectAdmin" in done.stdout
    assert "arn:aws:sts::…:assumed-role" in done.stdout
    assert ACCOUNT not in done.stdout


def test_the_stack_gives_the_settings(aws):
    done = aws.run("check", "--json")
    checks = {one["name"]: one["detail"] for one in json.loads(done.stdout)["checks"]}
    for name in ("DSQL_ENDPOINT", "VALKEY_ENDPOINT", "BUCKET_NAME", "QUEUE_URL"):
        assert f"{name} from stack {STACK}" in checks["Settings"]
    assert checks["AWS identity"] == "signed in as user/moto"
    assert checks["Queue answers"] == (
        "about 0 messages; one that was received stays hidden for 720 s, and after 3 times is a "
        "dead letter"
    )
    assert done.returncode == 0


def test_a_learner_may_not_change_the_stack_and_is_told_so(aws):
    done = aws.run("aws", "deploy", "--stack", STACK)
    assert done.returncode == 1
    assert "is not authorized to perform: cloudformation:CreateChangeSet" in done.stderr
    assert "You are signed in, but may not do this" in done.stderr
    assert ACCOUNT not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_network_is_in_zones_that_have_all_that_is_needed(aws):
    """Which these are differs from run to run, as it does from account to account."""
    ec2 = aws.client("ec2")
    ids = [aws.outputs[name] for name in ("PrivateSubnet1Id", "PrivateSubnet2Id")]
    chosen = {one["AvailabilityZone"] for one in ec2.describe_subnets(SubnetIds=ids)["Subnets"]}
    assert len(chosen) == 2
    for service, letters in aws.zones.items():
        assert chosen <= {f"{REGION}{letter}" for letter in letters}, service
