"""Tokens: what can be read in one, and what is found out before a server would."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import boto3
import psycopg2
import pytest

from workshop_lib import WorkshopError, read_token
from workshop_lib.dsql import find_fault, tokens
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


@pytest.fixture
def later(monkeypatch):
    """Moves the clock of the module on, by seconds."""

    def move(seconds):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + timedelta(seconds=seconds)

        monkeypatch.setattr(tokens, "datetime", Clock)

    return move


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


def test_it_has_no_fault_until_it_ends(token, later):
    assert find_fault(token, HOST) == ""
    later(61)
    assert read_token(token).seconds_left == 0
    assert "60 s after it was made" in find_fault(token, HOST)


def test_one_for_another_host_or_another_user_is_turned_down(signer, token):
    assert find_fault(token, "elsewhere") == f"it was made for {HOST}, and this is elsewhere"
    other = signer.generate_db_connect_auth_token(HOST, "eu-west-1")
    assert "allows DbConnect, and the user admin needs DbConnectAdmin" in find_fault(other, HOST)


@pytest.mark.parametrize(
    "wrong", ["", "a password", "host/?Action=DbConnectAdmin", "http://[", HOST]
)
def test_what_is_no_token_is_a_clear_error_that_does_not_repeat_it(wrong):
    with pytest.raises(WorkshopError, match="This is not a sign-in token") as caught:
        read_token(wrong)
    assert not wrong or wrong not in str(caught.value)


def test_a_local_server_is_signed_in_to_with_a_token_until_that_ends(ws, later):
    host, region = ws.endpoints.database.host, ws.dsql.meta.region_name
    token = ws.dsql.generate_db_connect_admin_auth_token(host, region, ExpiresIn=60)
    connection = ws.connect(token)
    later(61)
    with pytest.raises(ServiceUnreachableError, match=r"access denied.*it ended at.*Emulated"):
        ws.connect(token)
    with connection.cursor() as cursor:  # it was looked at when the connection opened, only
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
    connection.close()


def test_what_is_no_token_opens_no_connection(ws):
    with pytest.raises(WorkshopError, match="not a sign-in token"):
        ws.connect("a password")


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
