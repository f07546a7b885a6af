"""What SECURITY.md says of the local engines, tried on them as an attacker would."""

from __future__ import annotations

import os
import socket
import subprocess
import threading

import platformdirs
import psutil
import psycopg2
import pytest
import redis

from workshop_lib.errors import EngineError
from workshop_lib.paths import CHECKOUT, cache_folder
from workshop_lib.services import local
from workshop_lib.services.engines import HOST
from workshop_lib.services.state_folder import StateFolder

HARMLESS = {"PATH", "LC_ALL", "TZ", "HOME", "RCLONE_AUTH_KEY", "WORKSHOP_ACCESS_KEY"}
HARMLESS |= {"__CF_USER_TEXT_ENCODING"}  # macOS adds it


def test_a_program_that_has_taken_postgresqls_port_is_told_no_password(shared):
    heard = []

    def ask_for_the_password_as_text() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(4_096)
            client.sendall(b"R\x00\x00\x00\x08\x00\x00\x00\x03")
            heard.append(client.recv(4_096))

    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=ask_for_the_password_as_text)
        thread.start()
        arguments = shared.endpoints.database.arguments
        with pytest.raises(psycopg2.OperationalError, match="scram-sha-256"):
            psycopg2.connect(**{**arguments, "port": listener.getsockname()[1]})
        thread.join(10)
    assert arguments["password"].encode() not in b"".join(heard)


def test_the_cache_writes_no_file_and_loads_no_code(shared):
    for words in ("CONFIG SET dir /", "CONFIG SET dbfilename x", "MODULE LOAD x", "DEBUG SLEEP 0"):
        with pytest.raises(redis.ResponseError):
            shared.valkey.execute_command(*words.split())


def test_an_engine_sees_nothing_of_the_learners_environment(state, shared):
    engines = [psutil.Process(engine.pid) for engine in local.status(state).engines if engine.pid]
    ours = [one for one in engines if one.uids().real == os.geteuid()]
    names = {name for one in ours for name in one.environ()}
    assert {"PATH", "HOME"} <= names <= HARMLESS


def test_other_users_cannot_enter_the_state_folder_or_read_a_file_that_matters(
    state, shared, tmp_path, monkeypatch
):
    assert state.path.stat().st_mode & 0o777 == 0o700
    assert state.postgres_data.stat().st_mode & 0o777 == 0o700
    empty = {"lock", "supervisor.log"}
    files = [file for file in state.path.rglob("*") if file.is_file() and file.name not in empty]
    assert [file.name for file in files if file.stat().st_mode & 0o077] == []
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    (tmp_path / "theirs").mkdir()
    with pytest.raises(EngineError, match="belongs to another user"):
        StateFolder(tmp_path / "theirs").prepare()


def test_without_a_home_files_are_not_kept_at_a_known_place(tmp_path, monkeypatch):
    (tmp_path / "no folder").touch()
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "no folder" / "x")
    folder = cache_folder("matplotlib")
    assert folder.stat().st_uid == os.geteuid()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert str(os.geteuid()) != folder.name.rpartition("-")[2]


def test_a_settings_file_with_a_password_is_not_committed_by_accident():
    words = ["git", "check-ignore", "--quiet", "workshop.toml"]
    assert subprocess.run(words, cwd=CHECKOUT, check=False).returncode == 0
