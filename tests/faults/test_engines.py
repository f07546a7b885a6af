"""The local engines treated badly: shared ones, and those of a sandbox."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import boto3
import psutil
import psycopg2
import pytest
import redis
from botocore.exceptions import ClientError
from psycopg2.extras import wait_select

from workshop_lib.errors import EngineError
from workshop_lib.paths import CHECKOUT
from workshop_lib.services import local, resolve
from workshop_lib.services.endpoints import embedded_cache, embedded_database
from workshop_lib.services.engines import ENGINES, ObjectStore
from workshop_lib.services.local import Attachment, EngineState
from workshop_lib.services.processes import is_alive, wait_until
from workshop_lib.services.state_folder import StateFolder, state_folder
from workshop_lib.settings import load_settings

SOON_S = 30.0
OPEN = """
    import os, sys, time
    from workshop_lib.services import local
    from workshop_lib.services.state_folder import state_folder
    from workshop_lib.settings import load_settings
    settings = load_settings().values
    print("opening", flush=True)
    folder = state_folder(settings.workshop_state_dir)
    held = local.attach(folder, {names}, settings, sandbox={sandbox})
    print(*(engine.port for engine in held.engines.values()), flush=True)
"""
SLEEP = "time.sleep(600)"
both = pytest.mark.parametrize("kind", ["shared", "sandbox"])


@pytest.fixture(scope="module", autouse=True)
def nothing_left(drill) -> Iterator[None]:
    """After each test no process is left; whatever else may be, is looked for after the last."""
    with drill():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateFolder]:
    """A state folder that these tests may treat as badly as they like."""
    folder = state_folder(tmp_path_factory.mktemp("rough handling"))
    yield folder
    local.reset(folder)
    assert list(folder.path.parent.iterdir()) == []
    assert not folder.postgres_data.exists()


@pytest.fixture
def folder(home: StateFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateFolder]:
    """The folder, chosen by the environment; afterwards no process or sandbox of it is left."""
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(home.path.parent))
    yield home
    let_go()
    local.stop(home)
    assert gone(home)


_held: list[Attachment] = []


def attach(*names: str, kind: str = "shared", idle_s: float = 0.0) -> Attachment:
    """Open engines from this process; the fixture releases them."""
    settings = load_settings(workshop_linger_seconds=idle_s).values
    folder = state_folder(settings.workshop_state_dir)
    _held.append(local.attach(folder, names or ("valkey",), settings, sandbox=kind == "sandbox"))
    return _held[-1]


def let_go() -> None:
    while _held:
        _held.pop().release()


@contextmanager
def another(
    then: str = "", *, kind: str = "shared", names: tuple[str, ...] = ("valkey",)
) -> Iterator[subprocess.Popen[str]]:
    """Another process that opens engines, says their ports, and then does what it is told."""
    code = OPEN.format(names=names, sandbox=kind == "sandbox")
    words = [sys.executable, "-c", textwrap.dedent(code) + then]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "opening\n"
        yield process
        process.kill()


def gone(folder: StateFolder) -> bool:
    def nothing() -> bool:
        return not any(folder.processes()) and not folder.sandboxes

    return wait_until(nothing, SOON_S, step_s=0.1)


def supervisor(folder: StateFolder) -> psutil.Process:
    return psutil.Process(local.status(folder).supervisor_pid)


def states(folder: StateFolder, kind: str = "shared") -> dict[str, EngineState]:
    status = local.status(folder)
    engines = status.engines if kind == "shared" else status.sandboxes[0][1]
    return {engine.name: engine for engine in engines}


def pids(folder: StateFolder, kind: str = "shared") -> dict[str, int]:
    return {name: state.pid for name, state in states(folder, kind).items()}


def client(held: Attachment, name: str = "valkey", **changes: object) -> redis.Redis:
    return redis.Redis(**{**embedded_cache(held, name).arguments, **changes})


def query(held: Attachment, statement: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(**embedded_database(held).arguments)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def keep_a_row(held: Attachment) -> list[tuple[object, ...]]:
    """Commit one more row. Returns all that are there."""
    query(held, "CREATE TABLE IF NOT EXISTS kept (n int)")
    query(held, "INSERT INTO kept VALUES (1)")
    return query(held, "TABLE kept")


def ports(held: Attachment) -> list[int]:
    return [engine.port for engine in held.engines.values()]


# --- what they are ---


def test_they_listen_on_loopback_only_open_to_their_own_passwords_and_show_none(folder):
    held, other = attach(*ENGINES), attach("postgres", "valkey", kind="sandbox")
    running = [supervisor(folder).pid, *pids(folder).values(), *pids(folder, "sandbox").values()]
    sockets = [s for pid in running for s in psutil.Process(pid).net_connections(kind="inet")]
    listening = [s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN]
    assert len(listening) >= 8
    assert set(listening) == {"127.0.0.1"}
    for one, stranger in ((held, other), (other, held)):
        with pytest.raises(redis.AuthenticationError):
            client(one, password=stranger.secrets["valkey"]).ping()
        arguments = {**embedded_database(one).arguments, "password": stranger.secrets["admin"]}
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect(**arguments)
        assert query(
            one,
            "SELECT rolname::text, rolsuper, current_setting('transaction_isolation'),"
            " current_setting('server_version_num')::int / 10000"
            " FROM pg_roles WHERE rolname = current_user",
        ) == [("admin", False, "repeatable read", 16)]
    lines = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
    logs = [file.read_text(errors="replace") for file in folder.path.rglob("*.log")]
    words = [word for word in folder.read(folder.address_file).values() if isinstance(word, str)]
    known = [*held.secrets.values(), *other.secrets.values(), *words]
    texts = (*lines, *logs, repr(held), repr(other))
    assert [text for text in texts for word in known if word in text] == []


def test_a_client_without_the_key_is_answered_nothing(folder):
    held = attach()
    address = ("127.0.0.1", folder.read(folder.address_file)["port"])
    for said in (b"\0\0\0\5guess", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(address, timeout=SOON_S) as connection:
            connection.sendall(said)
            with contextlib.suppress(ConnectionError):
                told = b"".join(iter(lambda c=connection: c.recv(100), b""))
                assert 0 < len(told) < 100  # a random question, and the end
    assert client(held).ping() is True


# --- who holds them ---


def test_eight_processes_that_open_at_once_from_nothing_share_one_supervisor(folder):
    with ExitStack() as stack:
        names = ("postgres", "valkey")
        openers = [stack.enter_context(another(SLEEP, names=names)) for _ in range(8)]
        found = {process.stdout.readline() for process in openers}
        assert len(local.status(folder).users) == 8
    assert len(found) == 1
    assert len(found.pop().split()) == 2


@both
@pytest.mark.parametrize("end", ["ends", "is killed", "is killed while it opens them"])
def test_they_end_with_their_last_user(folder, kind, end):
    with another("" if end == "ends" else SLEEP, kind=kind, names=("postgres",)) as process:
        if end == "is killed while it opens them":
            assert wait_until(lambda: folder.processes().supervisors, SOON_S)
        else:
            assert process.stdout.readline()
        if end != "ends":
            process.kill()
        process.wait()
    assert gone(folder)


def test_a_sandbox_belongs_to_one_process_and_ends_alone(folder, command):
    shared, box = attach("valkey"), attach("valkey", "valkey-2", kind="sandbox")
    with another(SLEEP, kind="sandbox") as process:
        process.stdout.readline()
        status = local.status(folder)
        assert [user.pid for user, _ in status.sandboxes] == [os.getpid(), process.pid]
        assert str(process.pid) in command("status").output
    assert wait_until(lambda: len(folder.sandboxes) == 1, SOON_S)
    box.release()
    assert wait_until(lambda: folder.sandboxes == [], SOON_S)
    assert client(shared).ping() is True
    with pytest.raises(EngineError, match=r"This sandbox is closed.* Run the cell"):
        box.tell("start", "valkey")


def test_they_stay_idle_as_long_as_any_user_asked_for(folder, command, monkeypatch):
    for idle_s, then in (("600", ""), ("500", SLEEP)):  # it ends, and is killed
        monkeypatch.setenv("WORKSHOP_LINGER_SECONDS", idle_s)
        with another(then) as process:
            process.stdout.readline()
    before = pids(folder)
    attach().release()
    assert 500 < local.status(folder).idle_s < 600
    assert local.wait_gone(folder, 0.0) is False
    assert pids(folder) == before
    assert command("stop").output == "The local engines are stopped.\n"
    assert command("stop").output == "No local engines were running.\n"
    attach(idle_s=0.5).release()
    attach(idle_s=0.2).release()
    assert gone(folder)


def test_a_command_that_started_them_leaves_none(folder, command, monkeypatch):
    monkeypatch.setenv("WORKSHOP_LINGER_SECONDS", "600")
    assert command("check").exit_code == 0
    assert not any(folder.processes())


@both
def test_a_forked_child_does_not_keep_what_its_parent_holds(folder, kind):
    # In a process of its own: this one has threads.
    with another(
        "print(os.fork() or time.sleep(60), flush=True); time.sleep(600)", kind=kind
    ) as one:
        one.stdout.readline()
        stays = int(one.stdout.readline())
        one.kill()
        assert gone(folder)
        os.kill(stays, signal.SIGKILL)


def test_an_interrupt_reaches_the_opener_and_not_the_engines_and_a_stop_waits_for_no_user(folder):
    then = """
try:
    print("waiting", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(60)
"""
    with another(then, names=("postgres", "valkey")) as process:
        assert [process.stdout.readline() for _ in range(2)][1] == "waiting\n"
        before = pids(folder)
        os.killpg(process.pid, signal.SIGINT)  # what Jupyter's Interrupt and Ctrl-C send
        assert client(attach()).ping() is True
        assert pids(folder) == before
        assert local.stop(folder) is True
        assert process.poll() is None


# --- killed, frozen ---


@both
def test_a_killed_engine_comes_back_on_the_same_port_with_its_data(folder, kind):
    held = attach("postgres", "valkey", kind=kind)
    rows, before = keep_a_row(held), pids(folder, kind)

    def is_back(name: str) -> bool:
        state = states(folder, kind)[name]
        return state.status == "up" and state.pid != before[name]

    for name in ("postgres", "valkey"):
        os.kill(before[name], signal.SIGKILL)
        assert wait_until(lambda name=name: is_back(name), SOON_S)
        assert states(folder, kind)[name].port == held.engines[name].port
        assert query(held, "TABLE kept") == rows
        assert client(held).ping() is True


def test_a_killed_store_comes_back_on_the_same_port_with_its_objects(folder):
    endpoints = resolve(load_settings().values)
    _held.append(endpoints)
    arguments = endpoints.store.arguments
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        boto3.client("s3", **{**arguments, "aws_secret_access_key": "guess-guess"}).list_buckets()
    s3 = boto3.client("s3", **arguments)
    s3.create_bucket(Bucket="kept")
    s3.put_object(Bucket="kept", Key="a", Body=b"kept")
    os.kill(pids(folder)["s3"], signal.SIGKILL)
    assert attach("s3").engines["s3"].port == endpoints.store.port
    assert s3.get_object(Bucket="kept", Key="a")["Body"].read() == b"kept"


def test_an_engine_that_keeps_dying_is_reported_and_can_be_asked_for_again(folder):
    def ended_or_new() -> bool:
        state = states(folder)["valkey"]
        return state.status == "failed" or state.pid not in {0, before}

    attach()
    while (before := pids(folder)["valkey"]) != 0:
        os.kill(before, signal.SIGKILL)
        assert wait_until(ended_or_new, SOON_S)
    assert "it died 5 times" in states(folder)["valkey"].message
    assert client(attach()).ping() is True


def test_a_database_killed_in_mid_query_comes_back_each_time_and_leaves_no_backend(folder):
    held = attach("postgres")
    for _ in range(2):
        server = psutil.Process(pids(folder)["postgres"])
        connection = psycopg2.connect(**embedded_database(held).arguments, async_=1)
        wait_select(connection)
        connection.cursor().execute("SELECT count(*) FROM generate_series(1, 10000000000)")
        busy = psutil.Process(connection.info.backend_pid)
        assert wait_until(lambda busy=busy: busy.cpu_times().user > 0.05, SOON_S)
        server.kill()
        assert query(attach("postgres"), "SELECT 1") == [(1,)]
        assert wait_until(lambda busy=busy: not busy.is_running(), SOON_S)
        connection.close()


def test_a_killed_supervisor_takes_the_engines_with_it_and_the_data_and_ports_stay(folder):
    held, box = attach("postgres", "valkey"), attach(kind="sandbox")
    rows, engines = keep_a_row(held), folder.processes().engines
    supervisor(folder).kill()
    assert wait_until(lambda: not any(map(is_alive, engines)), SOON_S)
    with pytest.raises(EngineError, match="its engines have ended"):
        box.tell("stop", "valkey")
    again = attach("postgres", "valkey")
    assert query(again, "TABLE kept") == rows
    assert ports(again) == ports(held)


@pytest.mark.parametrize("then", ["stop", "open"])
def test_orphans_that_no_file_mentions_are_found_and_ended(folder, then):
    attach("postgres", "valkey")
    attach(kind="sandbox")
    orphans = folder.processes().engines
    frozen = psutil.Process(pids(folder)["valkey"])
    for act in (psutil.Process.suspend, psutil.Process.kill):
        for process in folder.processes().supervisors:
            act(process)
    folder.address_file.unlink()
    frozen.suspend()
    assert len([one for one in orphans if is_alive(one)]) >= 3
    if then == "stop":
        assert local.stop(folder) is True
    else:
        assert query(attach("postgres"), "SELECT 1") == [(1,)]
    assert [one for one in orphans if is_alive(one)] == []
    assert folder.sandboxes == []


@pytest.mark.parametrize("how", ["frozen", "its file is damaged"])
def test_a_supervisor_that_is_out_of_reach_is_replaced(folder, how):
    held = attach("postgres", "valkey")
    rows, boss = keep_a_row(held), supervisor(folder)
    if how == "frozen":
        boss.suspend()
    else:
        folder.address_file.write_text('{"port": 1')
    again = attach("postgres", "valkey")
    assert supervisor(folder) != boss
    assert ports(again) == ports(held)
    assert query(again, "TABLE kept") == rows
    supervisor(folder).suspend()
    assert local.stop(folder) is True


@pytest.mark.parametrize("how", ["killed", "replaced by another process"])
def test_a_running_workshop_takes_its_lease_again(folder, how):
    def users() -> list[int]:
        return [one.pid for one in local.status(folder).users]

    with another(SLEEP) as user:
        port = int(user.stdout.readline())
        if how == "killed":
            supervisor(folder).kill()
        else:
            supervisor(folder).suspend()
            attach()
            let_go()
        assert wait_until(lambda: users() == [user.pid], SOON_S)
        # It is there first, and asks for its engines then.
        assert wait_until(lambda: pids(folder).get("valkey"), SOON_S)
        assert states(folder)["valkey"].port == port
    assert gone(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of others are set on Linux alone")
def test_a_full_disk_and_a_dead_engine_take_no_other_with_them(folder):
    attach("postgres", "valkey", idle_s=60)
    before, boss = pids(folder), supervisor(folder)
    limits = boss.rlimit(psutil.RLIMIT_FSIZE)
    boss.rlimit(psutil.RLIMIT_FSIZE, (0, limits[1]))  # whatever it writes into files fails
    os.kill(before["valkey"], signal.SIGKILL)
    with pytest.raises(EngineError, match="If the disk is full, free it"):
        attach()
    assert pids(folder) == before | {"valkey": 0}
    boss.rlimit(psutil.RLIMIT_FSIZE, limits)
    assert client(attach()).ping() is True
    assert supervisor(folder) == boss


# --- stale and strange ---


@pytest.mark.parametrize("stranger", ["", "\0", '"proof"\n{"engines": []}\n', "has ended"])
def test_what_was_left_before_a_reboot_does_no_harm(folder, stranger):
    folder.prepare()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as threads:
        known = {"port": listener.getsockname()[1], "key": "k"}
        folder.write(folder.address_file, known)
        if stranger == "has ended":
            listener.close()
            assert client(attach()).ping() is True
            return
        accepted = threads.submit(listener.accept)
        opening = threads.submit(attach)
        with accepted.result(SOON_S)[0] as heard:
            heard.sendall(stranger.encode())
            assert client(opening.result(SOON_S)).ping() is True


def test_a_port_that_was_taken_meanwhile_is_given_up(folder):
    port = attach().engines["valkey"].port
    local.stop(folder)
    let_go()
    with socket.create_server(("127.0.0.1", port)):
        held = attach()
        assert held.engines["valkey"].port != port
        assert client(held).ping() is True


@both
def test_where_an_engine_does_not_start_nothing_is_left(folder, kind):
    settings = load_settings().values.model_copy(update={"workshop_cache_mb": -1})
    with pytest.raises(EngineError, match=r"valkey did not start: the end of its log"):
        local.attach(folder, ["postgres", "valkey"], settings, sandbox=kind == "sandbox")
    assert gone(folder)


def test_an_opening_that_is_interrupted_leaves_nothing_and_one_that_cannot_be_says_why(
    folder, monkeypatch
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(local, "_ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attach()
    assert gone(folder)
    monkeypatch.setattr(local, "SUPERVISOR", "workshop_lib.no_such_module")
    with pytest.raises(EngineError, match=r"supervisor did not start(.|\n)*no_such_module"):
        attach()


def test_where_rclone_cannot_run_an_emulation_stands_in_and_says_so(tmp_path):
    folder = StateFolder(tmp_path / "state")
    folder.prepare()
    store = ObjectStore(folder)
    store.program = tmp_path / "no-rclone-here"
    store.start()
    try:
        assert store.state().emulated is True
        keys = dict.fromkeys(("aws_access_key_id", "aws_secret_access_key"), "any")
        place = {"endpoint_url": f"http://127.0.0.1:{store.port}", "region_name": "us-east-1"}
        s3 = boto3.client("s3", **place, **keys)
        s3.create_bucket(Bucket="emulated")
        s3.put_object(Bucket="emulated", Key="k", Body=b"body")
        assert s3.get_object(Bucket="emulated", Key="k")["Body"].read() == b"body"
    finally:
        store.stop()
        local.reset(folder)


# --- the folder ---


def test_each_checkout_has_a_folder_outside_of_it():
    chosen = state_folder(None).path
    assert CHECKOUT not in chosen.parents
    assert chosen != state_folder(Path("elsewhere")).path


def test_nothing_comes_of_a_folder_that_is_not_there(tmp_path):
    folder = state_folder(tmp_path)
    for end in (local.stop, local.reset):
        assert end(folder) is False
    assert list(tmp_path.iterdir()) == []


def test_resets_at_once_leave_nothing_and_nothing_comes_of_a_folder_that_is_not_there(tmp_path):
    folder = state_folder(tmp_path)
    for end in (local.stop, local.reset):
        assert end(folder) is False
    folder.prepare()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(local.reset, [folder] * 4))
    assert list(tmp_path.iterdir()) == []
