"""Each error that a learner can meet comes with help that names the thing to do."""

from __future__ import annotations

import socket
import ssl

import botocore.exceptions as of_botocore
import psycopg2
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import ClientError

from workshop_lib.errors import redact
from workshop_lib.services import (
    CacheEndpoint,
    DatabaseEndpoint,
    MessagingEndpoint,
    StoreEndpoint,
    aws_client,
)
from workshop_lib.services.error_help import advice, cause_of, error_help, error_text

ACCOUNT = "123456789012"


REGION = {"region_name": "us-east-1"}
DSQL = DatabaseEndpoint("a place", "x", 5432, {}, aws=True)
CACHE = CacheEndpoint("a place", "x", 6379, {}, aws=True)
BUCKET = StoreEndpoint("a place", "x", 443, REGION, "BUCKET_NAME", aws=True)
QUEUE = MessagingEndpoint("a place", "x", 443, REGION, "QUEUE_URL", aws=True)
OWN = CacheEndpoint("a place", "x", 6380, {})
LOCAL = DatabaseEndpoint("a place", "x", 41_000, {}, embedded=True)


def answer(code, operation="PutObject", message="", **headers):
    metadata = {"HTTPStatusCode": 400, "HTTPHeaders": headers}
    given = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}
    return ClientError(given, operation)


def denied(why):
    said = f"User: arn:aws:sts::{ACCOUNT}:assumed-role/R/me is not authorized to perform: "
    return answer("AccessDenied", message=f"{said}kms:Decrypt on resource: x {why}")


def database(said):
    return psycopg2.OperationalError(f'connection to server at "x", port 1 failed: {said}')


@pytest.mark.parametrize(
    ("error", "where", "named"),
    [
        (redis.AuthenticationError("WRONGPASS"), LOCAL, "`workshop stop`"),
        # an answer of AWS
        (answer("InvalidClientTokenId"), None, "aws configure list"),
        (answer("InvalidSignatureException", message="Signature expired: A"), QUEUE, "date -u"),
        (answer("AccessDenied"), BUCKET, "it takes s3:PutObject"),
        (denied("because no policy allows it"), BUCKET, "it takes kms:Decrypt"),
        (denied("with an explicit deny in a policy"), BUCKET, "forbids kms:Decrypt"),
        (answer("403", **{"x-amz-bucket-region": "eu-west-1"}), BUCKET, "It is in eu-west-1, but"),
        (answer("404"), BUCKET, "correct BUCKET_NAME"),
        (answer("AWS.SimpleQueueService.NonExistentQueue"), QUEUE, "correct QUEUE_URL"),
        (answer("SomethingNew", message="timeout"), BUCKET, "no advice"),
        # AWS's client library
        (of_botocore.NoCredentialsError(), None, "aws sts get-caller-identity"),
        (of_botocore.ProfileNotFound(profile="me"), None, "aws configure list-profiles"),
        (of_botocore.ConnectTimeoutError(endpoint_url="x"), QUEUE, "NAT gateway or a VPC"),
        # a database
        (database("FATAL:  unable to accept connection, access denied"), DSQL, "DbConnectAdmin"),
        (database("timeout expired"), LOCAL, "workshop stop"),
        (database('server certificate for "a" does not match host name "b"'), DSQL, "own name"),
        # a cache, or the network
        (redis.ConnectionError("Error 110 connecting: timed out"), OWN, "port 6380"),
        (redis.AuthenticationError("WRONGPASS"), CACHE, "rediss://user:password@host"),
        (ssl.SSLCertVerificationError(1, "self-signed certificate"), CACHE, "verification on"),
        (ConnectionRefusedError(111, "Connection refused"), QUEUE, "AWS_ENDPOINT_URL"),
    ],
    ids=lambda value: repr(value)[:70] if isinstance(value, Exception) else "",
)  # fmt: skip
def test_the_help_names_what_to_do(error, where, named):
    assert named in advice(error, where)
    assert "{" not in advice(error, where)
    assert advice(error, where) in error_help(error, where)


@pytest.mark.parametrize(
    ("host", "cause"), [("127.0.0.1", "refused"), ("no-such-host.invalid", "name unknown")]
)
def test_the_cause_is_found_behind_what_the_aws_library_raises(host, cause):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url, keys = f"http://{host}:{taken.getsockname()[1]}", {"aws_access_key_id": "a"}
        once = Config(connect_timeout=2, retries={"total_max_attempts": 1}, proxies={})
        given = {**REGION, **keys, "aws_secret_access_key": "b", "config": once}
        client = aws_client("sts", {**given, "endpoint_url": url})
        with pytest.raises(of_botocore.EndpointConnectionError) as failed:
            client.get_caller_identity()
    assert cause_of(failed.value) == cause


def test_an_error_is_a_sentence_with_its_code_once():
    assert error_text(answer("NoSuchBucket", message="It does not exist.")) == (
        "PutObject was answered NoSuchBucket: It does not exist."
    )
    assert error_text(ValueError()) == "ValueError."
    guess = "Is the server running on that host and accepting TCP/IP connections?"
    assert error_text(database(f"Connection refused\n\t{guess}\n")).endswith("refused.")
    assert ACCOUNT not in error_help(denied("because"), BUCKET)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/R/me", "arn:aws:sts::…:assumed-role/R/me"),
        (f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/q", "amazonaws.com/…/q"),
        (f"bucket-{ACCOUNT}-us-east-1", "bucket-…-us-east-1"),
        ("Credential=AKIAIOSFODNN7EXAMPLE/2026", "Credential=…/2026"),
        ("job abcd123456789012ef", "abcd123456789012ef"),
    ],
)
def test_accounts_keys_and_tokens_are_masked_and_the_rest_is_kept(said, shown):
    assert redact(said).endswith(shown)
    assert error_text(ValueError(said)).endswith(f"{shown}.")
