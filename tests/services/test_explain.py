"""Each error that a learner can meet on AWS comes with advice that names the thing to do."""

from __future__ import annotations

import socket
import ssl
import string

import boto3
import botocore.exceptions as of_botocore
import psycopg2
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import ClientError

from workshop_lib.errors import one_line
from workshop_lib.services.endpoints import (
    CacheEndpoint,
    DatabaseEndpoint,
    Endpoint,
    MessagingEndpoint,
    StoreEndpoint,
)
from workshop_lib.services.explain import (
    ACTIONS,
    ADVICE,
    CODES,
    SIGNS,
    cause_of,
    code_of,
    explain,
    sentence,
)

ACCOUNT = "123456789012"


def place(kind, port, **more):
    arguments = {"region_name": "us-east-1"}
    given = {"label": "a place", "address": f"x:{port}", "host": "x", "arguments": arguments}
    return kind(port=port, **{**given, **more})


DSQL = place(DatabaseEndpoint, 5432, aws=True)
CACHE = place(CacheEndpoint, 6379, aws=True)
BUCKET = place(StoreEndpoint, 443, aws=True, bucket="b")
QUEUE = place(MessagingEndpoint, 443, aws=True)
OWN = place(CacheEndpoint, 6380)
LOCAL = place(DatabaseEndpoint, 41_000, embedded=True)
PLACES = {"dsql": DSQL, "cache": CACHE, "bucket": BUCKET, "queue": QUEUE, "own": OWN,
          "local": LOCAL, "AWS": None}  # fmt: skip


def answer(code, operation="PutObject", message="", **headers):
    metadata = {"HTTPStatusCode": 400, "HTTPHeaders": headers}
    given = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}
    return ClientError(given, operation)


def fragments(text):
    """The names that a format has places for."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize(
    ("code", "where", "to_do"),
    [
        ("ExpiredToken", None, "aws sso login"),
        ("ExpiredTokenException", QUEUE, "AWS_SESSION_TOKEN"),
        ("RequestExpired", None, "Sign in again"),
        ("InvalidClientTokenId", None, "aws configure list"),
        ("UnrecognizedClientException", QUEUE, "aws configure list"),
        ("InvalidAccessKeyId", BUCKET, "aws configure list"),
        ("InvalidAccessKeyId", OWN, "check AWS_ACCESS_KEY_ID"),
        ("AuthFailure", None, "aws configure list"),
        ("SignatureDoesNotMatch", BUCKET, "AWS_SECRET_ACCESS_KEY"),
        ("InvalidSignatureException", QUEUE, "AWS_SECRET_ACCESS_KEY"),
        ("RequestTimeTooSkewed", BUCKET, "date -u"),
        ("AccessDenied", BUCKET, "it takes s3:PutObject"),
        ("AccessDeniedException", QUEUE, "NotebookPolicyArn"),
        ("UnauthorizedOperation", None, "list-attached-role-policies"),
        ("403", BUCKET, "it takes s3:PutObject"),
        ("PermanentRedirect", BUCKET, "Set AWS_REGION"),
        ("301", BUCKET, "Set AWS_REGION"),
        ("IllegalLocationConstraintException", BUCKET, "Set AWS_REGION"),
        ("AuthorizationHeaderMalformed", BUCKET, "Set AWS_REGION"),
        ("NoSuchBucket", BUCKET, "correct BUCKET_NAME"),
        ("404", BUCKET, "correct BUCKET_NAME"),
        ("QueueDoesNotExist", QUEUE, "correct QUEUE_URL"),
        ("AWS.SimpleQueueService.NonExistentQueue", QUEUE, "correct QUEUE_URL"),
        ("ThrottlingException", QUEUE, "Wait a minute"),
        ("OptInRequired", None, "another AWS_REGION"),
    ],
)
def test_each_code_of_aws_has_its_own_next_step(code, where, to_do):
    assert to_do in explain(answer(code), where)


def test_every_cause_has_advice_and_every_advice_a_cause():
    found_in_messages = {"forbidden", "endpoint policy", "bucket elsewhere", "no TLS", "unknown"}
    causes = {*CODES.values(), *SIGNS.values(), *found_in_messages}
    assert {key.split(",")[0] for key in ADVICE} == causes
    assert causes <= set(ADVICE) | {"refused"}


@pytest.mark.parametrize("where", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("code", CODES)
def test_no_advice_has_a_gap_or_asks_for_nothing(code, where):
    said = explain(answer(code), where)
    assert "{" not in said
    assert said.endswith((".", "?"))
    assert len(said) < 400


def test_advice_is_filled_in_with_what_is_known_only():
    known = {"port", "place", "action", "region", "bucket_region"}
    assert set().union(*map(fragments, ADVICE.values())) <= known


@pytest.mark.parametrize(
    ("error", "to_do"),
    [
        (of_botocore.NoCredentialsError(), "aws sts get-caller-identity"),
        (of_botocore.PartialCredentialsError(provider="env", cred_var="x"), "Set both"),
        (of_botocore.ProfileNotFound(profile="me"), "aws configure list-profiles"),
        (of_botocore.SSOTokenLoadError(error_msg="none"), "aws sso login"),
        (of_botocore.UnauthorizedSSOTokenError(), "aws sso login"),
        (of_botocore.TokenRetrievalError(provider="sso", error_msg="expired"), "aws sso login"),
        (of_botocore.LoginRefreshRequired(), "aws login"),
        (of_botocore.CredentialRetrievalError(provider="p", error_msg="m"), "credential_process"),
        (of_botocore.ConfigParseError(path="/x"), "~/.aws/config"),
        (of_botocore.NoRegionError(), "Set it to one such as us-east-1"),
        (of_botocore.ConnectTimeoutError(endpoint_url="x"), "NAT gateway or a VPC endpoint"),
        (of_botocore.ReadTimeoutError(endpoint_url="x"), "NAT gateway or a VPC endpoint"),
        (of_botocore.ProxyConnectionError(proxy_url="x"), "HTTPS_PROXY"),
        (of_botocore.ConnectionClosedError(endpoint_url="x"), "Try again"),
        (of_botocore.SSLError(endpoint_url="x", error="certificate verify failed"), "verification"),
        (of_botocore.SSLError(endpoint_url="x", error="wrong version number"), "own name"),
        (TimeoutError("no answer within 10 s"), "NAT gateway or a VPC endpoint"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_of_the_aws_library_has_its_own_next_step(error, to_do):
    assert to_do in explain(error, QUEUE)


@pytest.mark.parametrize(
    ("said", "where", "to_do"),
    [
        ("FATAL:  unable to accept connection, access denied", DSQL, "lacks dsql:DbConnectAdmin"),
        ('connection to server at "x", port 5432 failed: timeout expired', DSQL, "let 5432 out"),
        ('could not translate host name "x" to address', DSQL, "aws dsql list-clusters"),
        ("SSL error: certificate verify failed", DSQL, "not Amazon's"),
        ('server certificate for "a" does not match host name "b"', DSQL, "own name"),
        ("server does not support SSL, but SSL was required", DSQL, "own name"),
        ("SSL connection has been closed unexpectedly", DSQL, "Try again"),
        ("FATAL:  too many connections", DSQL, "Wait a minute"),
        ('FATAL:  password authentication failed for user "admin"', OWN, "user and password"),
        ('connection to server at "x", port 1 failed: Connection refused', OWN, "address right"),
        ('connection to server at "x", port 1 failed: Connection refused', LOCAL, "status"),
        ("FATAL:  the database system is shutting down", LOCAL, "open_workshop() and"),
        ('connection to server at "x", port 1 failed: timeout expired', LOCAL, "workshop stop"),
    ],
)
def test_each_refusal_of_a_database_has_its_own_next_step(said, where, to_do):
    assert to_do in explain(psycopg2.OperationalError(said), where)


@pytest.mark.parametrize(
    ("error", "where", "to_do"),
    [
        (redis.TimeoutError("Timeout connecting to server"), CACHE, "let port 6379 in"),
        (redis.ConnectionError("Error 110 connecting: timed out"), CACHE, "let port 6379 in"),
        (redis.ConnectionError("Error -2: Name or service not known"), CACHE, "VALKEY_ENDPOINT"),
        (redis.ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED]"), CACHE, "certificate"),
        (redis.AuthenticationError("WRONGPASS"), CACHE, "rediss://user:password@host"),
        (redis.AuthenticationError("WRONGPASS"), OWN, "user and password"),
        (redis.ConnectionError("Connection closed by server."), OWN, "rediss://"),
        (redis.TimeoutError("Timeout reading from socket"), OWN, "let port 6380 in"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"), OWN, "rediss://"),
        (ssl.SSLCertVerificationError(1, "self-signed certificate"), CACHE, "verification on"),
        (socket.gaierror(-2, "Name or service not known"), OWN, "typing mistakes"),
        (ConnectionRefusedError(111, "Connection refused"), CACHE, "/etc/hosts"),
        (ConnectionRefusedError(111, "Connection refused"), OWN, "is the server running"),
        (OSError(113, "No route to host"), OWN, "security group"),
        (RuntimeError("what was read is not what was written"), BUCKET, "the service's own"),
    ],
)
def test_each_way_for_a_cache_or_a_network_to_fail_has_its_own_next_step(error, where, to_do):
    assert to_do in explain(error, where)


@pytest.mark.parametrize(
    ("host", "cause"), [("127.0.0.1", "refused"), ("no-such-host.invalid", "name unknown")]
)
def test_the_aws_library_tells_a_refusal_from_an_unknown_name_deep_inside(host, cause):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        client = boto3.Session().client(
            "sts",
            region_name="us-east-1",
            endpoint_url=f"http://{host}:{taken.getsockname()[1]}",
            aws_access_key_id="a",
            aws_secret_access_key="b",
            config=Config(connect_timeout=2, retries={"total_max_attempts": 1}, proxies={}),
        )
        with pytest.raises(of_botocore.EndpointConnectionError) as failed:
            client.get_caller_identity()
    assert cause_of(failed.value) == cause


def test_the_missing_permission_is_the_one_that_aws_names():
    said = f"User: arn:aws:sts::{ACCOUNT}:assumed-role/R/me is not authorized to perform: "
    denied = answer("AccessDenied", message=f"{said}kms:Decrypt on resource: x because no")
    assert "it takes kms:Decrypt" in explain(denied, BUCKET)


@pytest.mark.parametrize(("operation", "action"), ACTIONS.items())
def test_where_aws_does_not_name_the_permission_the_operation_does(operation, action):
    assert f"it takes {action}" in explain(answer("403", operation, "Forbidden"), BUCKET)


def test_a_refusal_that_no_permission_of_ones_own_can_mend_is_told_apart():
    said = "not authorized to perform: s3:PutObject on resource: x"
    scp = answer("AccessDenied", message=f"{said} with an explicit deny in a bucket policy")
    way = answer("AccessDenied", message=f"{said} because no VPC endpoint policy allows it")
    assert "forbids s3:PutObject expressly" in explain(scp, BUCKET)
    assert "VPC endpoint on the way does not allow s3:PutObject" in explain(way, BUCKET)


def test_a_signature_that_came_too_late_is_the_clocks_fault():
    late = answer("InvalidSignatureException", message="Signature expired: A is now earlier than B")
    assert cause_of(late) == "clock"


def test_the_region_that_s3_names_in_a_refusal_is_what_is_wrong():
    elsewhere = answer("403", "HeadBucket", **{"x-amz-bucket-region": "eu-west-1"})
    here = answer("403", "HeadBucket", **{"x-amz-bucket-region": "us-east-1"})
    assert "The bucket is in eu-west-1, AWS_REGION says us-east-1" in explain(elsewhere, BUCKET)
    assert cause_of(here, BUCKET) == "not allowed"
    assert cause_of(elsewhere, OWN) == "not allowed"


def test_an_error_is_a_sentence_with_its_code_once():
    assert sentence(answer("NoSuchBucket", message="It does not exist.")) == (
        "PutObject was answered NoSuchBucket: It does not exist."
    )
    assert sentence(answer("403", "HeadBucket")) == "HeadBucket was answered 403."
    assert sentence(ValueError()) == "ValueError."
    assert code_of(ValueError()) == ""


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/R/me", "arn:aws:sts::…:assumed-role/R/me"),
        (f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/q", "amazonaws.com/…/q"),
        (f"bucket-{ACCOUNT}-us-east-1", "bucket-…-us-east-1"),
        ("Credential=AKIAIOSFODNN7EXAMPLE/2026", "Credential=…/2026"),
        ("x-amz-security-token:IQoJb3JpZ2lu+abc/def== next", "x-amz-security-token:… next"),
        ("?X-Amz-Signature=0123abcdef&x=1", "?X-Amz-Signature=…&x=1"),
        ("Encoded authorization failure message: 8Ujk_-x", "failure message: …"),
        ("a number of 13 digits: 1234567890123", "1234567890123"),
        ("job abcd123456789012ef", "abcd123456789012ef"),
    ],
)
def test_accounts_keys_and_tokens_are_masked_and_the_rest_is_kept(said, shown):
    assert one_line(said).endswith(shown)


def test_an_error_of_a_place_is_masked_too():
    denied = answer("AccessDenied", message=f"User: arn:aws:iam::{ACCOUNT}:user/me is not")
    assert ACCOUNT not in sentence(denied) + explain(denied, BUCKET)


def test_any_endpoint_will_do():
    bare = Endpoint("STS", "", "", 443, {}, aws=True)
    assert "no way to STS" in explain(TimeoutError(), bare)
