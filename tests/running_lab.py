"""A `workshop lab` that tests run, with engines and folders of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import requests

from workshop_lib.services import local
from workshop_lib.services.processes import wait_until
from workshop_lib.services.state_folder import state_folder

START_S = 60
FOLDERS = ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR",
           "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")  # fmt: skip


class RunningLab:
    """A running `workshop lab`; what it writes, and its engines' state, is below a folder."""

    def __init__(self, folder: Path, *words: str, cwd: Path | None = None, **more: str) -> None:
        self.state = state_folder(folder)
        folders = {name: str(folder / name.lower()) for name in FOLDERS}
        self.runtime = Path(folders["JUPYTER_RUNTIME_DIR"])
        command = [sys.executable, "-m", "workshop_lib", "lab", *words, "--no-browser"]
        self.process = psutil.Popen(
            [*command, "--ServerApp.port=0", "--ServerApp.open_browser=False"],
            cwd=cwd,
            env={**os.environ, **folders, "WORKSHOP_STATE_DIR": str(folder), **more},
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

    def end(self) -> None:
        """By Ctrl-C."""
        if self.process.is_running():
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(START_S)
        finally:
            local.reset(self.state)


def ask(server: dict[str, str], path: str, method: str = "GET") -> requests.Response:
    """What a server answers to whoever knows its token."""
    headers = {"Authorization": f"token {server['token']}"}
    address = f"{server['url']}{path}"
    return requests.request(
        method, address, headers=headers, timeout=START_S, allow_redirects=False
    )
