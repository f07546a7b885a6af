"""Damaged state folders: each command works or says why not in a sentence, and `reset` helps."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from workshop_lib.cli import main
from workshop_lib.errors import EngineError
from workshop_lib.services import embedded, resolve
from workshop_lib.services.state import StateFolder, remove
from workshop_lib.settings import load_settings


def _holds(name: str, content: bytes) -> Callable[[StateFolder], None]:
    def damage(folder: StateFolder) -> None:
        remove(folder.path / name)
        (folder.path / name).write_bytes(content)

    return damage


def _is_gone(name: str) -> Callable[[StateFolder], None]:
    return lambda folder: remove(folder.path / name)


def _is_a_folder(name: str) -> Callable[[StateFolder], None]:
    def damage(folder: StateFolder) -> None:
        remove(folder.path / name)
        (folder.path / name / "inside").mkdir(parents=True)

    return damage


def _leads_nowhere(name: str) -> Callable[[StateFolder], None]:
    def damage(folder: StateFolder) -> None:
        remove(folder.path / name)
        (folder.path / name).symlink_to("/nowhere/at/all")

    return damage


def _is_a_file(name: str) -> Callable[[StateFolder], None]:
    def damage(folder: StateFolder) -> None:
        remove(folder.path / name)
        (folder.path / name).write_text("not a folder")

    return damage


def _data(name: str, content: str | None) -> Callable[[StateFolder], None]:
    def damage(folder: StateFolder) -> None:
        (folder.postgres_data / name).unlink(missing_ok=True)
        if content is not None:
            (folder.postgres_data / name).write_text(content)

    return damage


def _half_of_the_secrets(folder: StateFolder) -> None:
    file = folder.path / "secrets.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({"owner": kept["owner"], "valkey": 5, "admin": None}))


ENGINE = b'{"name": "postgres", "status": "up", "port": 1, "pid": 1, "created": "", '
HARMLESS = {
    "state.json without engines": _holds("state.json", b'{"engines": null}'),
    "state.json with an unknown field": _holds(
        "state.json", b'{"engines": {"postgres": ' + ENGINE + b'"colour": "red"}}}'
    ),
    "state.json of wrong types": _holds(
        "state.json", b'{"pid": "x", "created": [], "attempt": {}, "engines": [1]}'
    ),
    "state.json of an enormous request": _holds("state.json", b'{"attempt": 1e308}'),
    "state.json of deep lists": _holds("state.json", b"[" * 200_000),
    "state.json not in UTF-8": _holds("state.json", b'\xff\xfe\x00{"'),
    "state.json a folder": _is_a_folder("state.json"),
    "state.json a dangling link": _leads_nowhere("state.json"),
    "wanted.json of wrong types": _holds(
        "wanted.json", b'{"attempt": "many", "cache_mb": [], "postgres": {}, "?": 1, "valkey-x": 1}'
    ),
    "wanted.json a folder": _is_a_folder("wanted.json"),
    "ports.json of wrong types": _holds(
        "ports.json", b'{"postgres": "x", "valkey": -1, "s3": 99999}'
    ),
    "ports.json a list": _holds("ports.json", b"[]"),
    "ports.json a folder": _is_a_folder("ports.json"),
    "secrets.json in half": _half_of_the_secrets,
    "leases that are none": lambda folder: [
        (folder.leases / f"{n}-0.json").write_bytes(content)
        for n, content in enumerate([b"", b"[]", b'{"pid": 1e999, "linger_s": "x"}', b"\x00"])
    ],
    "leases a file": _is_a_file("leases"),
    "logs a dangling link": _leads_nowhere("logs"),
    "lock a folder": _is_a_folder("lock"),
    "no mark": _is_gone(".made-by-cache-aside-workshop"),
    "the mark a folder": _is_a_folder(".made-by-cache-aside-workshop"),
    "the mark unreadable": _holds(".made-by-cache-aside-workshop", b"\xff\x00"),
    "postmaster.pid empty": _data("postmaster.pid", ""),
    "postmaster.pid of a stranger": _data("postmaster.pid", "1\n/\n"),
}
"""What opening gets over by itself."""
HARMFUL = {
    "secrets.json truncated": _holds("secrets.json", b'{"owner": "4f'),
    "PG_VERSION missing": _data("PG_VERSION", None),
    "valkey a file": _is_a_file("valkey"),
    "objects a dangling link": _leads_nowhere("objects"),
}
"""What only a reset helps against."""
DAMAGES = HARMLESS | HARMFUL


def command(*words: str) -> Result:
    before = signal.getsignal(signal.SIGTERM)
    done = CliRunner().invoke(main, list(words), prog_name="workshop")
    signal.signal(signal.SIGTERM, before)
    return done


def in_a_sentence(done: Result) -> bool:
    return isinstance(done.exception, SystemExit | None) and "Traceback" not in done.output


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateFolder]:
    """A folder as the workshop leaves it, without the time that engines take."""
    folder = StateFolder(tmp_path / "state")
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(folder.path))
    folder.prepare()
    folder.secrets()
    folder.postgres_data.mkdir(parents=True)
    (folder.postgres_data / "PG_VERSION").write_text("16")
    yield folder
    remove(folder.postgres_data)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_status_and_stop_get_over_any_damage_and_reset_helps(made, damage):
    damage(made)
    for words in (["status"], ["stop"]):
        done = command(*words)
        assert in_a_sentence(done), done.exception
        assert done.exit_code == 0, done.output
    done = command("reset", "--yes", "--local")
    assert in_a_sentence(done), done.exception
    assert done.output == "Reset. The next run starts afresh.\n"
    assert not made.postgres_data.exists()
    made.prepare()


@pytest.fixture(scope="module")
def worn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateFolder]:
    """A folder in which engines have run."""
    folder = StateFolder(tmp_path_factory.mktemp("worn").resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_STATE_DIR", str(folder.path))
        opened()
        yield folder
    embedded.reset(folder)


def opened() -> None:
    """Open, and let go."""
    resolve(load_settings().values).release()
    embedded.stop(StateFolder(load_settings().values.workshop_state_dir))


@pytest.mark.parametrize("damage", HARMLESS.values(), ids=HARMLESS)
def test_opening_gets_over_small_damage(worn, damage):
    damage(worn)
    opened()


@pytest.mark.parametrize("damage", HARMFUL.values(), ids=HARMFUL)
def test_opening_says_that_larger_damage_takes_a_reset(worn, tmp_path, damage):
    keep = shutil.copytree(worn.path, tmp_path / "keep")
    damage(worn)
    with pytest.raises(EngineError, match="workshop reset"):
        opened()
    assert "workshop reset" in command("check").output
    embedded.stop(worn)
    if (worn.postgres_data / "postgresql.conf").exists():
        (worn.postgres_data / "PG_VERSION").write_text("16\n")
    for name in ("secrets.json", "valkey", "objects"):
        remove(worn.path / name)
    shutil.copytree(keep, worn.path, dirs_exist_ok=True)


def test_a_damaged_state_file_costs_the_engines_that_run_nothing(worn):
    held = resolve(load_settings().values)
    before = {engine.name: engine.pid for engine in embedded.status(worn).engines}
    try:
        worn.state_file.write_text("{")
        again = resolve(load_settings().values)
        again.release()
        assert {engine.name: engine.pid for engine in embedded.status(worn).engines} == before
    finally:
        held.release()
        embedded.stop(worn)


# --- what a reset leaves alone ---


def test_reset_deletes_no_folder_that_it_did_not_make(tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path / "scratch" / "new" / "engines"))
    StateFolder(tmp_path / "scratch" / "new" / "engines").prepare()
    assert command("reset", "--yes").exit_code == 0
    assert (tmp_path / "scratch").is_dir()
    assert not (tmp_path / "scratch" / "new").exists()


def test_reset_leaves_an_empty_folder_that_it_was_given(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path))
    StateFolder(tmp_path).prepare()
    command("reset", "--yes")
    assert list(tmp_path.iterdir()) == []


def test_reset_leaves_other_files_and_the_folder_can_be_used_again(tmp_path, monkeypatch):
    folder = StateFolder(tmp_path / "state")
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(folder.path))
    folder.prepare()
    folder.secrets()
    (folder.path / "notes.json").write_text("mine")
    (folder.path / "results").mkdir()
    command("reset", "--yes")
    command("reset", "--yes")
    assert (folder.path / "notes.json").read_text() == "mine"
    assert (folder.path / "results").is_dir()
    assert not (folder.path / "secrets.json").exists()
    folder.prepare()


def test_reset_follows_no_link_out_of_its_folder(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "mine").chmod(0o750)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path / "link"))
    folder = StateFolder(tmp_path / "real")
    folder.prepare()
    (folder.path / "objects").symlink_to(tmp_path / "mine")
    (folder.logs / "elsewhere").symlink_to(tmp_path / "mine")
    command("reset", "--yes")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o750
    assert not (tmp_path / "real").exists()


def test_a_folder_with_some_names_of_ours_and_no_mark_is_a_strangers(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path))
    for name in ("logs", "objects", "postgres"):
        (tmp_path / name).mkdir()
    (tmp_path / "secrets.json").write_text("{}")
    assert command("reset", "--yes").output == "There was nothing to reset.\n"
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("words", [["stop"], ["reset", "--yes"]])
def test_a_disk_that_cannot_be_written_is_one_sentence(made, monkeypatch, words):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    done = command(*words)
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: The state folder {made.path} cannot be used: ")
    assert len(done.output.splitlines()) == 1
