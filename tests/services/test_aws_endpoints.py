"""What the settings for AWS turn into, as far as that can be seen without an account."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import closing
from types import SimpleNamespace

import certifi
import pytest
import redis
from psycopg2.extensions import parse_dsn

from workshop_lib.dsql import read_token
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.services import exports, resolve
from workshop_lib.services.endpoints import embedded_store
from workshop_lib.services.local import EngineState
from workshop_lib.settings import load_settings

CLUSTER = "abcdefghij.dsql.us-east-1.on.aws"
CACHE = "mine.serverless.use1.cache.amazonaws.com"


@pytest.fixture
def on_aws(aws_environment):
    """Finds the endpoints of a deployment on AWS, whose credentials sign but open nothing."""

    def find(**changes):
        given = {"DSQL_ENDPOINT": CLUSTER, "VALKEY_ENDPOINT": CACHE, "BUCKET_NAME": "my-bucket"}
        aws_environment(**given | changes)
        return resolve(load_settings().values)

    return find


def test_each_service_is_amazons_own_with_verified_tls_bounded_waits_and_no_stored_secret(on_aws):
    found = on_aws()
    database, cache, store = found.all
    assert [(one.aws, one.tls, one.embedded, one.emulated) for one in found.all] == [
        (True, True, False, False)
    ] * 3
    place = {"host": CLUSTER, "port": 5432, "user": "admin", "dbname": "postgres"}
    trust = {"sslmode": "verify-full", "sslrootcert": certifi.where()}
    assert {**place, **trust}.items() <= database.arguments.items()
    assert database.arguments["connect_timeout"] <= 10
    assert "password" not in database.arguments
    assert {"host": CACHE, "port": 6379, "ssl": True}.items() <= cache.arguments.items()
    assert "ssl_cert_reqs" not in cache.arguments  # the client's default is to verify
    assert cache.arguments["socket_timeout"] <= 5
    assert store.bucket == "my-bucket"
    assert set(store.arguments) == {"region_name", "config"}
    assert store.arguments["region_name"] == "us-east-1"
    assert "not-a-real-secret" not in repr(found)
    found = on_aws(AWS_CA_BUNDLE="/etc/ours.pem")  # a company's own certificates
    assert found.database.arguments["sslrootcert"] == "/etc/ours.pem"
    assert found.cache.arguments["ssl_ca_certs"] == "/etc/ours.pem"


def test_a_new_connection_to_the_cache_begins_with_one_command(on_aws, ws):
    """Each is a round trip; redis-py's defaults send three more, one of which is refused there."""
    local = {name: ws.endpoints.cache.arguments[name] for name in ("host", "port", "password")}
    arguments = {**on_aws().cache.arguments, **local, "ssl": False}
    arguments.pop("ssl_ca_certs")
    before = commands(ws.valkey)
    with closing(redis.Redis(**arguments)) as client:
        client.ping()
    assert commands(ws.valkey) - before - Counter({"info": 1}) == Counter(["hello", "ping"])


def commands(client):
    """How often which command was sent to a server."""
    stats = client.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()})


def test_a_token_is_made_without_network_lasts_15_minutes_and_its_maker_can_travel(on_aws):
    for maker in (on_aws().database.token, copy.copy(on_aws().database.token)):
        token = maker()
        assert token.startswith(f"{CLUSTER}/?Action=DbConnectAdmin")
        assert "X-Amz-Expires=900" in token
        assert "not-a-real-secret" not in token


def test_without_credentials_making_a_token_says_how_to_sign_in(on_aws):
    endpoints = on_aws(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    with pytest.raises(ServiceUnreachableError, match="aws sts get-caller-identity"):
        endpoints.database.token()


def test_the_other_end_of_a_cluster_gets_tokens_for_its_own_region(on_aws):
    reader = on_aws(DSQL_READ_ENDPOINT="klmnopqrst.dsql.us-west-2.on.aws").reader
    assert reader.label == "Aurora DSQL in us-west-2"
    assert "us-west-2%2Fdsql" in reader.token()


def test_what_is_printed_is_verified_with_a_token_and_leads_to_the_same_services(on_aws):
    user, name = "o'b r/é@x:y", "a b/ö?&"
    found = on_aws(PGSSLMODE="disable", IAM_USERNAME=user, DATABASE_NAME=name)
    printed = exports(load_settings().values, found)
    database = parse_dsn(printed["DATABASE_URL"])
    assert (database["host"], database["user"], database["dbname"]) == (CLUSTER, user, name)
    assert (database["sslmode"], database["sslrootcert"]) == ("verify-full", certifi.where())
    assert read_token(database["password"]).host == CLUSTER
    assert printed["VALKEY_URL"] == f"rediss://{CACHE}:6379/0"
    assert "AWS_SECRET_ACCESS_KEY" not in printed
    # A shell that took these exports reaches the same services, with tokens that are made anew.
    again = on_aws(**printed)
    assert again.database.address == f"{CLUSTER}:5432"
    assert again.database.token
    assert again.cache.aws


def test_a_store_that_moto_stands_in_for_is_labelled_so():
    engine = EngineState("s3", 1, 1, emulated=True, message="")
    held = SimpleNamespace(engines={"s3": engine}, secrets={"identity": "x"})
    store = embedded_store(held)
    assert store.label == "local emulation of S3 (moto, in memory, signatures not checked)"
    assert store.emulated
