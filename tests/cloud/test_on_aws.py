"""The notebooks and the commands on AWS, as far as this machine has it.

The package takes the path that it takes there, and knows nothing of the stand-in (`standin/`). One
file, as what stands in takes half a minute to start.
"""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from authority import Authority
from stand_in import HOST, NAMESPACE, OTHER_REGION, REGION, STACK

from workshop_lib import runner
from workshop_lib.checks import LIMIT_S

# --- notebooks ---

ACCOUNT = "123456789012"
THE_SAME_THERE = ("02", "03", "04", "05", "06", "09", "12")
"""What these use of AWS, others use as well; some work in a sandbox of local engines anywhere."""
CHOSEN = [one.name for one in runner.find_notebooks() if not one.name.startswith(THE_SAME_THERE)]


@pytest.fixture(scope="module")
def executed(aws, function, tmp_path_factory):
    """One quick run as they are committed, with the notebooks' policy alone."""
    folder = tmp_path_factory.mktemp("run on aws")
    before = account(aws)
    fewer = ("-p", "rows=3001")  # notebook 07 updates them fifteen times over
    done = aws.run("run", "--workers", "1", *fewer, "--out", str(folder), *CHOSEN)
    return folder, done, before


@pytest.fixture(scope="module")
def results(executed):
    folder, _, _ = executed
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def account(aws):
    """What a run may use and has to leave as it was."""
    s3, sqs = aws.client("s3"), aws.client("sqs")
    bucket = aws.outputs["BucketName"]
    return {
        "objects": [o["Key"] for o in s3.list_objects_v2(Bucket=bucket).get("Contents", [])],
        "queues": sqs.list_queues()["QueueUrls"],
        "waiting": [
            sqs.get_queue_attributes(
                QueueUrl=aws.outputs[queue], AttributeNames=["ApproximateNumberOfMessages"]
            )["Attributes"]["ApproximateNumberOfMessages"]
            for queue in ("QueueUrl", "DeadLetterQueueUrl")
        ],
    }


def test_the_notebooks_pass(executed):
    _, done, _ = executed
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    passed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("✓")]
    assert sorted(passed) == CHOSEN


def test_the_results_say_that_it_was_aws_and_where(results):
    for name, result in results.items():
        services = result["services"]
        assert services["database"]["label"] == f"Aurora DSQL in {REGION}", name
        assert services["cache"]["label"] == "ElastiCache for Valkey", name
        assert services["store"]["label"] == f"Amazon S3 in {REGION}", name
        assert {one["embedded"] for one in list(services.values())[:3]} == {False}
        assert services["database"]["region"] == REGION
    assert results["11_load_reads_and_writes"]["services"]["messaging"]["label"] == (
        f"Amazon SQS and CloudWatch in {REGION}"
    )


def test_what_cannot_be_done_there_is_skipped_visibly(executed):
    folder, _, _ = executed
    name = "08_compare_cold_warm_pooled"
    assert "Skipped: an emulated latency of" in (folder / f"{name}.html").read_text()
    assert json.loads((folder / f"{name}.json").read_text())["latencies"] == []


def test_the_values_are_those_that_they_are_everywhere(results):
    figures = {
        name: {key: one["value"] for key, one in result["measurements"].items()}
        for name, result in results.items()
    }
    seeded = figures["01_seed_the_data"]
    assert (seeded["users_rows"], seeded["orders_rows"], seeded["objects"]) == (500, 2_500, 200)
    assert seeded["commits_for_transactions"] == 3  # 3,000 + 3,000 + 1,000
    checks = figures["00_check_the_deployment"]
    assert checks["checks"] == checks["checks_passed"] > 11  # AWS has more to be asked


def test_the_stacks_function_did_the_work_of_the_load_tests(aws, function, results):
    if not function:
        pytest.skip("the wheels of the function's package cannot be had here")
    queue = results["11_load_reads_and_writes"]["measurements"]
    assert queue["messages_succeeded"]["value"] == queue["messages_planned"]["value"] > 0
    assert sum(aws.mapping.batches) >= queue["messages_planned"]["value"]
    assert aws.function.calls > len(aws.mapping.batches) > 0  # notebook 10 invoked it as well
    assert {one.process.returncode for one in aws.function.environments} == {None}


def test_neither_account_nor_key_nor_token_is_kept_anywhere(executed):
    folder, done, _ = executed
    secret = (ACCOUNT, HOST["key"], HOST["secret"], "X-Amz-Signature", "X-Amz-Credential")
    texts = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert len(texts) > 3 * len(CHOSEN)
    for name, text in {**texts, "output": done.stdout.encode()}.items():
        assert [word for word in secret if word.encode() in text] == [], name


def test_a_run_leaves_nothing_behind(aws, executed, shared):
    *_, before = executed
    assert account(aws) == before
    schemas = shared.database.query("SELECT nspname FROM pg_namespace WHERE nspname ~ '^run_'")
    assert list(schemas) == []
    assert aws.keys("run_*") == []


def test_the_stack_gives_the_settings(aws):
    done = aws.run("check", "--json")
    checks = json.loads(done.stdout)["checks"]
    (settings,) = [one for one in checks if one["name"] == "Settings"]
    for name in ("DSQL_ENDPOINT", "VALKEY_ENDPOINT", "BUCKET_NAME", "QUEUE_URL"):
        assert f"{name} from stack {STACK}" in settings["detail"]
    assert done.returncode == 0


# --- `workshop check` and `workshop aws` in processes of their own: refusals, permissions ---

SECRET_WORDS = (ACCOUNT, "secret-of", "X-Amz-Signature")
SPARE_S = 20.0
"""For the other checks, on a busy machine."""


@pytest.fixture(scope="module")
def checker(aws):
    """A process on this AWS that goes through the checks when it is given an environment."""
    program = Path(__file__).parent / "standin" / "checking.py"
    with subprocess.Popen(
        [sys.executable, str(program)],
        env=aws.signed_in(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def check(aws, checker):
    """Go through the checks as somebody; gives those that did not pass, by name."""

    def run(who="host", **environment):
        began = time.monotonic()
        given = {**aws.signed_in(who), "WORKSHOP_STACK": STACK, **environment}
        checker.stdin.write(json.dumps(given) + "\n")
        checker.stdin.flush()
        said = checker.stdout.readline()
        took = time.monotonic() - began
        assert [word for word in SECRET_WORDS if word in said] == []
        report = json.loads(said)
        assert report["ok"] is False
        assert all(one["seconds"] < LIMIT_S for one in report["checks"])
        assert took < 2 * LIMIT_S + SPARE_S
        return {one["name"]: one["detail"] + " " + one["advice"] for one in report["checks"]
                if one["ok"] is False}  # fmt: skip

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
def silence():
    """A listener that takes nobody in: whoever knocks gets no answer, as from a firewall."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()


@pytest.fixture
def without(aws):
    """Somebody who has the notebooks' policy without some of its statements."""

    def make(*sids):
        mine = [one for one in aws.policy("NotebookPolicyArn") if one["Sid"] not in sids]
        assert len(mine) == len(aws.policy("NotebookPolicyArn")) - len(sids)
        aws.let("limited", key="ASIALIMITED", secret="secret-of-limited", statements=mine)
        return "limited"

    return make


def only(found):
    """The one thing that is wrong."""
    ((name, said),) = found.items()
    return name, said


def test_the_command_says_the_same_and_ends_with_1(aws, without):
    done = aws.run("check", who=without("SignInToTheDatabase"))
    assert (done.returncode, done.stderr) == (1, "")
    assert "✗ Database answers" in done.stdout
    assert "dsql:DbConnectAdmin" in done.stdout


def test_an_expired_session_is_told_from_a_missing_permission(aws, check):
    aws.let("late", key="ASIALATE", secret="secret-of-late", state="expired", statements=[])
    name, said = only(check("late"))
    assert name == "Settings"
    assert "session with AWS has ended" in said


def test_an_unknown_key(aws, check):
    _, said = only(check(AWS_ACCESS_KEY_ID="AKIANOBODY"))
    assert "does not know this access key" in said


def test_nobody_signed_in(aws, check):
    _, said = only(check(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY=""))
    assert "aws sso login" in said


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


def test_a_wrong_region_is_asked_about(check):
    """Who may read one stack only is refused in the same way where there is none."""
    name, said = only(check(AWS_REGION=OTHER_REGION))
    assert name == "Settings"
    assert f"Is {OTHER_REGION} the Region in which it was deployed (AWS_REGION)?" in said


def test_a_wrong_region_without_a_stack(check, endpoints):
    _, said = only(check(**{**endpoints, "AWS_REGION": OTHER_REGION}))
    assert REGION in said
    assert OTHER_REGION in said


def test_a_blocked_security_group_is_silence_that_ends(aws, check, silence):
    aws.lead("*.on.aws:5432", silence)
    try:
        found = check()
    finally:
        aws.lead("*.on.aws:5432", None)
    name, said = next(iter(found.items()))
    assert name.startswith("Port of Aurora DSQL")
    assert "security group" in said
    assert "5432" in said


def test_certificates_of_somebody_else_are_refused(aws, check, endpoints, tmp_path):
    strange = Authority(tmp_path, "stranger")
    found = check(**endpoints, AWS_CA_BUNDLE=str(strange.file))
    assert {name.split(" at ")[0] for name in found} >= {
        "AWS identity",
        "Certificate of ElastiCache for Valkey",
        f"Certificate of Amazon S3 in {REGION}",
    }
    for said in found.values():
        assert "certificate" in said.lower()


def test_a_certificate_for_another_name_is_refused(aws, check):
    """Signed by the right authority, shown by the wrong server."""
    aws.lead("*.on.aws:5432", aws.impostor("dsql", "somebody.else.example"))
    try:
        found = check()
    finally:
        aws.lead("*.on.aws:5432", None)
    assert any("certificate" in said for said in found.values())
    assert all("Aurora DSQL" in name or "Database" in name for name in found)


# --- workshop aws ---


def test_whoever_works_on_the_stack_may_not_change_it_and_is_told_so(aws):
    done = aws.run("aws", "deploy", "--stack", STACK)
    assert done.returncode == 1
    assert "is not authorized to perform: dsql:GET/cluster" in done.stdout
    assert "is not authorized to perform: cloudformation:CreateChangeSet" in done.stderr
    assert "You may not do this. Ask the account's administrator" in done.stderr
    assert ACCOUNT not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_stack_is_made_filled_and_goes_with_all_it_holds(aws):
    s3 = aws.client("s3")
    buckets = len(s3.list_buckets()["Buckets"])
    words = ("--stack", "throw-away", "--yes")
    done = aws.run(
        *("aws", "deploy", *words, "--no-function", "-p", "HostType=none"),
        who="admin",
        WORKSHOP_STACK="",
    )
    assert done.returncode == 0, done.stderr
    assert len(s3.list_buckets()["Buckets"]) == buckets + 1
    gone = aws.run("aws", "destroy", *words, who="admin")
    assert gone.returncode == 0, gone.stderr
    assert "the bucket with all its objects" in gone.stdout
    assert "throw-away in us-east-1 is deleted. What remains besides:" in gone.stdout
    assert len(s3.list_buckets()["Buckets"]) == buckets
