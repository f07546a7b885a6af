"""From a wheel, outside a clone: notebooks are copied for the learner, and never overwritten."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from workshop_lib import copies
from workshop_lib.paths import CHECKOUT, MARK
from workshop_lib.services.processes import wait_until

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

    def run(
        *words: str, folder: Path = here, start: Callable[..., Any] = subprocess.run, **options: Any
    ) -> Any:
        command = [sys.executable, "-P", "-m", "workshop_lib", *words]
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return start(command, cwd=folder, env=environment, **quiet, **options)

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


FULL = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (40_000, 40_000))
"""Lets no file grow beyond this: as on a full disk, some files are copied and one is not."""


def test_a_copy_that_a_full_disk_ended_goes_on_where_it_stopped(workshop):
    ended = workshop("notebook", "reset", "03", preexec_fn=FULL)
    assert (ended.returncode, "cannot be copied" in ended.stderr) == (1, True)
    first = {path for path in workshop.home.rglob("*") if path.is_file()}
    assert len(first) > 5
    _goes_on(workshop)


def test_a_copy_that_was_killed_goes_on_where_it_stopped(workshop):
    process = workshop("notebook", "reset", "03", start=subprocess.Popen)
    assert wait_until(lambda: list(workshop.home.glob("docs/*")), 60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _goes_on(workshop)


@pytest.mark.parametrize("mark", ["", "[" * 100_000])
def test_where_the_mark_is_damaged_a_changed_file_still_stays(workshop, mark):
    workshop("notebook", "reset", "03")
    changed = workshop.home / "notebooks" / "05_expire_and_refresh.ipynb"
    changed.write_text("mine")
    missing = workshop.home / "notebooks" / "02_cache_a_query.ipynb"
    missing.unlink()
    (workshop.home / MARK).write_text(mark, encoding="latin-1")
    said = _goes_on(workshop)
    assert "Kept as you changed it: notebooks/05_expire_and_refresh.ipynb" in said
    assert changed.read_text() == "mine"


def _goes_on(workshop) -> str:
    """The next call lays out all of it, and says what it kept."""
    done = workshop("notebook", "reset", "03")
    assert done.returncode == 0, done.stderr
    names = json.loads((workshop.home / MARK).read_text())
    assert {path.name for path in (CHECKOUT / "notebooks").glob("*.ipynb")} <= {
        Path(name).name for name in names
    } | {"05_expire_and_refresh.ipynb"}
    assert all((workshop.home / name).is_file() for name in names)
    assert "copied" not in workshop("notebook", "reset", "03").stdout
    return done.stderr


# --- putting back ---


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """The path of a learner's copy of a notebook that was delivered."""
    for name, place in (("FILES", tmp_path / "delivered"), ("HOME", tmp_path / "home")):
        (place / "notebooks").mkdir(parents=True)
        monkeypatch.setattr(copies, name, place)
    monkeypatch.setattr(copies, "IN_CHECKOUT", False)
    (tmp_path / "delivered" / "notebooks" / "05_x.ipynb").write_text("delivered")
    return tmp_path / "home" / "notebooks" / "05_x.ipynb"


def test_ten_that_put_one_notebook_back_at_once_keep_the_learners_version_once(own):
    with ThreadPoolExecutor(10) as pool:
        for number in range(80):
            own.write_text(f"mine {number}")
            together = Barrier(10)

            def reset(_: int, together: Barrier = together) -> Path | None:
                together.wait()
                return copies.reset_notebook(own)

            asides = {*pool.map(reset, range(10))} - {None}
            kept = [path.read_text() for path in own.parent.glob("my_05_x-*.ipynb")]
            assert sorted(kept) == sorted(f"mine {one}" for one in range(number + 1))
            assert [path.read_text() for path in asides] == [f"mine {number}"]
            assert own.read_text() == "delivered"
    assert len(list(own.parent.iterdir())) == 81


def test_what_is_saved_while_a_notebook_is_put_back_is_not_lost(own, monkeypatch):
    own.write_text("mine")
    rename = Path.rename

    def rename_and_save(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        own.write_text("saved meanwhile")
        return moved

    monkeypatch.setattr(Path, "rename", rename_and_save)
    aside = copies.reset_notebook(own)
    assert (aside.read_text(), own.read_text()) == ("mine", "saved meanwhile")


def test_where_files_have_no_second_names_a_notebook_is_put_back_all_the_same(own, monkeypatch):
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    own.write_text("mine")
    aside = copies.reset_notebook(own)
    assert (aside.read_text(), own.read_text()) == ("mine", "delivered")


def test_a_notebook_that_is_missing_is_found_among_the_delivered_ones(own):
    assert copies.missing_notebooks() == [own]
    assert copies.reset_notebook(own) is None
    assert (own.read_text(), copies.missing_notebooks()) == ("delivered", [])


def test_in_a_clone_a_missing_notebook_is_put_back_from_git(own, monkeypatch):
    monkeypatch.setattr(copies, "IN_CHECKOUT", True)
    assert copies.missing_notebooks() == []  # a clone without git's history
    own.write_text("committed")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "delivered"]):
        subprocess.run([*git, *words], cwd=copies.HOME, check=True)
    own.unlink()
    assert copies.missing_notebooks() == [own]
    assert copies.reset_notebook(own) is None
    assert own.read_text() == "committed"


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
