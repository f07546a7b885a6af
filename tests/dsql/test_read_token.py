"""What can be read in a token."""

from datetime import UTC, datetime, timedelta

import boto3
import pytest

from workshop_lib import WorkshopError, read_token

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
