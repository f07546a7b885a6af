"""The local engines through everything that happens to them on a learner's machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import boto3
import psutil
import psycopg2
import pytest
import redis
from botocore.exceptions import ClientError
from click.testing import CliRunner, Result
from jupyter_client import KernelManager
from psycopg2.extras import wait_select

from workshop_lib.cli import main
from workshop_lib.errors import EngineError
from workshop_lib.paths import CHECKOUT
from workshop_lib.services import embedded, exports, resolve
from workshop_lib.services.endpoints import Endpoints
from workshop_lib.services.engines import ObjectStore
from workshop_lib.services.state import StateFolder, state_folder, wait_until
from workshop_lib.settings import load_settings

SOON = 30.0
OPEN = """
    import sys, time
    from workshop_lib.services import resolve
    from workshop_lib.paths import CHECKOUT
    from workshop_lib.settings import load_settings
    endpoints = resolve(load_settings().values)
    print("open", *(endpoint.port for endpoint in endpoints.all), flush=True)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateFolder]:
    """A state folder that these tests may treat as badly as they like."""
    folder = StateFolder(tmp_path_factory.mktemp("rough handling").resolve())
    yield folder
    embedded.reset(folder)


@pytest.fixture
def folder(home: StateFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateFolder]:
    """The folder, chosen by the environment; no process of it is left after each test."""
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(home.path))
    yield home
    while _attached:
        _attached.pop().release()
    embedded.stop(home)
    assert gone(home)


_attached: list[Endpoints] = []


def attach() -> Endpoints:
    """Open the engines from this process; the fixture lets go of them."""
    _attached.append(resolve(load_settings().values))
    return _attached[-1]


def processes_of(folder: StateFolder) -> list[psutil.Process]:
    """Every living process that names the folder (or its PostgreSQL data) on its command line."""
    places = (str(folder.path), str(folder.postgres_data))
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.status() != psutil.STATUS_ZOMBIE and any(
                place in word for word in words for place in places
            ):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def engine_pids(folder: StateFolder) -> dict[str, int]:
    return {engine.name: engine.pid for engine in embedded.status(folder).engines}


def opener(then: str = "") -> subprocess.Popen[str]:
    """Another process that opens the engines, says so, and then does what it is told."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OPEN) + textwrap.dedent(then)],
        stdout=subprocess.PIPE,
        text=True,
    )


def write_row(endpoints: Endpoints, number: int) -> None:
    connection = psycopg2.connect(**endpoints.database.arguments)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        cursor.execute("INSERT INTO kept VALUES (%s)", (number,))
    connection.close()


def read_rows(endpoints: Endpoints) -> list[int]:
    connection = psycopg2.connect(**endpoints.database.arguments)
    cursor = connection.cursor()
    cursor.execute("SELECT n FROM kept ORDER BY n")
    rows = [n for (n,) in cursor.fetchall()]
    connection.close()
    return rows


def workshop(*words: str) -> Result:
    before = signal.getsignal(signal.SIGTERM)
    try:
        return CliRunner().invoke(main, list(words), prog_name="workshop")
    finally:
        signal.signal(signal.SIGTERM, before)


def gone(folder: StateFolder) -> bool:
    return wait_until(lambda: not processes_of(folder), SOON)


def test_engines_listen_on_loopback_only(folder):
    attach()
    # Not all children: a PostgreSQL backend may end while it is asked.
    running = [folder.keeper().pid, *engine_pids(folder).values()]
    sockets = [s for pid in running for s in psutil.Process(pid).net_connections(kind="all")]
    listening = [s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN]
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}
    assert [s for s in sockets if s.family == socket.AF_UNIX and s.laddr] == []


def test_a_wrong_password_is_refused_by_all_three(folder):
    endpoints = attach()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(**{**endpoints.database.arguments, "password": "guess"})
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(**{**endpoints.cache.arguments, "password": "guess"}).ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(**{**endpoints.cache.arguments, "password": None}).ping()
    wrong = {**endpoints.store.arguments, "aws_secret_access_key": "guess-guess"}
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        boto3.client("s3", **wrong).list_buckets()


def test_the_notebooks_role_is_not_a_superuser_and_isolation_is_snapshot(folder):
    connection = psycopg2.connect(**attach().database.arguments)
    cursor = connection.cursor()
    cursor.execute(
        "SELECT current_user, rolsuper, current_setting('transaction_isolation'), "
        "current_setting('server_version_num')::int / 10000 "
        "FROM pg_roles WHERE rolname = current_user"
    )
    assert cursor.fetchone() == ("admin", False, "repeatable read", 16)
    connection.close()


def test_passwords_stand_in_no_command_line_no_log_and_no_open_file(folder):
    endpoints = attach()
    passwords = list(folder.secrets().values())
    lines = [" ".join(process.cmdline()) for process in psutil.process_iter() if _readable(process)]
    logs = [file.read_text(errors="replace") for file in folder.logs.glob("*.log")]
    assert [text for text in (*lines, *logs, repr(endpoints)) for p in passwords if p in text] == []
    assert folder.path.stat().st_mode & 0o777 == 0o700
    secret_files = [folder.path / "secrets.json", folder.path / "valkey" / "valkey.conf"]
    assert [file.stat().st_mode & 0o077 for file in secret_files] == [0, 0]


def _readable(process: psutil.Process) -> bool:
    try:
        return bool(process.cmdline())
    except psutil.Error:
        return False


def test_six_processes_that_open_at_once_share_one_set_of_engines(folder):
    with ExitStack() as stack:
        openers = [stack.enter_context(opener("time.sleep(60)")) for _ in range(6)]
        said = {process.stdout.readline() for process in openers}
        keepers = [p for p in processes_of(folder) if "workshop_lib.services.keeper" in p.cmdline()]
        for process in openers:
            process.kill()
    assert len(said) == 1
    assert said.pop().startswith("open ")
    assert len(keepers) == 1


def test_engines_end_when_their_last_user_ends(folder):
    with opener() as process:
        assert process.stdout.readline().startswith("open")
    assert process.returncode == 0
    assert gone(folder)


def test_engines_end_when_their_last_user_is_killed(folder):
    with opener("time.sleep(60)") as process:
        assert process.stdout.readline().startswith("open")
        process.kill()
    assert gone(folder)


def test_one_user_leaving_does_not_take_the_engines_from_another(folder):
    endpoints = attach()
    before = engine_pids(folder)
    with opener() as process:
        process.stdout.readline()
    time.sleep(0.6)  # three of the keeper's rounds of looking for users
    assert engine_pids(folder) == before
    assert read_version(endpoints) == 16


def read_version(endpoints: Endpoints) -> int:
    connection = psycopg2.connect(**endpoints.database.arguments)
    major = connection.server_version // 10_000
    connection.close()
    return major


def test_engines_linger_as_long_as_asked(folder, monkeypatch):
    monkeypatch.setenv("WORKSHOP_LINGER_SECONDS", "30")
    with opener() as process:
        process.stdout.readline()
    time.sleep(0.6)
    assert set(engine_pids(folder)) == {"postgres", "valkey", "s3"}
    assert embedded.stop(folder) is True


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_a_command_does_not_shorten_the_idle_time_that_another_user_asked_for(
    folder, monkeypatch, ends
):
    monkeypatch.setenv("WORKSHOP_LINGER_SECONDS", "600")
    with opener("time.sleep(60)" if ends == "killed" else "") as process:
        process.stdout.readline()
        if ends == "killed":
            process.kill()
    before = engine_pids(folder)
    assert workshop("check").exit_code == 0  # it would have waited for the ten minutes otherwise
    monkeypatch.setenv("WORKSHOP_LINGER_SECONDS", "0")
    with opener() as process:
        process.stdout.readline()
    time.sleep(0.6)  # three of the keeper's rounds of looking for users
    assert engine_pids(folder) == before


def test_a_command_that_started_the_engines_leaves_none(folder, monkeypatch):
    monkeypatch.setenv("WORKSHOP_LINGER_SECONDS", "600")
    assert workshop("check").exit_code == 0
    assert processes_of(folder) == []
    assert workshop("load", "clean").exit_code == 0
    assert processes_of(folder) == []


def test_a_mixed_load_that_started_the_engines_leaves_none(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKSHOP_LINGER_SECONDS", "600")
    words = ["--duration", "1", "--at-once", "1", "--think", "0", "--statements", "1"]
    done = workshop("load", "mixed", *words, "--messages", "2", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert processes_of(folder) == []


def test_what_lets_go_at_once_is_heard_all_the_same(folder, monkeypatch):
    holder = attach()
    before = engine_pids(folder)
    monkeypatch.setenv("WORKSHOP_LINGER_SECONDS", "600")
    resolve(load_settings().values).release()
    holder.release()
    time.sleep(0.6)  # as above
    assert engine_pids(folder) == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere start times do not move")
def test_a_clock_that_is_set_ends_no_use_of_the_engines(folder, monkeypatch):
    attach()
    keeper, boot = folder.keeper().pid, psutil.boot_time()
    # By this Linux's psutil tells when a process started; it moves when the clock is set.
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3600)
    assert folder.keeper().pid == keeper
    assert len(folder.live_leases()) == 1


@pytest.mark.parametrize("name", ["postgres", "valkey", "s3"])
def test_a_killed_engine_comes_back_on_the_same_port_with_its_data(folder, name):
    endpoints = attach()
    write_row(endpoints, 1)
    client = boto3.client("s3", **endpoints.store.arguments)
    buckets = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
    if "kept" not in buckets:
        client.create_bucket(Bucket="kept")
    client.put_object(Bucket="kept", Key="a", Body=b"kept")
    rows = read_rows(endpoints)
    victim = engine_pids(folder)[name]
    os.kill(victim, signal.SIGKILL)
    assert wait_until(lambda: engine_pids(folder)[name] != victim, SOON)
    again = attach()
    assert [e.port for e in again.all] == [e.port for e in endpoints.all]
    assert read_rows(again) == rows
    assert client.get_object(Bucket="kept", Key="a")["Body"].read() == b"kept"


def test_an_engine_that_keeps_dying_is_reported_and_can_be_asked_for_again(folder, monkeypatch):
    attach()
    for _ in range(6):
        before = engine_pids(folder)["valkey"]
        os.kill(before, signal.SIGKILL)
        wait_until(lambda before=before: engine_pids(folder)["valkey"] != before, SOON)
    reports = {engine.name: engine for engine in embedded.status(folder).engines}
    assert reports["valkey"].status == "failed"
    assert "It died 5 times" in reports["valkey"].message
    assert redis.Redis(**attach().cache.arguments).ping() is True


def test_a_killed_keeper_takes_the_engines_with_it_and_the_data_stays(folder):
    endpoints = attach()
    write_row(endpoints, 2)
    rows = read_rows(endpoints)
    folder.keeper().kill()
    assert gone(folder)
    assert read_rows(attach()) == rows


def test_keeper_and_guard_killed_at_once_leave_orphans_that_the_next_opening_clears(folder):
    endpoints = attach()
    write_row(endpoints, 3)
    rows = read_rows(endpoints)
    keeper = folder.keeper()
    orphans = engine_pids(folder)
    guards = [p for p in keeper.children() if any("guard.py" in word for word in p.cmdline())]
    assert len(guards) == 1
    for process in (*guards, keeper):
        process.kill()
    assert psutil.pid_exists(orphans["postgres"])
    again = attach()
    assert not set(orphans.values()) & set(engine_pids(folder).values())
    assert read_rows(again) == rows


def test_a_database_killed_in_mid_query_comes_back_each_time_and_leaves_no_backend(folder):
    endpoints = attach()
    for _ in range(2):
        server = psutil.Process(engine_pids(folder)["postgres"])
        connection = psycopg2.connect(**endpoints.database.arguments, async_=1)
        wait_select(connection)
        connection.cursor().execute("SELECT count(*) FROM generate_series(1, 10000000000)")
        busy = psutil.Process(connection.info.backend_pid)
        assert wait_until(lambda busy=busy: busy.cpu_times().user > 0.05, 20)
        server.kill()
        assert read_version(attach()) == 16
        assert wait_until(lambda busy=busy: not busy.is_running(), 20)
        connection.close()


@pytest.mark.parametrize("then", ["stop", "open"])
def test_orphans_of_which_no_file_tells_are_found_and_ended(folder, then):
    attach()
    keeper = folder.keeper()
    orphans = [psutil.Process(pid) for pid in engine_pids(folder).values()]
    for process in (*(p for p in keeper.children() if "guard.py" in str(_words(p))), keeper):
        process.kill()
    folder.state_file.unlink()
    orphans[0].suspend()
    if then == "stop":
        assert embedded.stop(folder) is True
    else:
        assert read_version(attach()) == 16
    assert [p for p in orphans if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_a_frozen_keeper_is_woken(folder):
    attach()
    before = engine_pids(folder)
    folder.keeper().suspend()
    attach()
    assert engine_pids(folder) == before
    folder.keeper().suspend()
    assert embedded.stop(folder) is True


def test_an_engine_that_cannot_be_started_takes_no_other_with_it(folder, monkeypatch):
    monkeypatch.setenv("WORKSHOP_LINGER_SECONDS", "60")
    attach()
    before = engine_pids(folder)
    taken = folder.path / "ports.json"
    taken.unlink()
    (folder.path / "valkey" / "valkey.conf").unlink()
    (folder.path / "valkey" / "valkey.conf").mkdir()
    try:
        os.kill(before["valkey"], signal.SIGKILL)
        with pytest.raises(EngineError, match="workshop reset"):
            attach()
        after = engine_pids(folder)
        assert [after[name] for name in ("postgres", "s3")] == [before["postgres"], before["s3"]]
    finally:
        (folder.path / "valkey" / "valkey.conf").rmdir()
    assert redis.Redis(**attach().cache.arguments).ping() is True


def test_a_killed_guard_is_replaced(folder):
    attach()
    keeper = folder.keeper()
    guard = next(p for p in keeper.children() if any("guard.py" in w for w in p.cmdline()))
    guard.kill()
    os.kill(engine_pids(folder)["valkey"], signal.SIGKILL)
    attach()
    assert wait_until(
        lambda: any("guard.py" in w for p in keeper.children() for w in _words(p)), SOON
    )
    keeper.kill()
    assert gone(folder)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_an_interrupt_reaches_the_opener_and_not_the_engines(folder, monkeypatch):
    monkeypatch.setenv("WORKSHOP_LINGER_SECONDS", "30")
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OPEN) + "time.sleep(60)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        process.stdout.readline()
        before = engine_pids(folder)
        os.killpg(process.pid, signal.SIGINT)  # what Jupyter's Interrupt and Ctrl-C send
    time.sleep(0.3)
    assert engine_pids(folder) == before
    assert all(psutil.pid_exists(pid) for pid in before.values())


def test_a_state_file_of_before_a_reboot_harms_nobody(folder):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    engines = {
        name: {"name": name, "status": "up", "port": 1, "pid": stranger.pid, "created": 1.0}
        for name in ("postgres", "valkey", "s3")
    }
    folder.prepare()
    folder.write(
        folder.state_file,
        {"pid": stranger.pid, "created": 1.0, "attempt": 9, "engines": engines},
    )
    (folder.leases / "1-0.json").write_text("{damaged")
    endpoints = attach()
    assert read_version(endpoints) == 16
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_pid_file_of_a_crashed_postgres_does_not_stop_the_next(folder):
    attach()
    embedded.stop(folder)
    pid_file = folder.postgres_data / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{folder.postgres_data}\n0\n1\n\n127.0.0.1\n\n")
    assert read_version(attach()) == 16


def test_a_port_that_somebody_took_meanwhile_is_given_up(folder):
    taken = attach().cache.port
    embedded.stop(folder)
    with socket.create_server(("127.0.0.1", taken)):
        endpoints = attach()
        assert endpoints.cache.port != taken
        assert redis.Redis(**endpoints.cache.arguments).ping() is True


def test_an_interrupted_first_start_leaves_nothing_that_hinders_the_second(folder):
    embedded.stop(folder)
    shutil.rmtree(folder.postgres_data, ignore_errors=True)
    half = folder.postgres_data.with_name(f"{folder.postgres_data.name}.new")
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("16")
    assert read_version(attach()) == 16
    assert not half.exists()


def test_data_made_with_another_password_is_a_clear_error(folder):
    attach()
    embedded.stop(folder)
    kept = (folder.path / "secrets.json").read_bytes()
    (folder.path / "secrets.json").unlink()
    with pytest.raises(EngineError, match="workshop reset"):
        attach()
    embedded.stop(folder)
    (folder.path / "secrets.json").write_bytes(kept)
    assert read_version(attach()) == 16


def test_a_folder_that_cannot_be_made_is_a_clear_error():
    with pytest.raises(EngineError, match="WORKSHOP_STATE_DIR"):
        StateFolder(Path("/proc/workshop")).prepare()


def test_a_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000_000))
    with pytest.raises(EngineError, match="Only 5 MB are free"):
        StateFolder(tmp_path / "state").prepare()


def test_a_lock_that_is_held_for_too_long_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("workshop_lib.services.state.LOCK_WAIT_S", 0.1)
    first, second = StateFolder(tmp_path), StateFolder(tmp_path)
    with (
        first.locked(),
        pytest.raises(EngineError, match="Another process has been starting or stopping"),
        second.locked(),
    ):
        pass


def test_each_checkout_has_a_state_folder_of_its_own_outside_the_work_tree():
    chosen = state_folder(None).path
    assert CHECKOUT not in chosen.parents
    assert chosen != state_folder(Path("elsewhere")).path


def test_a_kernel_survives_interrupt_and_restart_on_the_same_engines(folder, monkeypatch):
    monkeypatch.setenv("WORKSHOP_LINGER_SECONDS", "30")
    manager = KernelManager(transport="ipc")
    manager.start_kernel()
    try:
        client = manager.blocking_client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        code = textwrap.dedent(OPEN)
        assert _says(client, code).startswith("open")
        before = engine_pids(folder)
        client.execute("import time; time.sleep(30)", stop_on_error=False)
        time.sleep(0.3)
        manager.interrupt_kernel()
        assert _says(client, "print('alive')") == "alive\n"
        assert engine_pids(folder) == before
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        assert _says(client, code).startswith("open")
        assert engine_pids(folder) == before
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _says(client: object, code: str) -> str:
    """Run code in the kernel; its standard output."""
    lines: list[str] = []

    def keep(message: dict[str, object]) -> None:
        content = message["content"]
        if message["msg_type"] == "stream" and content["name"] == "stdout":
            lines.append(content["text"])

    client.execute_interactive(code, timeout=60, output_hook=keep, stop_on_error=False)
    return "".join(lines)


def test_reset_deletes_everything_the_engines_wrote(tmp_path, monkeypatch):
    fresh = StateFolder(tmp_path / "fresh")
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(fresh.path))
    attach()
    assert fresh.postgres_data.exists()
    embedded.reset(fresh)
    assert not fresh.path.exists()
    assert not fresh.postgres_data.exists()
    assert processes_of(fresh) == []


def test_stopping_what_does_not_run_is_harmless(tmp_path):
    assert embedded.stop(StateFolder(tmp_path / "nothing")) is False
    embedded.reset(StateFolder(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_where_rclone_cannot_run_an_emulation_stands_in_and_says_so(tmp_path):
    folder = StateFolder(tmp_path / "state")
    folder.prepare()
    store = ObjectStore(folder)
    store.program = tmp_path / "no-rclone-here"
    store.start(0)
    try:
        assert store.emulated is True
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{store.port}",
            aws_access_key_id="any",
            aws_secret_access_key="any",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="emulated")
        client.put_object(Bucket="emulated", Key="k", Body=b"body")
        assert client.get_object(Bucket="emulated", Key="k")["Body"].read() == b"body"
    finally:
        store.stop()
        embedded.reset(folder)


def test_a_folder_that_the_workshop_did_not_make_is_never_used_changed_or_deleted(tmp_path):
    (tmp_path / "Documents").mkdir()
    (tmp_path / "Documents" / "thesis.txt").write_text("years of work")
    tmp_path.chmod(0o755)
    stranger = StateFolder(tmp_path)
    with pytest.raises(EngineError, match="was not made by the workshop"):
        stranger.prepare()
    assert embedded.reset(stranger) is False
    assert embedded.stop(stranger) is False
    stranger.delete()
    assert (tmp_path / "Documents" / "thesis.txt").read_text() == "years of work"
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_stopping_does_not_wait_for_the_process_that_started_the_engines(folder):
    with opener("time.sleep(60)") as process:
        process.stdout.readline()
        embedded.stop(folder)
        assert process.poll() is None
        process.kill()


def test_an_engine_that_runs_but_is_silent_is_named_instead_of_waited_for(folder, monkeypatch):
    monkeypatch.setattr(embedded, "FROZEN_S", 0.5)
    attach()
    frozen = engine_pids(folder)["valkey"]
    os.kill(frozen, signal.SIGSTOP)
    try:
        with pytest.raises(EngineError, match=r"valkey runs .* has not answered"):
            attach()
    finally:
        os.kill(frozen, signal.SIGCONT)


def test_addresses_that_workshop_env_printed_are_the_local_engines_themselves(folder, monkeypatch):
    first = attach()
    for name, value in exports(load_settings().values, first).items():
        monkeypatch.setenv(name, value)
    embedded.stop(folder)
    again = attach()
    assert [endpoint.embedded for endpoint in again.all] == [True, True, True]
    assert read_version(again) == 16
