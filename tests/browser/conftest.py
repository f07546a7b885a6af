"""`workshop lab` on a checkout of its own, in the Chromium or Chrome of this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import psutil
import pytest

from workshop_lib.paths import CHECKOUT
from workshop_lib.runner import find_notebooks
from workshop_lib.services import local
from workshop_lib.services.processes import wait_until
from workshop_lib.services.state_folder import state_folder

sys.path.append(str(Path(__file__).parent))
from lab_page import Lab

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_S = 60
END_S = 60
FLAGS = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
SETTINGS = {
    # All cells are on the page, not only those in sight.
    "notebook-extension/tracker": {"windowingMode": "none"},
    # No question about news over the notebook, and nothing asked of the network.
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser of this machine."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(
            f"no browser: none of {', '.join(NAMES)} is on the PATH. "
            "Install one (`apt install chromium`) to have the notebooks tried in it."
        )
    return found


@pytest.fixture(scope="module")
def checkout(chromium, tmp_path_factory) -> Path:
    """A copy of what notebooks need, so that runs dirty no other; parameters at quick values."""
    copy = tmp_path_factory.mktemp("browser") / "checkout"
    for name in ("workshop_lib", "data", "notebooks"):
        shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for notebook in find_notebooks(copy / "notebooks"):
        content = nbformat.read(notebook.path, as_version=4)
        (cell,) = (c for c in content.cells if "parameters" in c.metadata.get("tags", ()))
        cell.source += "".join(f"\n{name} = {value!r}" for name, value in notebook.quick.items())
        nbformat.write(content, notebook.path)
    for name in ("pyproject.toml", "constraints.txt"):  # what tells a clone, and is compared with
        shutil.copy(CHECKOUT / name, copy)
    return copy


@pytest.fixture(scope="module")
def lab(checkout) -> Iterator[Lab]:
    """A running `workshop lab`; of all its processes none is left afterwards."""
    own = checkout.parent
    folder = state_folder(own)
    for name, values in SETTINGS.items():
        file = own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "WORKSHOP_STATE_DIR": str(own),
        "WORKSHOP_LINGER_SECONDS": "600",
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "JUPYTER_CONFIG_DIR": str(own / "config"),
        "JUPYTER_DATA_DIR": str(own / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
        "IPYTHONDIR": str(own / "ipython"),
    }
    words = ["lab", "--no-browser", "--ServerApp.port=0", "--ServerApp.open_browser=False"]
    with (own / "lab.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workshop_lib", *words],
            cwd=checkout,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    started: list[psutil.Process] = []
    try:
        files = own / "runtime"
        assert wait_until(lambda: list(files.glob("jpserver-*.json")), START_S)
        (file,) = files.glob("jpserver-*.json")
        assert wait_until(lambda: file.read_text().rstrip().endswith("}"), START_S)
        server = json.loads(file.read_text())
        yield Lab(server["url"], server["token"], checkout)
        supervisor = local.status(folder).supervisor_pid
        assert supervisor is not None
        tops = [psutil.Process(process.pid), psutil.Process(supervisor)]
        started = [one for top in tops for one in (top, *top.children(recursive=True))]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_S)
        finally:
            if process.poll() is None:
                for one in (*psutil.Process(process.pid).children(recursive=True), process):
                    one.kill()
            local.reset(folder)
    # The lab, its server, the supervisor, the engines; kernels, too, if tests left them open.
    assert len(started) >= 6
    _, alive = psutil.wait_procs(started, timeout=START_S)
    assert alive == []


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    """The browser, without a profile of before; no process of it is left afterwards."""
    from playwright.sync_api import sync_playwright

    before = set(psutil.Process().children())
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=chromium, args=FLAGS, chromium_sandbox=os.geteuid() != 0
        )
        (driver,) = set(psutil.Process().children()) - before
        yield opened
        started = [driver, *driver.children(recursive=True)]
        opened.close()
    assert len(started) >= 3
    _, alive = psutil.wait_procs(started, timeout=END_S)
    assert alive == []


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """An empty page; whatever goes wrong in it is an error here."""
    context = browser.new_context()
    opened = context.new_page()
    failures: list[str] = []
    opened.on("pageerror", lambda error: failures.append(str(error)))
    yield opened
    context.close()
    assert failures == []
