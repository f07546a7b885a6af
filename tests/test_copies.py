"""From a wheel, outside a clone: notebooks are copied for the learner, and never overwritten."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from workshop_lib.paths import CHECKOUT, MARK

LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?!\w+:|#)([^)#\s]+\.\w+)(?:#[^)\s]*)?\)")
"""A Markdown link to another file: its path."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The content of a wheel, as it would lie in site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "a clone"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(lambda name: (CHECKOUT / name).is_file(), files):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((CHECKOUT / name).read_bytes())
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, *command, "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def workshop(installed, tmp_path):
    """Runs the installed `workshop` in a folder with a space in its name."""
    here = tmp_path / "a learner's folder"
    here.mkdir()
    environment = {name: value for name, value in os.environ.items() if "WORKSHOP" not in name}
    environment |= {
        "PYTHONPATH": str(installed),
        "WORKSHOP_STATE_DIR": str(tmp_path / "state"),
        "WORKSHOP_LINGER_SECONDS": "0",
    }

    def run(*words: str, folder: Path = here) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "workshop_lib", *words]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    run.home = here / "cache-aside-workshop"  # type: ignore[attr-defined]
    return run


def test_the_wheel_runs_notebooks_in_a_folder_of_the_learners_own(workshop):
    done = workshop("run", "02")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (workshop.home / "results" / "latest" / "index.html").exists()
    delivered = {path.name for path in (CHECKOUT / "notebooks").rglob("*.*") if path.is_file()}
    laid_out = {path.name for path in (workshop.home / "notebooks").rglob("*.*") if path.is_file()}
    assert laid_out == {name for name in delivered if not name.endswith(".pyc")}
    again = workshop("notebook", "reset", "05").stdout
    assert "Files copied to" in done.stdout
    assert "copied" not in again


def test_links_in_the_copies_lead_to_files_that_are_there(workshop):
    workshop("notebook", "reset", "05")
    pages = [page for kind in ("ipynb", "md") for page in workshop.home.rglob(f"*.{kind}")]
    assert {page.parent.name for page in pages} == {workshop.home.name, "notebooks", "more", "docs"}
    for page in pages:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} leads to {link}"


def test_to_look_at_the_list_writes_nothing(workshop):
    listed = workshop("list")
    assert "05 · Expire and refresh" in listed.stdout
    assert f"this is about {workshop.home}" in workshop("status").stderr
    assert list(workshop.home.parent.iterdir()) == []


def test_what_commands_left_there_before_is_no_obstacle(workshop):
    setup = ("setup", "--no-check", "--region", "us-east-1", "--stack", "mine")
    assert workshop(*setup).returncode == 0
    (workshop.home / "results").mkdir()
    assert workshop("notebook", "reset", "05").returncode == 0


def test_what_a_learner_has_changed_stays_and_what_is_untouched_is_brought_up_to_date(workshop):
    assert workshop("notebook", "reset", "05").returncode == 0
    changed = workshop.home / "notebooks" / "05_expire_and_refresh.ipynb"
    old = workshop.home / "notebooks" / "02_cache_a_query.ipynb"
    mine = changed.read_text().replace("How old may an answer be?", "How old?")
    newest = old.read_text()
    changed.write_text(mine)
    # As an earlier version of the package would have left them.
    mark = json.loads((workshop.home / MARK).read_text())
    mark["notebooks/02_cache_a_query.ipynb"] = _digest("older")
    mark["notebooks/05_expire_and_refresh.ipynb"] = _digest("older")
    old.write_text("older")
    (workshop.home / MARK).write_text(json.dumps(mark))

    done = workshop("notebook", "reset", "03", folder=changed.parent)

    assert "Kept as you changed it: notebooks/05_expire_and_refresh.ipynb" in done.stderr
    assert "02_cache" not in done.stderr
    assert f"Files copied to {workshop.home}: 1.\n" in done.stdout
    assert (changed.read_text(), old.read_text()) == (mine, newest)


def test_a_notebook_is_put_back_and_the_learners_own_is_kept_beside_it(workshop):
    workshop("notebook", "reset", "05")
    notebook = workshop.home / "notebooks" / "05_expire_and_refresh.ipynb"
    delivered = notebook.read_text()
    notebook.write_text(delivered.replace("How old may an answer be?", "How old?"))
    done = workshop("notebook", "reset", "05", folder=workshop.home)
    assert done.returncode == 0, done.stderr
    (aside,) = notebook.parent.glob("my_05_expire_and_refresh-*.ipynb")
    assert aside.name in done.stdout
    assert notebook.read_text() == delivered
    assert "How old?" in aside.read_text()
    listed = workshop("list", folder=workshop.home).stdout
    assert listed.count("\n05 · ") == 1
    again = workshop("notebook", "reset", "05", folder=workshop.home)
    assert "Nothing was changed in it" in again.stdout


def test_a_folder_with_other_things_in_it_is_left_alone(workshop):
    workshop.home.mkdir()
    (workshop.home / "mine.txt").write_text("mine")
    done = workshop("lab")
    assert done.returncode == 1
    assert "is not empty and was not made by the workshop" in done.stderr
    assert [path.name for path in workshop.home.iterdir()] == ["mine.txt"]


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
