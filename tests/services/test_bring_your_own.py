"""Your own servers, named in the environment, are used instead of the local engines."""

from __future__ import annotations

import boto3
import pytest
import redis

from workshop_lib import QueryCache, open_workshop
from workshop_lib.errors import ServiceUnreachableError, SettingsError
from workshop_lib.services import exports, local, resolve
from workshop_lib.services.state_folder import state_folder
from workshop_lib.settings import load_settings


@pytest.fixture
def own(ws, tmp_path, monkeypatch):
    """The session's engines as if they were the user's own servers; local ones would be new."""
    given = exports(ws.settings, ws.endpoints)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path / "unused"))
    monkeypatch.setenv("WORKSHOP_NAMESPACE", "byo_test")
    return given


def test_all_three_of_your_own_are_used_and_what_is_not_the_workshops_stays(own, tmp_path):
    workshop = open_workshop("byo", needs=["planet"], workshop_result_file=tmp_path / "r.json")
    client = boto3.client("s3", **workshop.endpoints.store.arguments)
    place = {"Bucket": workshop.bucket, "Key": "byo_testing/mine"}
    try:
        labels = [endpoint.label.split(" of your own")[0] for endpoint in workshop.endpoints.all]
        assert labels == ["PostgreSQL", "Valkey", "S3 store"]
        assert not any(endpoint.embedded for endpoint in workshop.endpoints.all)
        cache = QueryCache(workshop)
        answers = [cache.fetch("SELECT * FROM planet") for _ in range(2)]
        assert [(a.source, len(a)) for a in answers] == [("database", 8), ("cache", 8)]
        assert workshop.load_objects().new == 200
        workshop.database.query("CREATE TABLE mine (n int)")
        workshop.valkey.set("byo_testing:mine", "1", ex=60)
        client.put_object(**place, Body=b"1")
        assert workshop.wipe() == {"tables": 2, "keys": 1, "objects": 200}
        assert len(workshop.database.query("SELECT * FROM mine")) == 0
        assert workshop.valkey.get("byo_testing:mine") == b"1"
        assert client.get_object(**place)["Body"].read() == b"1"
    finally:
        workshop.database.query("DROP TABLE IF EXISTS mine")
        workshop.database.query("DROP SCHEMA byo_test")
        workshop.valkey.delete("byo_testing:mine")
        client.delete_object(**place)
        workshop.close()
    assert not (tmp_path / "unused").exists()


def test_one_service_of_your_own_leaves_the_others_local(ws, tmp_path, monkeypatch):
    folder = state_folder(tmp_path)
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("REDIS_URL", exports(ws.settings, ws.endpoints)["VALKEY_URL"])
    endpoints = resolve(load_settings().values)
    try:
        assert [e.embedded for e in endpoints.all] == [True, False, True]
        running = {e.name: e.status for e in local.status(folder).engines if e.status == "up"}
        assert set(running) == {"postgres", "s3"}
    finally:
        endpoints.release()
        local.reset(folder)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DATABASE_URL", "postgresql://a@127.0.0.1:9/x", "No connection to the database"),
        ("VALKEY_URL", "redis://127.0.0.1:9/0", "The cache at 127.0.0.1:9"),
        ("BUCKET_NAME", "absent-bucket", "create it, or correct BUCKET_NAME"),
        ("DATABASE_URL", None, "The sign-in was refused"),
        ("VALKEY_URL", None, "The sign-in was refused"),
        ("AWS_SECRET_ACCESS_KEY", None, "secret key does not belong to the access key"),
    ],
)
def test_a_wrong_address_or_password_is_a_clear_error(own, ws, monkeypatch, name, value, said):
    secrets = {
        "DATABASE_URL": ws.endpoints.database.arguments["password"],
        "VALKEY_URL": ws.endpoints.cache.arguments["password"],
    }
    secret = secrets.get(name, own["AWS_SECRET_ACCESS_KEY"])
    monkeypatch.setenv(name, value or own[name].replace(secret, "guess-guess"))
    with pytest.raises(ServiceUnreachableError, match=said) as refused:
        open_workshop("byo")
    assert "guess-guess" not in str(refused.value)


DATABASE = "DATABASE_URL is not an address such as postgresql://user:password@host"
CACHE = "VALKEY_URL is not an address such as redis://user:password@host"
STORE = "AWS_ENDPOINT_URL_S3 is not an address such as http://host:port"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DATABASE_URL", "postgresql://u:S3CRET%zz@127.0.0.1/db", DATABASE),
        ("DATABASE_URL", "postgresql://u:my@S3CRET@127.0.0.1:9/db", DATABASE),
        ("DATABASE_URL", "postgresql://h/x?sslmod=require", DATABASE),
        ("DATABASE_URL", "service=of-pg_service.conf", DATABASE),
        ("AWS_ENDPOINT_URL_S3", "http://h:port", STORE),
        ("AWS_ENDPOINT_URL_S3", "http://key:S3CRET@127.0.0.1:9", STORE),
        ("VALKEY_URL", "ftp://:S3CRET@127.0.0.1/0", CACHE),
        ("VALKEY_URL", "redis://:S3CRET@127.0.0.1:port/0", CACHE),
        ("VALKEY_URL", "unix:///tmp/valkey.sock", "no Unix socket"),
        ("VALKEY_URL", "redis://h/0?timeout=5", "option timeout of VALKEY_URL cannot be used"),
        ("REDIS_URL", "ftp://h", "REDIS_URL is not an address"),
        ("VALKEY_URL", "redis://h/0?decode_responses=S3CRET", "leave it out"),
    ],
)  # fmt: skip
def test_a_malformed_address_is_refused_and_not_repeated_for_it_may_hold_a_password(
    clean_environment, tmp_path, name, value, said
):
    clean_environment.setenv("WORKSHOP_STATE_DIR", str(tmp_path / "unused"))
    clean_environment.setenv("BUCKET_NAME", "abc")
    clean_environment.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        resolve(load_settings().values)
    assert said in str(refused.value)
    assert "S3CRET" not in str(refused.value)
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("url", "wanted", "address"),
    [
        ("redis://[::1]:7000/2", {"host": "::1", "port": 7000, "db": 2}, "[::1]:7000"),
        ("redis://me:a%40b%3A%2F@h/", {"username": "me", "password": "a@b:/"}, "h:6379"),
        ("rediss://h?ssl_check_hostname=0", {"ssl": True, "ssl_check_hostname": False}, "h:6379"),
        ("redis://h/0?socket_timeout=2.5", {"socket_timeout": 2.5}, "h:6379"),
        ("postgresql://m%40e:p%27%20@[::1]:7/a", {"user": "m@e", "password": "p' "}, "[::1]:7"),
        ("postgresql://h:1/d%2Fb?sslmode=allow", {"dbname": "d/b", "sslmode": "allow"}, "h:1"),
        ("host=/run/a%b user=me", {"host": "/run/a%b", "user": "me"}, "/run/a%b:5432"),
    ],
)  # fmt: skip
def test_a_client_gets_what_an_address_says_and_the_address_is_printed_as_it_was_given(
    clean_environment, url, wanted, address
):
    name = "VALKEY_URL" if url.startswith("redis") else "DATABASE_URL"
    own = {"DATABASE_URL": "postgresql://h", "VALKEY_URL": "redis://h", "BUCKET_NAME": "abc"}
    own[name] = url
    for variable, value in own.items():
        clean_environment.setenv(variable, value)
    settings = load_settings().values
    found = resolve(settings)
    assert own.items() <= exports(settings, found).items()
    endpoint = found.cache if name == "VALKEY_URL" else found.database
    assert wanted.items() <= endpoint.arguments.items()
    assert endpoint.address == address
    redis.Redis(**found.cache.arguments).close()
