"""`workshop lab`: JupyterLab on the notebooks, for its user alone, and gone when it is ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.running_lab import START_S, RunningLab, ask


@pytest.fixture
def lab(tmp_path) -> Iterator[RunningLab]:
    lab = RunningLab(tmp_path, "02", WORKSHOP_LINGER_SECONDS="1", PATH=os.defpath)
    yield lab
    lab.end()


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
