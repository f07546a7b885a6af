"""`workshop lab`: JupyterLab with the engines, and what its kernels say is for its user alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from workshop_lib.services import local
from workshop_lib.services.processes import wait_until
from workshop_lib.services.state_folder import StateFolder

START_S = 60


@pytest.fixture
def runtime(tmp_path) -> Path:
    """Where this JupyterLab, and nobody else's, keeps the files by which it is found."""
    return tmp_path / "runtime"


@pytest.fixture
def lab(tmp_path, runtime) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A running `workshop lab` with its own engines, and what it says of itself."""
    folder = StateFolder((tmp_path / "state").resolve())
    environment = {
        **os.environ,
        "WORKSHOP_STATE_DIR": str(folder.path),
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
    }
    words = ["lab", "--no-browser", "--ServerApp.port=0", "--ServerApp.open_browser=False"]
    process = subprocess.Popen(
        [sys.executable, "-m", "workshop_lib", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert wait_until(lambda: list(runtime.glob("jpserver-*.json")), START_S)
        (file,) = runtime.glob("jpserver-*.json")
        assert wait_until(lambda: file.read_text().rstrip().endswith("}"), START_S)
        yield process, json.loads(file.read_text())
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            process.kill()
            local.reset(folder)


def ask(server: dict[str, str], path: str, method: str = "GET") -> requests.Response:
    headers = {"Authorization": f"token {server['token']}"}
    return requests.request(method, f"{server['url']}api/{path}", headers=headers, timeout=START_S)


def test_it_listens_on_loopback_behind_a_token_and_its_kernels_talk_in_secret(lab, runtime):
    _, server = lab
    assert server["hostname"] in {"localhost", "127.0.0.1"}
    assert len(server["token"]) >= 40
    assert wait_until(lambda: answers(server), START_S)
    assert ask({**server, "token": "guess"}, "kernels").status_code == 403

    kernel = ask(server, "kernels", "POST").json()
    (file,) = runtime.glob(f"kernel-{kernel['id']}.json")
    connection = json.loads(file.read_text())
    assert connection["ip"] == "127.0.0.1"
    assert connection["curve_publickey"]
    assert file.stat().st_mode & 0o077 == 0
    ask(server, f"kernels/{kernel['id']}", "DELETE")


def answers(server: dict[str, str]) -> bool:
    try:
        return ask(server, "").ok
    except requests.ConnectionError:
        return False
