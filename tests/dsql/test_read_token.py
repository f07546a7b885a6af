"""Tokens: what can be read in one, and what they open."""

import contextlib
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import boto3
import psycopg2
import pytest

from workshop_lib import WorkshopError, open_workshop, read_token
from workshop_lib.errors import ServiceUnreachableError

HOST = "abc.dsql.eu-west-1.on.aws"
SECRET = "not-a-secret"


@pytest.fixture(scope="module")
def signer():
    return boto3.client(
        "dsql",
        region_name="eu-west-1",
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key=SECRET,
    )


@pytest.fixture
def token(signer):
    return signer.generate_db_connect_admin_auth_token(HOST, "eu-west-1", ExpiresIn=60)


def test_a_token_says_for_what_it_is_and_until_when(token):
    found = read_token(token)
    assert (found.host, found.action, found.region) == (HOST, "DbConnectAdmin", "eu-west-1")
    assert found.life_s == 60
    assert found.ends - found.made == timedelta(seconds=60)
    assert abs(datetime.now(UTC) - found.made) < timedelta(seconds=30)
    assert 30 < found.seconds_left <= 60


def test_what_is_shown_of_it_holds_neither_signature_nor_key(token):
    found = read_token(token)
    signature = token.split("X-Amz-Signature=")[1]
    for shown in (repr(found), found._repr_html_()):
        assert signature not in shown
        assert "AKIDEXAMPLE" not in shown
    assert HOST in found._repr_html_()


@pytest.mark.parametrize(
    "wrong", ["", "a password", "host/?Action=DbConnectAdmin", "http://[", HOST]
)
def test_what_is_no_token_is_a_clear_error_that_does_not_repeat_it(wrong):
    with pytest.raises(WorkshopError, match="This is not a sign-in token") as caught:
        read_token(wrong)
    assert not wrong or wrong not in str(caught.value)


def test_the_local_aurora_dsql_is_signed_in_to_with_a_token_until_that_ends(shared, tmp_path):
    results = {"workshop_result_file": tmp_path / "r.json"}
    ws = open_workshop("tokens", needs=["dsql"], workshop_namespace=shared.namespace, **results)
    with contextlib.closing(ws):
        host, region = ws.endpoints.database.host, ws.dsql.meta.region_name
        token = ws.dsql.generate_db_connect_admin_auth_token(host, region, ExpiresIn=3)
        with contextlib.closing(ws.connect(token)) as connection:
            time.sleep(read_token(token).seconds_left + 0.1)
            with pytest.raises(ServiceUnreachableError, match="access denied"):
                ws.connect(token)
            with connection.cursor() as cursor:  # it was looked at when the connection opened, only
                cursor.execute("SELECT current_schema()")
                assert cursor.fetchone() == (ws.namespace,)
        with pytest.raises(WorkshopError, match="not a sign-in token"):
            ws.connect("a password")
        with pytest.raises(psycopg2.errors.FeatureNotSupported, match="SAVEPOINT"):
            ws.database.query("SAVEPOINT a")
        assert ws.database.identity == shared.database.identity
        with ws.at_latency(database=0.01):
            assert ws.database.query("SELECT 1").seconds > 0.01


def test_a_database_that_knows_no_tokens_says_so(ws):
    with pytest.raises(ValueError, match=r"needs=\['dsql'\]"):
        ws.connect("a token")


def test_on_dsql_the_given_token_is_the_password(ws, monkeypatch):
    seen = []
    by_hand = ws.dsql.generate_db_connect_admin_auth_token("c.dsql.us-east-1.on.aws", "us-east-1")

    def connect(**arguments):
        seen.append(arguments["password"])
        raise psycopg2.OperationalError("FATAL:  unable to accept connection, access denied")

    endpoint = replace(ws.database.endpoint, token=lambda: "made by the package", embedded=False)
    monkeypatch.setattr(ws.database, "endpoint", endpoint)
    monkeypatch.setattr(psycopg2, "connect", connect)
    with pytest.raises(ServiceUnreachableError, match="The sign-in was refused"):
        ws.connect(by_hand)
    with pytest.raises(ServiceUnreachableError):
        ws.connect()
    assert seen == [by_hand, "made by the package"]
