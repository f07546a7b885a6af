"""`workshop lab`: JupyterLab on the notebooks, for its user alone, and gone when it is ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from workshop_lib.services import local
from workshop_lib.services.processes import wait_until
from workshop_lib.services.state_folder import state_folder

START_S = 60


class Lab:
    """A running `workshop lab`, with engines and folders of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.runtime = folder / "runtime"
        environment = {
            **os.environ,
            "WORKSHOP_STATE_DIR": str(folder / "state"),
            "WORKSHOP_LINGER_SECONDS": "1",
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "PATH": os.defpath,
        }
        command = [sys.executable, "-m", "workshop_lib", "lab", *words, "--no-browser"]
        self.process = psutil.Popen(
            [*command, "--ServerApp.port=0", "--ServerApp.open_browser=False"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def server(self) -> dict[str, str]:
        """What it says of itself, once it answers."""
        assert wait_until(lambda: list(self.runtime.glob("jpserver-*.json")), START_S)
        (file,) = self.runtime.glob("jpserver-*.json")
        assert wait_until(lambda: file.read_text().rstrip().endswith("}"), START_S)
        server: dict[str, str] = json.loads(file.read_text())
        assert wait_until(lambda: self._answers(server), START_S)
        return server

    def _answers(self, server: dict[str, str]) -> bool:
        try:
            return ask(server, "api").ok
        except requests.ConnectionError:
            return False


@pytest.fixture
def lab(tmp_path) -> Iterator[Lab]:
    lab = Lab(tmp_path, "02")
    try:
        yield lab
    finally:
        if lab.process.is_running():
            lab.process.send_signal(signal.SIGINT)
        try:
            lab.process.wait(30)
        finally:
            local.reset(state_folder(tmp_path / "state"))


def ask(server: dict[str, str], path: str, method: str = "GET") -> requests.Response:
    headers = {"Authorization": f"token {server['token']}"}
    address = f"{server['url']}{path}"
    return requests.request(
        method, address, headers=headers, timeout=START_S, allow_redirects=False
    )


def test_it_is_for_its_user_alone_and_nothing_of_it_outlives_a_kill(lab):
    server = lab.server()
    assert server["hostname"] in {"localhost", "127.0.0.1"}
    assert len(server["token"]) >= 40
    assert ask({**server, "token": "guess"}, "api/kernels").status_code == 403

    # It opens the notebook that was asked for, and its terminals find `workshop`.
    assert urlsplit(ask(server, "").headers["Location"]).path.startswith("/lab/tree/notebooks/02_")
    assert ask(server, "api/contents/notebooks").json()["type"] == "directory"
    found = shutil.which("workshop", path=lab.process.environ()["PATH"])
    assert found == str(Path(sys.executable).with_name("workshop"))

    # A kernel talks in secret.
    kernel = ask(server, "api/kernels", "POST").json()
    (file,) = lab.runtime.glob(f"kernel-{kernel['id']}.json")
    connection = json.loads(file.read_text())
    assert (connection["ip"], file.stat().st_mode & 0o077) == ("127.0.0.1", 0)
    assert connection["curve_publickey"]

    children = lab.process.children(recursive=True)
    assert children
    lab.process.kill()
    _, alive = psutil.wait_procs(children, START_S)
    assert alive == []


def test_ctrl_c_ends_it_without_a_question(lab):
    lab.server()
    lab.process.send_signal(signal.SIGINT)
    assert lab.process.wait(START_S) == 0
