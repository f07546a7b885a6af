"""Servers of one's own, named in the environment, are used instead of the local engines."""

import os
import subprocess
import sys

import boto3
import psycopg2
import pytest

from workshop_lib import QueryCache, open_workshop
from workshop_lib.errors import ServiceUnreachableError, SettingsError
from workshop_lib.services import embedded, exports, resolve
from workshop_lib.services.state import StateFolder
from workshop_lib.settings import load_settings


@pytest.fixture
def own(ws, tmp_path, monkeypatch):
    """The session's engines as if they were somebody's own servers; local ones would be new."""
    given = exports(ws.settings, ws.endpoints)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path / "unused"))
    monkeypatch.setenv("WORKSHOP_NAMESPACE", "byo_test")
    return given


def test_all_three_of_ones_own_are_used_and_no_local_engine_is_started(own, tmp_path):
    workshop = open_workshop("byo", needs=["planet"], workshop_result_file=tmp_path / "r.json")
    try:
        assert [e.label.split(" of your own")[0] for e in workshop.endpoints.all] == [
            "PostgreSQL", "Valkey", "S3 store",
        ]  # fmt: skip
        assert not any(endpoint.embedded for endpoint in workshop.endpoints.all)
        cache = QueryCache(workshop)
        answers = [cache.fetch("SELECT * FROM planet") for _ in range(2)]
        assert [(a.source, len(a)) for a in answers] == [("database", 8), ("cache", 8)]
        assert workshop.load_objects().new == 200
        assert workshop.wipe() == {"tables": 2, "keys": 1, "objects": 200}
    finally:
        workshop.close()
    assert not (tmp_path / "unused").exists()


def test_one_service_of_ones_own_leaves_the_others_local(ws, tmp_path, monkeypatch):
    folder = StateFolder(tmp_path / "own")
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(folder.path))
    monkeypatch.setenv("REDIS_URL", exports(ws.settings, ws.endpoints)["VALKEY_URL"])
    endpoints = resolve(load_settings().values)
    try:
        assert [e.embedded for e in endpoints.all] == [True, False, True]
        running = {e.name: e.status for e in embedded.status(folder).engines}
        assert running == {"postgres": "up", "valkey": "down", "s3": "up"}
    finally:
        endpoints.release()
        embedded.reset(folder)


def test_wiping_leaves_what_is_not_the_workshops_alone(own, tmp_path):
    workshop = open_workshop("byo", needs=["planet"], workshop_result_file=tmp_path / "r.json")
    client = boto3.client("s3", **workshop.endpoints.store.arguments)
    try:
        workshop.database.query("CREATE TABLE IF NOT EXISTS mine (n int)")
        workshop.valkey.set("byo_testing:mine", "1", ex=60)
        client.put_object(Bucket=workshop.bucket, Key="byo_testing/mine", Body=b"1")
        workshop.wipe()
        assert len(workshop.database.query("SELECT * FROM mine")) == 0
        assert workshop.valkey.get("byo_testing:mine") == b"1"
        assert client.get_object(Bucket=workshop.bucket, Key="byo_testing/mine")
    finally:
        workshop.database.query("DROP TABLE mine")
        workshop.database.query("DROP SCHEMA byo_test")
        workshop.valkey.delete("byo_testing:mine")
        client.delete_object(Bucket=workshop.bucket, Key="byo_testing/mine")
        workshop.close()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DATABASE_URL", "postgresql://:::", "is not a PostgreSQL address"),
        ("VALKEY_URL", "ftp://127.0.0.1", "is not a cache address"),
        ("AWS_ENDPOINT_URL_S3", "nonsense", "its form is http://host:port"),
    ],
)
def test_a_malformed_address_is_refused_before_anything_starts(
    own, tmp_path, monkeypatch, name, value, said
):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said):
        resolve(load_settings().values)
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DATABASE_URL", "postgresql://a@127.0.0.1:9/x", "No connection to the database"),
        ("VALKEY_URL", "redis://127.0.0.1:9/0", "No answer from the cache"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9", "No answer from the object store"),
        ("BUCKET_NAME", "absent-bucket", "create it, or correct BUCKET_NAME"),
    ],
)
def test_a_wrong_address_is_a_clear_error(own, monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(ServiceUnreachableError, match=said):
        open_workshop("byo")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("DATABASE_URL", "The sign-in was refused"),
        ("VALKEY_URL", "The sign-in was refused"),
        ("AWS_SECRET_ACCESS_KEY", "secret key does not belong to the access key"),
    ],
)
def test_a_wrong_password_is_a_clear_error_that_does_not_repeat_it(own, monkeypatch, name, said):
    secret = own["AWS_SECRET_ACCESS_KEY"]
    wrong = own[name].replace(secret, "guess-guess")
    if name == "DATABASE_URL":
        password = psycopg2.extensions.parse_dsn(own[name])["password"]
        wrong = own[name].replace(password, "guess-guess")
    if name == "VALKEY_URL":
        wrong = own[name].replace(own[name].split(":")[2].split("@")[0], "guess-guess")
    monkeypatch.setenv(name, wrong)
    with pytest.raises(ServiceUnreachableError, match=said) as refused:
        open_workshop("byo")
    assert "guess-guess" not in str(refused.value)


def test_the_exports_are_all_a_shell_needs(own):
    done = subprocess.run(
        [sys.executable, "-m", "workshop_lib", "env"],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert all(line.startswith("export ") for line in lines)
    assert {line.split("=")[0].removeprefix("export ") for line in lines} >= {
        "DATABASE_URL", "VALKEY_URL", "AWS_ENDPOINT_URL_S3", "BUCKET_NAME",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://u:S3CRET@127.0.0.1/db"),
        ("DATABASE_URL", "postgresql://u:S3CRET%zz@127.0.0.1/db"),
        ("DATABASE_URL", "postgresql://u:my@S3CRET@127.0.0.1:9/db"),
        ("VALKEY_URL", "redis://:S3CRET@127.0.0.1:port/0"),
        ("VALKEY_URL", "ftp://:S3CRET@127.0.0.1/0"),
        ("AWS_ENDPOINT_URL_S3", "http://key:S3CRET@127.0.0.1:9"),
    ],
)
def test_a_malformed_address_is_not_repeated_for_it_may_hold_a_password(
    own, monkeypatch, name, value
):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        resolve(load_settings().values)
    assert "S3CRET" not in str(refused.value)
    assert name in str(refused.value)
