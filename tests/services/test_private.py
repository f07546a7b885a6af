"""A notebook's own engines: alone, at one address, and gone without a trace whatever ends them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
import redis
from filelock import FileLock

from workshop_lib.errors import EngineError
from workshop_lib.services import embedded, private
from workshop_lib.services.engines import make_engine
from workshop_lib.services.private import PrivateEngines, open_private
from workshop_lib.services.state import PRIVATE, StateFolder, state_folder, wait_until
from workshop_lib.settings import Settings, load_settings

SOON = 30.0
OPEN = """
    import sys, time
    from workshop_lib.services.private import open_private
    from workshop_lib.settings import load_settings
    print("opening", flush=True)
    engines = open_private(load_settings().values, database=DATABASE, caches=1)
    print(engines.attachment.folder.path, flush=True)
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = str(tmp_path_factory.mktemp("kept"))
    return load_settings(workshop_state_dir=folder, workshop_cache_mb=17).values


@pytest.fixture(scope="module")
def kept(settings: Settings) -> Iterator[PrivateEngines]:
    """A database and three caches for all tests that leave them as they were."""
    engines = open_private(settings, database=True, caches=3)
    yield engines
    engines.close()
    assert left(engines.attachment.folder) == []
    embedded.reset(state_folder(settings.workshop_state_dir))


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateFolder]:
    """The state folder of a checkout whose private engines are treated badly."""
    folder = StateFolder(tmp_path_factory.mktemp("rough handling").resolve())
    yield folder
    embedded.reset(folder)
    assert not folder.path.exists()


@pytest.fixture
def home(ground: StateFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateFolder]:
    """The same, chosen by the environment; after each test nothing private is left in it."""
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(ground.path))
    yield ground
    monkeypatch.undo()
    wait_until(lambda: not below(ground), SOON)
    remains = below(ground)
    embedded.reset(ground)
    assert remains == []


@pytest.fixture
def opened(home: StateFolder) -> Iterator[Callable[..., PrivateEngines]]:
    """Opens private engines, and sees to it that nothing is left of them."""
    all_of_them: list[PrivateEngines] = []

    def one(*, database: bool = False, caches: int = 1, **changes: Any) -> PrivateEngines:
        values = load_settings().values.model_copy(update=changes)
        all_of_them.append(open_private(values, database=database, caches=caches))
        return all_of_them[-1]

    yield one
    for engines in all_of_them:
        engines.close()
    assert [left(engines.attachment.folder) for engines in all_of_them] == [[]] * len(all_of_them)


def below(home: StateFolder) -> list[str]:
    """What lies where private state folders lie, but for the lock on all of them."""
    base = home.path / PRIVATE
    return (
        sorted(path.name for path in base.iterdir() if path.name != "lock") if base.exists() else []
    )


def left(folder: StateFolder, seconds: float = SOON) -> list[str]:
    """What is there of private engines, files and processes, after so many seconds at most."""

    def found() -> list[str]:
        data = folder.postgres_data
        files = [p for at in (folder.path, data) for p in at.parent.glob(f"{at.name}*")]
        return [*map(str, files), *map(str, processes_of(folder))]

    wait_until(lambda: not found(), seconds)
    return found()


def processes_of(folder: StateFolder) -> list[psutil.Process]:
    """Every living process that names the folder (or its PostgreSQL data) on its command line."""
    places = (str(folder.path), str(folder.postgres_data))
    return [
        process
        for process in psutil.process_iter()
        if any(place in word for word in words(process) for place in places)
    ]


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended
        return []


def pids(engines: PrivateEngines) -> dict[str, int]:
    return {name: r.pid for name, r in embedded.reports(engines.attachment.folder).items()}


def guard_of(keeper: psutil.Process) -> psutil.Process:
    return next(p for p in keeper.children() if any("guard.py" in word for word in words(p)))


def client_of(engines: PrivateEngines, number: int = 0, **changes: Any) -> redis.Redis:
    return redis.Redis(**{**engines.caches[number].arguments, **changes})


def sign_in(engines: PrivateEngines, **changes: Any) -> psycopg2.extensions.connection:
    return psycopg2.connect(**{**engines.database.arguments, **changes})


def opener(then: str = "", *, database: bool = False) -> subprocess.Popen[str]:
    """Another process that opens private engines, says where, and then does what it is told."""
    code = textwrap.dedent(OPEN).replace("DATABASE", str(database)) + textwrap.dedent(then)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "opening\n"
    return process


def folder_of(process: subprocess.Popen[str]) -> StateFolder:
    """Where a process has opened its engines; waits until they are up."""
    return StateFolder(Path(process.stdout.readline().strip()))


# --- what they are ---


def test_they_listen_on_loopback_only(kept):
    running = [kept.attachment.folder.keeper().pid, *pids(kept).values()]
    sockets = [s for pid in running for s in psutil.Process(pid).net_connections(kind="all")]
    listening = [s.laddr for s in sockets if s.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    ports = {endpoint.port for endpoint in (kept.database, *kept.caches)}
    assert {address.port for address in listening} == ports
    assert [s for s in sockets if s.family == socket.AF_UNIX and s.laddr] == []


def test_they_open_to_passwords_of_their_own_only(kept, settings):
    workshops = state_folder(settings.workshop_state_dir).secrets()
    for password in ("guess", workshops["valkey"]):
        for number in range(3):
            with pytest.raises(redis.AuthenticationError):
                client_of(kept, number, password=password).ping()
    with pytest.raises(redis.AuthenticationError):
        client_of(kept, password=None).ping()
    for password in ("guess", workshops["admin"]):
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            sign_in(kept, password=password)


def test_their_passwords_stand_in_no_command_line_no_log_and_no_open_file(kept):
    folder = kept.attachment.folder
    passwords = folder.secrets().values()
    lines = [" ".join(words(process)) for process in psutil.process_iter()]
    logs = [file.read_text(errors="replace") for file in folder.logs.glob("*.log")]
    assert len(logs) == 5
    texts = (*lines, *logs, repr(kept))
    assert [text for text in texts for password in passwords if password in text] == []
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.path.parent.stat().st_mode & 0o777 == 0o700
    configurations = list(folder.path.glob("valkey*/valkey.conf"))
    assert len(configurations) == 3
    kept_shut = [folder.path / "secrets.json", *configurations]
    assert {file.stat().st_mode & 0o077 for file in kept_shut} == {0}


def test_their_labels_say_whose_they_are(kept):
    assert kept.database.label == "local PostgreSQL 16, this notebook's own"
    assert {cache.label for cache in kept.caches} == {"local Valkey, this notebook's own"}


def test_several_caches_are_servers_of_their_own(kept):
    clients = [client_of(kept, number) for number in range(3)]
    about = [client.info("server") for client in clients]
    assert {one["process_id"] for one in about} == set(pids(kept).values()) - {
        pids(kept)["postgres"]
    }
    assert len({one["run_id"] for one in about}) == 3
    clients[1].set("k", "second")
    clients[1].config_set("maxmemory-policy", "noeviction")
    assert [client.get("k") for client in clients] == [None, b"second", None]
    policies = [client.config_get("maxmemory-policy")["maxmemory-policy"] for client in clients]
    assert policies == ["volatile-lru", "noeviction", "volatile-lru"]
    kept.stop("valkey-2")
    assert [client_of(kept, number).ping() for number in (0, 2)] == [True, True]
    kept.start("valkey-2")
    assert clients[1].config_get("maxmemory-policy")["maxmemory-policy"] == "volatile-lru"


def test_each_cache_has_the_memory_that_the_settings_name(kept):
    limits = [client_of(kept, n).config_get("maxmemory")["maxmemory"] for n in range(3)]
    assert limits == [str(17 * 1024**2)] * 3


def test_a_further_engine_of_a_kind_has_files_of_its_own(tmp_path):
    first, second = (make_engine(name, StateFolder(tmp_path)) for name in ("valkey", "valkey-2"))
    assert type(first) is type(second)
    assert (first.name, second.name) == ("valkey", "valkey-2")
    assert first.log != second.log


# --- stop, start, freeze ---


@pytest.mark.parametrize("name", ["postgres", "valkey", "valkey-3"])
def test_an_engine_that_was_stopped_starts_again_where_it_was(kept, name):
    before, others = pids(kept), pids(kept).keys() - {name}
    port = kept.attachment.engines[name].port
    kept.stop(name)
    assert pids(kept)[name] == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    kept.start(name)
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    after = pids(kept)
    assert after[name] not in {0, before[name]}
    assert {other: after[other] for other in others} == {other: before[other] for other in others}


def test_stopping_or_starting_twice_is_harmless(kept):
    for _ in range(2):
        kept.stop("valkey")
    for _ in range(2):
        kept.start("valkey")
    assert client_of(kept).ping() is True


@pytest.mark.parametrize("name", ["postgres", "valkey-2"])
def test_an_engine_that_is_killed_comes_back_where_it_was(kept, name):
    victim = pids(kept)[name]
    port = kept.attachment.engines[name].port
    os.kill(victim, signal.SIGKILL)
    assert wait_until(lambda: pids(kept)[name] != victim, SOON)
    assert embedded.reports(kept.attachment.folder)[name].port == port
    assert client_of(kept, 1).ping() is True
    sign_in(kept).close()


def test_what_was_stopped_is_not_started_by_anybody_else(kept):
    kept.stop("valkey")
    time.sleep(0.3)  # six of the keeper's rounds
    assert pids(kept)["valkey"] == 0
    kept.start("valkey")


def test_a_frozen_engine_lives_and_says_nothing_until_it_is_thawed(kept):
    client, pid = client_of(kept, socket_timeout=0.1), pids(kept)["valkey"]
    client.set("k", "v")
    kept.freeze("valkey")
    kept.freeze("valkey")
    with pytest.raises(redis.TimeoutError):
        client.get("k")
    assert psutil.Process(pid).status() == psutil.STATUS_STOPPED
    assert client_of(kept, 1).ping() is True
    kept.thaw("valkey")
    kept.thaw("valkey")
    assert client.get("k") == b"v"
    assert pids(kept)["valkey"] == pid


def test_a_frozen_engine_can_be_stopped_and_started(kept):
    kept.freeze("valkey")
    kept.stop("valkey")
    kept.start("valkey")
    assert client_of(kept).ping() is True


def test_freezing_or_thawing_what_is_stopped_is_harmless(kept):
    kept.stop("valkey")
    kept.freeze("valkey")
    kept.thaw("valkey")
    kept.start("valkey")
    assert client_of(kept).ping() is True


def test_a_port_that_somebody_took_meanwhile_is_a_clear_error(opened):
    engines = opened()
    engines.stop("valkey")
    with (
        socket.create_server(("127.0.0.1", engines.caches[0].port)),
        pytest.raises(EngineError, match=rf"its port {engines.caches[0].port} is taken"),
    ):
        engines.start("valkey")


def test_freezing_never_halts_a_stranger_who_has_the_engine_s_number_by_now(opened):
    engines = opened()
    folder = engines.attachment.folder
    folder.keeper().kill()
    assert wait_until(lambda: len(processes_of(folder)) == 0, SOON)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    state = folder.read(folder.state_file)
    state["engines"]["valkey"] |= {"pid": stranger.pid, "created": 1.0}
    folder.write(folder.state_file, state)
    try:
        engines.freeze("valkey")
        time.sleep(0.1)
        assert psutil.Process(stranger.pid).status() != psutil.STATUS_STOPPED
    finally:
        stranger.kill()
        stranger.wait()
        embedded.reset(folder)


# --- their end ---


def test_closing_leaves_nothing_and_twice_is_harmless(opened):
    engines = opened(database=True, caches=2)
    folder = engines.attachment.folder
    guard = guard_of(folder.keeper())
    running = [*pids(engines).values()]
    assert folder.postgres_data.exists()
    started = time.monotonic()
    engines.close()
    in_time = time.monotonic() - started < private.GONE_S
    assert left(folder, 0 if in_time else SOON) == []
    assert [pid for pid in running if psutil.pid_exists(pid)] == []
    assert wait_until(lambda: not guard.is_running(), SOON)
    engines.close()


def test_who_asks_closed_engines_is_told_that_they_are_closed(opened):
    engines = opened()
    engines.close()
    for ask in (engines.stop, engines.start):
        with pytest.raises(EngineError, match="This sandbox is closed"):
            ask("valkey")
    engines.freeze("valkey")
    engines.thaw("valkey")


@pytest.mark.parametrize("state", ["frozen", "stopped"])
def test_a_cache_in_trouble_does_not_keep_its_sandbox_from_closing(opened, state):
    engines = opened()
    {"frozen": engines.freeze, "stopped": engines.stop}[state]("valkey")
    engines.close()
    assert left(engines.attachment.folder) == []


def test_they_end_at_once_when_the_process_that_opened_them_is_killed(home, monkeypatch):
    monkeypatch.setenv("WORKSHOP_LINGER_SECONDS", "600")  # for the workshop's engines, not these
    with opener("time.sleep(60)", database=True) as process:
        folder = folder_of(process)
        assert len(processes_of(folder)) >= 3
        process.kill()
    assert left(folder) == []


def test_a_process_killed_while_it_opens_them_leaves_nothing(home):
    with opener("time.sleep(60)", database=True) as process:
        assert wait_until(lambda: any(f.keeper() for f in home.private_folders), SOON)
        (folder,) = home.private_folders
        process.kill()
    assert left(folder) == []


def test_a_keeper_that_would_leave_still_obeys_whoever_holds_the_lock(opened):
    engines = opened()
    folder = engines.attachment.folder
    with folder.locked():
        engines.attachment.release()
        time.sleep(0.5)  # two of the keeper's rounds of looking for users
        folder.keeper().terminate()
        assert wait_until(lambda: not processes_of(folder), SOON)


def test_a_killed_keeper_takes_the_engines_along_and_the_next_opening_sweeps(opened):
    engines = opened(database=True)
    folder = engines.attachment.folder
    folder.keeper().kill()
    assert wait_until(lambda: not processes_of(folder), SOON)
    assert folder.postgres_data.exists()
    with pytest.raises(EngineError, match="its engines have ended"):
        engines.stop("valkey")
    engines.close()
    opened()
    assert left(folder) == []


def test_keeper_and_guard_killed_at_once_leave_orphans_that_the_next_opening_ends(opened):
    engines = opened()
    folder = engines.attachment.folder
    keeper, orphans = folder.keeper(), pids(engines).values()
    for process in (guard_of(keeper), keeper):
        process.kill()
    assert all(psutil.pid_exists(pid) for pid in orphans)
    engines.close()
    opened()
    assert left(folder) == []


def test_a_folder_whose_process_lives_is_not_swept(opened):
    engines = opened()
    folder = engines.attachment.folder
    folder.keeper().kill()
    opened()
    assert folder.ours
    engines.close()
    opened()
    assert left(folder) == []


def test_a_keeper_killed_while_it_makes_the_database_leaves_nothing_for_good(home, opened):
    with opener("time.sleep(60)", database=True) as process:
        assert wait_until(lambda: any(drafts_of(f) for f in home.private_folders), SOON)
        (folder,) = home.private_folders
        process.kill()
        folder.keeper().kill()
    # The program that makes it goes on for a moment; and who is killed has no command line any more
    # a moment before it is gone.
    assert wait_until(lambda: not processes_of(folder) and folder.keeper() is None, SOON)
    opened()
    remains = left(folder)
    for draft in drafts_of(folder):
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
    assert remains == []


def drafts_of(folder: StateFolder) -> list[Path]:
    data = folder.postgres_data
    return list(data.parent.glob(f"{data.name}.*"))


@pytest.fixture
def leaving(home: StateFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateFolder]:
    """A private folder that its keeper deletes between anybody's look at it and lock on it."""
    home.prepare()
    folder = StateFolder(home.path / PRIVATE / "leaving")
    folder.path.parent.mkdir(exist_ok=True)
    folder.prepare()
    locked = StateFolder.locked

    def too_late(this: StateFolder, **how: Any) -> Any:
        if this == folder:
            shutil.rmtree(this.path, ignore_errors=True)
        return locked(this, **how)

    monkeypatch.setattr(StateFolder, "locked", too_late)
    yield folder
    shutil.rmtree(folder.path, ignore_errors=True)


@pytest.mark.parametrize("end", [embedded.stop, embedded.reset])
def test_a_folder_that_goes_while_all_engines_are_ended_disturbs_nobody(home, leaving, end):
    end(home)
    assert below(home) == []


def test_a_folder_that_goes_while_another_notebook_opens_disturbs_nobody(leaving, opened):
    assert client_of(opened()).ping() is True
    assert left(leaving, 0) == []


def test_opening_and_closing_in_quick_succession_leaves_nothing(home, opened):
    for _ in range(3):
        opened().close()
    assert below(home) == []


# --- together with the workshop's engines ---


def test_status_lists_them_and_stop_ends_them_also_where_no_others_run(home, opened):
    assert embedded.status(home).private == []
    engines = opened(caches=2)
    found = embedded.status(home)
    assert (found.keeper_pid, found.engines) == (None, [])
    (one,) = found.private
    assert one.folder == engines.attachment.folder.path
    assert one.keeper_pid == engines.attachment.folder.keeper().pid
    assert [(e.name, e.status) for e in one.engines] == [("valkey", "up"), ("valkey-2", "up")]
    assert [f"(pid {os.getpid()})" in user for user in one.users] == [True]
    assert embedded.stop(home) is True
    assert embedded.status(home).private == []
    assert embedded.stop(home) is False


@pytest.mark.parametrize("end", [embedded.stop, embedded.reset])
def test_ending_the_workshop_s_engines_ends_them_too(home, opened, end):
    shared = embedded.attach(home, ["valkey"], load_settings().values)
    engines = opened()
    assert end(home) is True
    assert left(engines.attachment.folder) == []
    assert home.keeper() is None
    assert home.path.exists() is (end is embedded.stop)
    with pytest.raises(EngineError, match="This sandbox is closed"):
        engines.start("valkey")
    shared.release()


def test_waiting_for_the_workshop_s_engines_to_go_waits_for_them_too(home, opened):
    engines = opened()
    running = pids(engines).values()
    engines.attachment.release()
    embedded.wait_gone(home)
    assert [pid for pid in running if psutil.pid_exists(pid)] == []


def test_waiting_does_not_last_while_another_notebook_has_some(home, opened):
    opened()
    started = time.monotonic()
    embedded.wait_gone(home)
    assert time.monotonic() - started < 2


def test_two_processes_that_open_at_once_have_a_set_each(home):
    with opener("time.sleep(60)") as one, opener("time.sleep(60)") as two:
        folders = [folder_of(one), folder_of(two)]
        assert len({folder.keeper().pid for folder in folders}) == 2
        assert len({embedded.reports(folder)["valkey"].port for folder in folders}) == 2
        one.kill()
        assert left(folders[0]) == []
        assert embedded.reports(folders[1])["valkey"].status == "up"
        assert len(processes_of(folders[1])) == 2
        two.kill()
    assert left(folders[1]) == []


def test_a_state_folder_that_happens_to_lie_in_a_folder_named_private_is_kept(tmp_path):
    home = StateFolder(tmp_path / PRIVATE / "state")
    settings = load_settings(workshop_state_dir=str(home.path)).values
    embedded.attach(home, ["valkey"], settings).release()
    embedded.wait_gone(home)
    assert wait_until(lambda: not processes_of(home), SOON)
    assert home.ours
    engines = open_private(settings, database=False, caches=1)
    engines.close()
    assert left(engines.attachment.folder) == []
    assert home.ours
    embedded.reset(home)
    assert not home.path.exists()


# --- an opening that fails ---


@pytest.fixture
def tried(monkeypatch) -> list[StateFolder]:
    """The folders in which it was tried to start private engines."""
    folders: list[StateFolder] = []
    attach = embedded.attach

    def noting(folder: StateFolder, *arguments: Any) -> Any:
        folders.append(folder)
        return attach(folder, *arguments)

    monkeypatch.setattr(embedded, "attach", noting)
    return folders


def test_where_an_engine_does_not_start_the_others_are_gone_as_well(opened, tried):
    with pytest.raises(EngineError, match=r"valkey did not start\. The end of its log"):
        opened(database=True, workshop_cache_mb=-1)
    assert [left(folder) for folder in tried] == [[]]


def test_where_they_take_too_long_nothing_is_left_of_them(opened, tried, monkeypatch):
    monkeypatch.setattr(embedded, "ATTACH_S", 0.0)
    with pytest.raises(EngineError, match="did not come up within 0 s"):
        opened(database=True)
    assert [left(folder) for folder in tried] == [[]]


def test_an_interrupt_while_they_start_leaves_nothing(opened, tried, monkeypatch):
    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_answers", interrupted)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        opened(database=True)
    assert time.monotonic() - started < SOON
    assert [left(folder) for folder in tried] == [[]]


def test_a_keeper_that_cannot_run_is_a_clear_error_and_leaves_nothing(opened, tried):
    with pytest.raises(EngineError, match="keeper ended while they were starting"):
        opened(workshop_cache_mb="much")
    assert [left(folder) for folder in tried] == [[]]


def test_another_who_opens_for_too_long_is_a_clear_error(home, opened, monkeypatch):
    monkeypatch.setattr("workshop_lib.services.state.LOCK_WAIT_S", 0.1)
    home.prepare()
    (home.path / PRIVATE).mkdir(exist_ok=True)
    with (
        FileLock(home.path / PRIVATE / "lock"),
        pytest.raises(EngineError, match="Another process has been starting or stopping"),
    ):
        opened()


def test_a_state_folder_that_cannot_be_made_is_a_clear_error():
    values = load_settings(workshop_state_dir="/proc/workshop").values
    with pytest.raises(EngineError, match="WORKSHOP_STATE_DIR"):
        open_private(values, database=False, caches=1)
