"""Damaged state folders: each command works or says why not in a sentence, and `reset` helps."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from workshop_lib.errors import EngineError
from workshop_lib.services import local, resolve
from workshop_lib.services.state_folder import StateFolder, remove, state_folder
from workshop_lib.settings import load_settings

Damage = Callable[[Path], object]


def write(content: bytes, path: Path) -> None:
    remove(path)
    path.write_bytes(content)


def make_folder(path: Path) -> None:
    remove(path)
    (path / "inside").mkdir(parents=True)


def make_pipe(path: Path) -> None:
    """A file that nobody writes to: whoever reads it waits."""
    remove(path)
    os.mkfifo(path)


def lead_nowhere(path: Path) -> None:
    remove(path)
    path.symlink_to("/nowhere/at/all")


def halve_secrets(path: Path) -> None:
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({"owner": kept["owner"], "valkey": 5, "admin": None}))


HARMLESS: list[tuple[str, Damage]] = [
    ("supervisor.json", partial(write, b'{"port": 99999, "key": []}')),
    ("supervisor.json", partial(write, b"[" * 200_000)),
    ("supervisor.json", make_pipe),
    ("supervisor.json", partial(write, b'\xff\xfe\x00{"')),
    ("ports.json", partial(write, b'{"postgres": "x", "valkey": -1, "s3": 99999}')),
    ("secrets.json", halve_secrets),
    ("lock", make_folder),
    ("data/postmaster.pid", partial(write, b"1\n/\n")),
    ("data.new", make_folder),
]
"""What opening recovers from by itself."""
HARMFUL: list[tuple[str, Damage]] = [
    ("secrets.json", partial(write, b'{"owner": "4f')),
    ("supervisor.json", make_folder),
    ("data/PG_VERSION", remove),
    ("valkey", partial(write, b"not a folder")),
    ("objects", lead_nowhere),
    ("logs", lead_nowhere),
]
"""What only a reset helps against."""


def damage_it(folder: StateFolder, what: str, damage: Damage) -> None:
    data = what.removeprefix("data")
    damage(folder.path / what if data == what else Path(f"{folder.postgres_data}{data}"))


@pytest.fixture(scope="module", autouse=True)
def nothing_left(drill) -> Iterator[None]:
    """What may be left is looked for after the last test."""
    with drill():
        yield


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateFolder]:
    """A folder as the workshop leaves it, without the time that engines take."""
    folder = state_folder(tmp_path)
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path))
    folder.prepare()
    folder.secrets()
    with folder.locked():
        folder.postgres_data.mkdir(parents=True)
    (folder.postgres_data / "PG_VERSION").write_text("16")
    yield folder
    folder.delete_data()


@pytest.mark.parametrize(("what", "damage"), HARMLESS + HARMFUL)
def test_status_and_stop_cope_with_any_damage_and_reset_helps(made, command, what, damage):
    damage_it(made, what, damage)
    for word in ("status", "stop"):
        assert command(word).exit_code == 0
    assert command("reset", "--yes", "--local").output == "Reset. The next run starts afresh.\n"
    assert not made.postgres_data.exists()
    made.prepare()


@pytest.fixture(scope="module")
def worn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateFolder]:
    """A folder in which engines have run."""
    folder = state_folder(tmp_path_factory.mktemp("worn"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_STATE_DIR", str(folder.path.parent))
        open_and_stop()
        yield folder
    local.reset(folder)


def open_and_stop() -> None:
    resolve(load_settings().values).release()
    local.stop(state_folder(load_settings().values.workshop_state_dir))


def test_opening_recovers_from_small_damage(worn):
    # Of each file one damage at a time, and all files at once: an opening takes its time.
    kinds: dict[str, list[Damage]] = {}
    for what, damage in HARMLESS:
        kinds.setdefault(what, []).append(damage)
    for round_ in range(max(map(len, kinds.values()))):
        for what, damages in kinds.items():
            if round_ < len(damages):
                damage_it(worn, what, damages[round_])
        open_and_stop()


@pytest.mark.parametrize(("what", "damage"), HARMFUL)
def test_opening_says_that_larger_damage_takes_a_reset(worn, tmp_path, what, damage):
    keep = shutil.copytree(worn.path, tmp_path / "keep")
    damage_it(worn, what, damage)
    with pytest.raises(EngineError, match="workshop reset"):
        open_and_stop()
    local.stop(worn)
    if (worn.postgres_data / "postgresql.conf").exists():
        (worn.postgres_data / "PG_VERSION").write_text("16\n")
    for name in ("secrets.json", "supervisor.json", "valkey", "objects", "logs"):
        remove(worn.path / name)
    shutil.copytree(keep, worn.path, dirs_exist_ok=True)


@pytest.mark.parametrize("name", ["n" * 300, "loop/inside", "a\0b"])
def test_a_folder_that_cannot_be_is_one_sentence(command, tmp_path, monkeypatch, name):
    (tmp_path / "loop").symlink_to("loop")
    settings = tmp_path / "workshop.toml"
    settings.write_text(f"workshop_state_dir = {json.dumps(str(tmp_path / name))}")
    monkeypatch.setenv("WORKSHOP_CONFIG", str(settings))
    monkeypatch.delenv("WORKSHOP_STATE_DIR", raising=False)
    for word in ("status", "stop", "check"):
        done = command(word)
        assert done.exit_code == 1
        assert "WORKSHOP_STATE_DIR cannot be" in done.output


# --- what a reset leaves alone ---


def test_reset_leaves_the_folder_that_was_named_with_all_that_is_the_users_and_follows_no_link(
    command, tmp_path, monkeypatch
):
    (tmp_path / "mine").mkdir(mode=0o750)
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path / "link"))
    folder = state_folder(tmp_path / "mine")
    folder.prepare()
    for name in ("objects", "sandboxes", "logs/elsewhere"):
        (folder.path / name).symlink_to(tmp_path / "mine")
    command("reset", "--yes")
    assert list((tmp_path / "mine").iterdir()) == [tmp_path / "mine" / "thesis.txt"]
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o750
    folder.path.symlink_to(tmp_path / "mine")
    assert command("reset", "--yes").output == "There was nothing to reset.\n"
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("words", [["stop"], ["reset", "--yes"]])
def test_a_disk_that_cannot_be_written_is_one_sentence(made, command, monkeypatch, words):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    done = command(*words)
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: The state folder {made.path} cannot be used: ")
    assert len(done.output.splitlines()) == 1
