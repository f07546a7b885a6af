"""What `workshop check` says on AWS when something is wrong: real refusals, within its limits."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from authority import Authority
from stand_in import NAMESPACE, OTHER_REGION, REGION, STACK

from workshop_lib.checks import LIMIT_S
from workshop_lib.dsql import read_token

SECRET_WORDS = ("123456789012", "secret-of", "X-Amz-Signature")
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


def test_an_expired_session_without_a_stack(aws, check, endpoints):
    aws.let("late", key="ASIALATE", secret="secret-of-late", state="expired", statements=[])
    found = check("late", **endpoints)
    assert "session with AWS has ended" in found["AWS identity"]


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
        ("UseTheQueues", "Queue", "sqs:GetQueueAttributes"),
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


def test_a_wrong_region_has_no_such_stack(check):
    _, said = only(check("admin", AWS_REGION=OTHER_REGION))
    assert f"no stack '{STACK}' in {OTHER_REGION}" in said
    assert "AWS_REGION" in said


def test_a_wrong_region_without_a_stack(check, endpoints):
    _, said = only(check(**{**endpoints, "AWS_REGION": OTHER_REGION}))
    assert REGION in said
    assert OTHER_REGION in said


@pytest.mark.parametrize(
    ("pattern", "kind", "port"),
    [
        ("*.on.aws:5432", "Aurora DSQL", "5432"),
        ("*.cache.amazonaws.com:6379", "ElastiCache", "6379"),
    ],
)
def test_a_blocked_security_group_is_silence_that_ends(aws, check, silence, pattern, kind, port):
    aws.lead(pattern, silence)
    try:
        found = check()
    finally:
        aws.lead(pattern, None)
    name, said = next(iter(found.items()))
    assert name.startswith(f"Port of {kind}")
    assert "security group" in said
    assert port in said


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


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token.replace("X-Amz-Expires=900", "X-Amz-Expires=901"),
        lambda token: token.replace("DbConnectAdmin", "DbConnect"),
        lambda token: token[:-2] + ("00" if token[-2:] != "00" else "11"),
        lambda _: "not-a-token",
    ],
    ids=["longer", "for another action", "signed by somebody else", "none"],
)
def test_a_token_that_was_changed_opens_nothing(aws, spoil):
    """By the same front, so that what the notebooks show of tokens is true there as well."""
    token = aws.token()
    assert read_token(token).host == aws.outputs["DSQLClusterEndpoint"]
    assert aws.sign_in(token) == ""
    assert "access denied" in aws.sign_in(spoil(token))


def test_a_token_that_has_ended_opens_nothing(aws):
    token = aws.token(life_s=1)
    time.sleep(2.1)  # tokens count in whole seconds
    assert "access denied" in aws.sign_in(token)


def test_what_serverless_lacks_is_refused_and_the_rest_is_there(aws):
    assert aws.ask_cache("CONFIG", "GET", "maxmemory").startswith("unknown command")
    assert aws.ask_cache("KEYS", "*").startswith("unknown command")
    assert "CROSSSLOT" in aws.ask_cache("MGET", "a", "b") or "hash to the same" in (
        aws.ask_cache("MGET", "a", "b")
    )
    assert aws.ask_cache("DBSIZE").isdigit()
