"""`workshop lab` on a checkout of its own, in the Chromium or Chrome of this machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

from tests.browser.lab_page import Lab
from tests.running_lab import RunningLab
from workshop_lib.notebooks import find_notebooks
from workshop_lib.paths import CHECKOUT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
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
    """A running `workshop lab`."""
    own = checkout.parent
    for name, values in SETTINGS.items():
        file = own / "jupyterlab_settings_dir" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    more = {"PYTHONPATH": str(checkout), "WORKSHOP_LINGER_SECONDS": "600"}
    running = RunningLab(own, cwd=checkout, **more)
    try:
        server = running.server()
        yield Lab(server["url"], server["token"], checkout)
    finally:
        running.end()


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    """The browser, without a profile of before."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=chromium, args=FLAGS, chromium_sandbox=os.geteuid() != 0
        )


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
