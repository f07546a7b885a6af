"""Sign-in tokens: a client that is kept, against one that is built for each token."""

from __future__ import annotations

import boto3
import pytest

from workshop_lib.services.endpoints import TokenMaker

HOST, REGION = "abc.dsql.us-east-1.on.aws", "us-east-1"


@pytest.fixture(autouse=True)
def _stand_in_credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stand-in")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "stand-in")


def sign(client):
    return client.generate_db_connect_admin_auth_token(HOST, REGION, ExpiresIn=900)


def test_a_token_for_each_connection(race):
    kept = boto3.Session().client("dsql", region_name=REGION)
    ours = TokenMaker(HOST, REGION)
    race(
        "token",
        {
            "ours": ours,
            "a kept boto3 client": lambda: sign(kept),
            "a client each": lambda: sign(boto3.Session().client("dsql", region_name=REGION)),
        },
        goal=1.1,
        rounds=15,
    )
